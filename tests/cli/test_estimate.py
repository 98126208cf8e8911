"""`autotune estimate`: through the process that rehearses on folders with a config.json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
from syrupy.assertion import SnapshotAssertion

import autotune.cli.estimate
from autotune.core.units import GIB
from autotune.memory.outside import CONTEXT_BYTES
from autotune.memory.rehearsal import CannotRehearse, Rehearsal
from autotune.runners.device_table import find_device
from tests.cli.conftest import Command

LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 1000, "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}  # fmt: skip
T5: dict[str, Any] = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 64,
    "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 1000,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
SHAPE = ("--batch", "8", "--sequence-length", "32")


class Canned:
    """Answers every question at once with the same 3 GiB."""

    def __enter__(self) -> Canned:
        return self

    def __exit__(self, *_: object) -> None: ...

    def start(self) -> None: ...

    def rehearse(self, spec: object, *, record: bool = False) -> Rehearsal:
        return Rehearsal(
            peak_bytes=3 * GIB, phase="steady", within="backward", operator="aten.mm.default",
            anatomy={"weights": GIB, "gradients": GIB // 2, "activations": 3 * GIB // 2},
            peaks={"steady": 3 * GIB}, parameters=10**9, trained_parameters=10**9,
        )  # fmt: skip

    def trace(self, spec: object, scale: object = None) -> NoReturn:
        raise CannotRehearse("nothing is rehearsed here, so there are no events")


def folder(name: str, entries: dict[str, Any]) -> str:
    Path(name).mkdir()
    (Path(name) / "config.json").write_text(json.dumps(entries))
    return name


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune.cli.estimate, "RehearsalWorker", Canned)


def test_screen(canned: None, autotune_says: Command, snapshot: SnapshotAssertion) -> None:
    said = autotune_says(
        "estimate", "--model", folder("small", LLAMA), *SHAPE, "--set", "precision=bf16"
    )
    assert said.status == 0, said.err
    assert said.out == snapshot


def test_screen_beside_a_budget(
    canned: None, autotune_says: Command, snapshot: SnapshotAssertion
) -> None:
    said = autotune_says(
        "estimate", "--model", folder("small", LLAMA), *SHAPE, "--device", "T4", "--budget", "3GB"
    )
    assert said.status == 3, said.err
    assert said.out == snapshot


def test_help(autotune_says: Command, snapshot: SnapshotAssertion) -> None:
    assert autotune_says("estimate", "--help").out == snapshot


@pytest.mark.parametrize(
    "arguments",
    [
        ("--device", "A100"),
        ("--budget", "16"),
        ("--batch", "0"),
        ("--set", "precision"),
        ("--set", "precision=fp7"),
        ("--set", "precision=bf16,fp16"),
        ("--set", "accumulation=16"),
        ("--set", "weight_bits=4"),
        ("--sequence-length", "4096"),
        ("--model", "none/such/folder"),
        ("--model", "empty"),
        ("--objective", "causal_ml"),
    ],
    ids=" ".join,
)
def test_errors_say_what_to_type(
    arguments: tuple[str, ...], canned: None, autotune_says: Command, snapshot: SnapshotAssertion
) -> None:
    Path("empty").mkdir()
    model = () if "--model" in arguments else ("--model", folder("small", LLAMA))
    batch = () if "--batch" in arguments else ("--batch", "8")
    said = autotune_says("estimate", *model, "--quiet", *batch, *arguments)
    assert said.status == 2
    assert said.out == ""
    assert said.err.replace(str(Path.cwd()), "HERE") == snapshot


@pytest.mark.training
@pytest.mark.parametrize("device", ["cpu", "A100-80GB"])
def test_a_folder_with_a_config_is_enough(device: str, autotune_says: Command) -> None:
    arguments = ("estimate", "--model", folder("small", LLAMA), *SHAPE, "--device", device)
    said = autotune_says(*arguments, "--json", "--set", "optimizer=adamw")
    assert said.status == 0, said.err
    found = said.document
    assert found["schema"] == 1
    assert Path("small").is_dir()
    assert [path.name for path in Path("small").iterdir()] == ["config.json"]
    parts, parameters = found["parts_gib"], found["parameters"]
    unit = 4 / GIB * parameters
    assert parts["weights"] == pytest.approx(unit, rel=0.15)  # and the tables of positions
    assert parts["optimizer"] == pytest.approx(2 * unit, rel=0.15)
    assert sum(parts.values()) == pytest.approx(found["predicted_gib"]["middle"], rel=1e-6)
    on_cuda = find_device(device).kind == "cuda"
    assert (parts["outside"] * GIB == CONTEXT_BYTES) == on_cuda


@pytest.mark.training
def test_a_budget_that_is_too_small_is_exit_status_3(
    autotune_says: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autotune.estimate.MOST_TRIED", 1)
    said = autotune_says(
        "estimate", "--model", folder("t5", T5), *SHAPE, "--json", "--budget", "1MB"
    )
    assert said.status == 3, said.err
    beside = said.document["budget"]
    assert not beside["fits"]
    assert beside["spare_gib"] < 0
    assert [saving["knob"] for saving in beside["savings"]] == ["accumulation"]
