"""CUDA semantics without CUDA: each in a process of its own, as autograd looks at devices once."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

from autotune.memory.rehearsal import ON_CPU_TENSORS

PRELUDE = """
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from autotune.memory.fake_device import NoFakeDevice, install
from autotune.memory.stand_ins import Followed, surroundings
"""


def run(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_this_torch_has_the_layout_that_is_known() -> None:
    assert run("print(install())") == "stand-in"


def test_backward_works_and_what_is_real_stays_right() -> None:
    told = run("""
        install()
        mode = FakeTensorMode()
        storages = Followed("cuda", unit=512)
        with mode, storages, surroundings(storages, cuda=True):
            model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Dropout(0.1))
            tied = nn.ModuleList([model, model])
            tied.to("cuda:0")
            optimizer = torch.optim.AdamW(model.parameters(), fused=True)
            generator = torch.Generator("cuda:0").manual_seed(0)
            x = torch.rand(8, 64, device="cuda:0", generator=generator)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                y = model(x)
            y.float().square().mean().backward()
            optimizer.step()
            print(y.device, model[0].weight.grad.device, model[0].weight.device)
            del y
        real = nn.Linear(3, 3)
        real(torch.ones(1, 3)).sum().backward()
        print(real.weight.grad.sum().item())
    """)
    assert told.splitlines() == ["cuda:0 cuda:0 cuda:0", "9.0"]


def test_blocks_are_rounded_as_the_allocator_does() -> None:
    told = run("""
        install()
        storages = Followed("cuda", unit=512)
        with FakeTensorMode(), storages:
            one = torch.empty(1, device="cuda:0")
            two = torch.empty(513, dtype=torch.uint8, device="cuda:0")
            elsewhere = torch.empty(10**6)
            print(storages.live_bytes)
    """)
    assert int(told) == 512 + 1024


def test_attention_takes_the_kernel_of_the_device() -> None:
    told = run("""
        install()
        heads, tokens = 4, 256
        storages = Followed("cuda")

        def attend(dtype, keys=heads, **options):
            q = torch.empty(2, heads, tokens, 64, dtype=dtype, device="cuda:0").requires_grad_()
            k = torch.empty(2, keys, tokens, 64, dtype=dtype, device="cuda:0").requires_grad_()
            storages.restart()
            before = storages.live_bytes
            out = nn.functional.scaled_dot_product_attention(q, k, k, **options)
            scores = 2 * heads * tokens * tokens * out.element_size()
            name, lean = type(out.grad_fn).__name__, storages.peak_bytes - before < scores
            out.sum().backward()
            assert q.grad.shape == q.shape and k.grad.shape == k.shape
            print(name.removesuffix("AttentionBackward0"), lean)

        with FakeTensorMode(), storages, surroundings(storages, cuda=True):
            mask = torch.ones(2, 1, 1, tokens, dtype=torch.bool, device="cuda:0")
            attend(torch.bfloat16)
            attend(torch.bfloat16, keys=2, enable_gqa=True)
            attend(torch.bfloat16, attn_mask=mask)
            attend(torch.float32)
            attend(torch.float32, keys=2, enable_gqa=True)
            attend(torch.float64)
    """)
    assert told.splitlines()[:4] == [
        "ScaledDotProductFlash True",
        "ScaledDotProductFlash True",
        "ScaledDotProductEfficient True",
        "ScaledDotProductEfficient True",
    ]
    assert [line.split()[-1] for line in told.splitlines()[4:]] == ["False", "False"]


def test_without_the_layout_it_says_so() -> None:
    told = run(
        """
        try:
            install()
        except NoFakeDevice as error:
            print(error)
        """,
        **{ON_CPU_TENSORS: "1"},
    )
    assert "crashed" in told
