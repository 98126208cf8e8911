"""Objectives of a config.json alone: each kind of model is rehearsed without weights or data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.core.context import Device
from autotune.core.errors import ModelError
from autotune.core.workload import Workload, WorkloadFacts
from autotune.estimate import SHAPED, SHAPES
from autotune.knobs.stages import DataPlan
from autotune.memory.rehearse import rehearse
from autotune.trial.objective import load_objective
from autotune.trial.spec import TrialSpec

BATCH = 4
_SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "vocab_size": 500, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
LLAMA = {"model_type": "llama", **_SMALL}
BERT = {"model_type": "bert", **_SMALL}
T5 = {
    "model_type": "t5", "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
    "vocab_size": 500, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
VIT = {"model_type": "vit", **_SMALL, "image_size": 32, "patch_size": 8}
KINDS: dict[str, tuple[dict[str, Any], str, int]] = {
    "causal_lm": (LLAMA, "input_ids", 64),
    "text_classification": (BERT, "input_ids", 64),
    "seq2seq": (T5, "input_ids", 256),
    "image_classification": (VIT, "pixel_values", 16),
}
"""Configuration, main input, and tokens of a sequence unless they are asked for."""


def write(folder: Path, entries: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(entries))
    return str(folder)


def describe(model: str, cache: Path, objective: str = "by_architecture", **asked: int) -> Any:
    workload = Workload(objective=f"{SHAPES}:{objective}", model=model, global_batch=BATCH, **asked)
    return load_objective(workload.objective)(workload, cache).describe()


@pytest.mark.parametrize("task", KINDS)
def test_each_kind_of_model_is_rehearsed(task: str, tmp_path: Path) -> None:
    entries, main, length = KINDS[task]
    facts: WorkloadFacts = describe(write(tmp_path / "m", entries), tmp_path / "cache")
    assert facts.workload.objective == f"{SHAPES}:{SHAPED[task]}"
    assert facts.workload.sequence_length == length
    assert facts.model.pretrained, "the weights are taken to be there"
    device = Device(kind="cpu", total_bytes=2**30)
    found = rehearse(
        TrialSpec(
            number=0, config={}, facts=facts, device=device, threads=1, limit_bytes=2**30,
            limit_seconds=60, cache=str(tmp_path / "cache"), log="", probe=True,
        )
    )  # fmt: skip
    assert found.parameters == facts.model.parameters
    assert found.peak_bytes > 4 * 4 * found.parameters  # weights, gradients, two moments in fp32
    trial = load_objective(facts.workload.objective)(facts.workload, tmp_path / "cache")
    plan = DataPlan(sequence_length=length, global_batch=4 * BATCH)
    batch = next(trial.train_batches(plan, 0))
    assert len(batch[main]) == len(batch["labels"]) == 4 * BATCH


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForMaskedLM", "text_classification"),
        ("BertLMHeadModel", "causal_lm"),
        ("BertModel", "text_classification"),
    ],
)
def test_the_architecture_decides_where_a_family_can_do_both(
    architecture: str, task: str, tmp_path: Path
) -> None:
    model = write(tmp_path / "m", {**BERT, "architectures": [architecture]})
    facts = describe(model, tmp_path / "cache", sequence_length=8)
    assert facts.workload.objective == f"{SHAPES}:{SHAPED[task]}"
    assert facts.workload.sequence_length == 8


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"model_type": "whisper"}, "hears speech"),
        ({"model_type": "encodec"}, "which training it is for cannot be told"),
        ({"hidden_size": 8}, "cannot be loaded"),
        (LLAMA, "longer than the 64"),
        (VIT, "reads an image as 16 patches"),
    ],
    ids=["whisper", "encodec", "no family", "too long", "patches"],
)
def test_what_a_configuration_does_not_tell_is_said(
    entries: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=said):
        describe(write(tmp_path / "m", entries), tmp_path / "cache", sequence_length=65)


def test_of_the_hub_only_the_configuration_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def fetch(name: str, *, allow_patterns: list[str], etag_timeout: float) -> str:
        asked.append((name, allow_patterns))
        if name == "none/such":
            raise OSError("offline")
        return write(tmp_path / "snapshot", LLAMA)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    facts = describe("owner/name", tmp_path / "cache")
    assert facts.model.name == "owner/name"
    assert all(patterns == ["config.json", "*.py"] for _, patterns in asked)
    with pytest.raises(ModelError, match="the hub does not give its"):
        describe("none/such", tmp_path / "cache")


def test_a_classifier_has_the_classes_of_its_configuration(tmp_path: Path) -> None:
    classes = {str(number): f"class {number}" for number in range(7)}
    model = write(tmp_path / "m", {**BERT, "id2label": classes})
    facts = describe(model, tmp_path / "cache")
    again = describe(write(tmp_path / "n", BERT), tmp_path / "cache")
    more = facts.model.parameters - again.model.parameters
    assert more == (7 - 2) * (BERT["hidden_size"] + 1)
    assert replace(facts.model, parameters=0, name="") == replace(
        again.model, parameters=0, name=""
    )
