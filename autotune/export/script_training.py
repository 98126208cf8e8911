"""The part of the training script after the model: optimizer, step, loop, evaluation."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from autotune.export import snippets as pieces
from autotune.export import snippets_optimizer as updates
from autotune.export.base import Subject
from autotune.export.numbers import Numbers
from autotune.knobs.allocator import SETTINGS

_STANDARD = (
    (r"\bcsv\.", "import csv"),
    (r"\bgc\.", "import gc"),
    (r"\bjson\.", "import json"),
    (r"\bmath\.", "import math"),
    (r"\bos\.", "import os"),
    (r"\bsys\.", "import sys"),
    (r"\bpartial\(", "from functools import partial"),
    (r"\bPath\(", "from pathlib import Path"),
)
_LIBRARIES = (
    (r"\bnp\.", "import numpy as np"),
    (r"\btorch\.", "import torch"),
    (r"\bLoraConfig\b", "from peft import LoraConfig, inject_adapter_in_model"),
    (r"\bLoraLayer\b", "from peft.tuners.lora import LoraLayer"),
    (r"(?<![\w.])nn\.", "from torch import nn"),
    (r"\bprofile\(", "from torch.profiler import ProfilerActivity, profile"),
)
_NAMES = (
    ("torch.nn.functional", ("cross_entropy", "linear")),
    ("torch.utils.checkpoint", ("checkpoint", "create_selective_checkpoint_contexts")),
    (
        "transformers",
        (
            "AutoConfig",
            "AutoModelForCausalLM",
            "AutoModelForSequenceClassification",
            "AutoTokenizer",
        ),
    ),
    ("transformers.modeling_layers", ("GradientCheckpointingLayer",)),
    ("transformers.pytorch_utils", ("Conv1D",)),
)

PIECE = {"cpu": 2**18, "cuda": 2**22}
"""As `knobs/rounding.py` has it: what fits a CPU's cache, and enough to keep a GPU busy."""


def imports(text: str, subject: Subject | None) -> str:
    """Return the imports that a script needs: the standard library's, then the others.

    Args:
        text: The rest of the script.
        subject: The trial, which may want the allocator set up before torch is there; None where
            that is done already.
    """
    environment: list[str] = []
    if subject is not None and (setting := str(subject.value("allocator"))) in SETTINGS:
        environment = [f'os.environ["PYTORCH_ALLOC_CONF"] = "{SETTINGS[setting]}"', ""]
    text = "\n".join((text, *environment))
    standard = [line for pattern, line in _STANDARD if re.search(pattern, text)]
    others = [line for pattern, line in _LIBRARIES if re.search(pattern, text)]
    for module, names in _NAMES:
        used = [name for name in names if re.search(rf"\b{name}(?=[(),.])", text)]
        if used:
            others.append(f"from {module} import {', '.join(used)}")
    others.sort(key=lambda line: (line.startswith("from "), line.split()[1]))
    return "\n".join([*standard, "", *environment, *others]) + "\n"


def listed(names: tuple[str, ...]) -> str:
    """Return a tuple as a script has it."""
    inside = ", ".join(json.dumps(name) for name in names)
    return f"({inside},)" if len(names) == 1 else f"({inside})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """The optimizer of a script.

    Attributes:
        functions: What is written out because torch has no kernel for it.
        made: The lines that make it.
    """

    functions: tuple[str, ...]
    made: str


def optimizer(subject: Subject, numbers: Numbers) -> Optimizer:
    """Return the optimizer, and what has it update in the backward pass."""
    name, by_torch = str(subject.value("optimizer")), _by_torch(subject)
    in_backward = _in_backward(subject)
    kernel = _KERNELS[str(subject.value("optimizer.kernel"))]
    kind = f"torch.optim.{_TORCH[name]}" if by_torch else _CLASS[name]
    options = f"lr=RATE, {kernel}" if by_torch else '{"lr": RATE}'
    found: list[str] = []
    made = updates.ONE_EACH if by_torch and in_backward else updates.OPTIMIZER
    narrow = updates.NARROW_GRADIENTS if subject.value("gradients") == "bf16" else ""
    found.append(made.format(kind=kind, options=options, decay=numbers.decay, narrow=narrow))
    if in_backward:
        found.append(_ONE_BY_ONE[by_torch])
    if subject.value("precision") == "fp16_mixed":
        found.append("\nscaler = torch.amp.GradScaler(DEVICE, 4096.0, growth_interval=200)\n")
    functions = [] if by_torch else [_updates(subject)]
    functions += [updates.IN_BACKWARD] if in_backward else []
    return Optimizer(functions=tuple(functions), made="".join(found))


def step(subject: Subject, *, language: bool) -> list[str]:
    """Return the loss, one optimizer step, and the evaluation."""
    chunked = subject.value("loss_chunks") != 1
    loss = pieces.CHUNKED_LOSS if chunked else pieces.TOKEN_LOSS
    narrow = _NARROW.get(str(subject.value("precision")))
    autocast = f"\n\n@torch.autocast(DEVICE, dtype=torch.{narrow})" if narrow else ""
    scaled = subject.value("precision") == "fp16_mixed"
    pinned = subject.value("data.pinned") == "yes"
    keep = "set_to_none=False" if subject.value("zero_grad") == "keep" else ""
    update = (pieces.UPDATE_SCALED if scaled else pieces.UPDATE).format(keep=keep)
    text = pieces.STEP.format(
        pinned=".pin_memory()" if pinned else "",
        move=_move(subject, pinned=pinned),
        backward="scaler.scale(loss).backward()" if scaled else "loss.backward()",
        update="" if _in_backward(subject) else update,
    )
    evaluate = pieces.TOKEN_EVALUATE if language else pieces.CLASS_EVALUATE
    found = [pieces.INNER] if language else []
    return [
        *found,
        autocast + (loss if language else pieces.CLASS_LOSS),
        text,
        autocast + evaluate,
    ]


def training(subject: Subject, *, tokenizer: bool) -> list[str]:
    """Return the loop, and what is printed and saved at its end.

    Args:
        subject: The trial.
        tokenizer: Whether there is one to be saved beside the model.
    """
    return [
        pieces.TRAIN.format(metric=subject.spec.facts.metric.name),
        pieces.SAVE.format(
            merge="    merge_adapters(model)\n" if subject.value("lora.rank") else "",
            tokenizer="    tokenizer.save_pretrained(sys.argv[1])\n" if tokenizer else "",
        ),
    ]


_ONE_BY_ONE = {
    True: "update_in_backward(trained, lambda p: optimizer[p].step())\n",
    False: "group_of = {p: group for group in groups for p in group['params']}\n"
    "update_in_backward(trained, lambda p: optimizer.update(p, group_of[p]))\n",
}
_TORCH = {"adamw": "AdamW", "sgd": "SGD"}
_CLASS = {"adamw": "AdamW", "lion": "Lion", "sgd": "SGD", "adafactor": "Adafactor"}
_NARROW = {"bf16_mixed": "bfloat16", "fp16_mixed": "float16"}
_KERNELS = {
    "fused": "fused=True",
    "foreach": "foreach=True",
    "loop": "foreach=False, fused=False",
}
_WHAT = {
    "adamw": "AdamW with moments in fp32 (Loshchilov and Hutter 2017).",
    "lion": "Lion with its moment in fp32 (Chen et al. 2023).",
    "sgd": "SGD without momentum.",
    "adafactor": "Adafactor (Shazeer and Stern 2018): rates are relative to a weight's size.",
}


def _move(subject: Subject, *, pinned: bool) -> str:
    if not subject.on_cuda:
        return ""
    return ".to(DEVICE, non_blocking=True)" if pinned else ".to(DEVICE)"


def _in_backward(subject: Subject) -> bool:
    return subject.value("optimizer.in_backward") == "yes"


def _by_torch(subject: Subject) -> bool:
    """Whether torch has a kernel for the update; see `knobs/optimizers.py`."""
    wide = subject.value("precision") != "bf16" and subject.value("gradients") == "weights"
    return subject.value("optimizer") in _TORCH and wide


def _updates(subject: Subject) -> str:
    """Return an optimizer of the script's own, written out."""
    name = str(subject.value("optimizer"))
    if name == "adafactor":
        body = updates.ADAFACTOR
    else:
        names = updates.MOMENT_NAMES[name]
        moments = updates.MOMENTS.format(names=listed(names)) if names else ""
        body = moments + updates.PIECES.format(rule=updates.RULES[name])
    rounded = subject.value("precision") == "bf16"
    piece = PIECE["cuda" if subject.on_cuda else "cpu"]
    text = updates.UPDATES.format(name=_CLASS[name], what=_WHAT[name], body=body)
    written = updates.WRITE_ROUNDED if rounded else updates.WRITE_PLAIN
    return f"\nPIECE = {piece}  # values that are updated at once\n{text}{written}"
