"""Settings for other tools: what they say, in words that the tools know, or which are missing."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from inspect import signature
from typing import Any

import pytest
import yaml
from ruamel.yaml import YAML
from torch.optim import AdamW

from autotune.core.context import Device
from autotune.core.domains import Value
from autotune.core.errors import CannotExport, UnknownName
from autotune.export import accelerate, axolotl, deepspeed, llamafactory, torchtitan
from autotune.export.accelerate import export_accelerate
from autotune.export.axolotl import export_axolotl
from autotune.export.base import EXPORTERS, Export, Exporter, Subject
from autotune.export.checkpoint import check_loads_plainly
from autotune.export.deepspeed import export_deepspeed
from autotune.export.document import export_document
from autotune.export.llamafactory import export_llamafactory
from autotune.export.numbers import Numbers
from autotune.export.torchtitan import export_torchtitan
from autotune.knobs import BUILTIN
from tests import export_fields
from tests.exports import subject_of

CARD = Device(kind="cuda", name="Card", total_bytes=2**34, bf16=True, capability=(9, 0))


def read_yaml(text: str) -> dict[str, Any]:
    found = YAML(typ="safe").load(text)
    assert isinstance(found, dict)
    return found


def names(value: object) -> Iterator[str]:
    """Every key of a nested document."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from names(inner)


def test_numbers_are_those_of_the_trial() -> None:
    config = {"global_batch": 4.0, "accumulation": 2, "sequence_length": 0.5, "lora.rank": 8}
    numbers = Numbers.of(subject_of({**config, "optimizer": "lion", "learning_rate": 3.0}))
    assert (numbers.batch, numbers.micro, numbers.accumulation) == (32, 16, 2)
    assert (numbers.steps, numbers.warmup, numbers.length) == (5, 1, 32)
    # half of AdamW's rate, ten times for adapters, three by the knob, the root of the batch's four
    assert numbers.rate == pytest.approx(1e-4 * 0.5 * 10.0 * 3.0 * math.sqrt(4.0))


def test_axolotl_says_what_was_chosen() -> None:
    config = {
        "precision": "bf16", "weight_bits": 4, "weight_bits.format": "nf4", "lora.rank": 16,
        "checkpointing": "selective", "accumulation": 4, "optimizer.bits": 8, "loss_chunks": 4,
    }  # fmt: skip
    export = export_axolotl(subject_of(config, device=CARD))
    found = read_yaml(export.main)
    expected = {
        "base_model": "owner/model", "adapter": "qlora", "load_in_4bit": True, "lora_r": 16,
        "lora_alpha": 32, "lora_target_linear": True, "bfloat16": True, "micro_batch_size": 2,
        "gradient_accumulation_steps": 4, "optimizer": "adamw_bnb_8bit", "sequence_len": 64,
        "gradient_checkpointing": True, "chunked_cross_entropy_num_chunks": 4, "max_steps": 20,
        "learning_rate": 1e-3, "lr_scheduler": "linear", "warmup_steps": 2,
    }  # fmt: skip
    assert expected.items() <= found.items()
    assert found["datasets"] == [{"path": "texts.jsonl", "type": "completion", "field": "text"}]
    assert any("bitsandbytes" in note for note in export.notes)
    assert all(f"# {note.split()[0]}" in export.main for note in export.notes)


def test_llamafactory_says_what_was_chosen() -> None:
    config = {"weight_bits": 8, "lora.rank": 8, "lora.targets": "attention", "lora.variant": "dora"}
    export = export_llamafactory(subject_of({**config, "checkpointing": "full"}, device=CARD))
    found = read_yaml(export.main)
    expected = {
        "stage": "pt", "finetuning_type": "lora", "lora_rank": 8, "lora_alpha": 16,
        "lora_target": "q_proj,k_proj,v_proj,o_proj", "use_dora": True, "quantization_bit": 8,
        "disable_gradient_checkpointing": False, "optim": "adamw_torch_fused",
        "per_device_train_batch_size": 8,
    }  # fmt: skip
    assert expected.items() <= found.items()
    listed = json.loads(export.files["dataset_info.json"])
    assert listed[found["dataset"]]["file_name"] == "texts.jsonl"


def test_deepspeed_says_what_was_chosen() -> None:
    config = {"precision": "bf16_mixed", "accumulation": 4, "optimizer": "lion"}
    found = json.loads(export_deepspeed(subject_of(config, device=CARD)).main)
    batch = found["train_micro_batch_size_per_gpu"] * found["gradient_accumulation_steps"]
    assert batch == found["train_batch_size"] == 8
    assert found["optimizer"] == {"type": "Lion", "params": {"lr": 5e-5, "weight_decay": 0.02}}
    assert found["scheduler"]["params"]["total_num_steps"] == 20
    assert found["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    offloaded = subject_of({"optimizer.offload": "host"}, device=CARD)
    stage = json.loads(export_deepspeed(offloaded).main)["zero_optimization"]
    assert stage["offload_optimizer"] == {"device": "cpu"}


def test_torchtitan_is_a_function_that_changes_a_recipe() -> None:
    config = {"checkpointing": "full", "precision": "bf16_mixed", "accumulation": 2}
    export = export_torchtitan(subject_of(config, family="qwen3", device=CARD))
    tree = ast.parse(export.main)
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert function.name == "trial"
    assert "config = qwen3_debugmodel()" in export.main
    assert "config.training.local_batch_size = 4" in export.main
    assert "config.activation_checkpoint = FullAC.Config()" in export.main
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    used |= {k.arg for n in ast.walk(tree) if isinstance(n, ast.Call) for k in n.keywords if k.arg}
    used |= {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    assert used <= export_fields.known("torchtitan")


def test_accelerate_says_what_was_chosen() -> None:
    found = read_yaml(export_accelerate(subject_of({"precision": "fp16_mixed"}, device=CARD)).main)
    assert found["mixed_precision"] == "fp16"
    assert found["use_cpu"] is False


def test_json_has_everything() -> None:
    subject = subject_of({"lora.rank": 8})
    found = json.loads(export_document(subject).main)
    assert found["config"] == {"lora.rank": 8}
    assert set(found["values"]) == {knob.name for knob in BUILTIN}
    assert found["run"]["versions"] == dict(subject.spec.versions)


OPTIMIZER = frozenset(signature(AdamW).parameters)
TOOLS: tuple[tuple[Any, Callable[[Subject], Export], frozenset[str] | None], ...] = (
    (axolotl, export_axolotl, export_fields.known("axolotl")),
    (llamafactory, export_llamafactory, None),
    (
        deepspeed,
        export_deepspeed,
        export_fields.known("deepspeed") | set(signature(AdamW).parameters),
    ),
)


def all_names(words: frozenset[str] | None) -> frozenset[str]:
    """Names that a tool knows; LLaMA-Factory adds its own to those of transformers' trainer."""
    if words is not None:
        return words
    from transformers import TrainingArguments

    return export_fields.known("llamafactory") | {field.name for field in fields(TrainingArguments)}


@pytest.mark.parametrize(("tool", "make", "words"), TOOLS, ids=lambda part: getattr(
    part, "TARGET", ""))  # fmt: skip
def test_tools_know_every_word(
    tool: Any, make: Callable[[Subject], Export], words: frozenset[str] | None
) -> None:
    known_names, made = all_names(words), 0
    company: dict[str, Value] = {"lora.rank": 8} if tool is not deepspeed else {}
    for knob in BUILTIN:
        for value in knob.domain.grid():
            subject = subject_of({**company, knob.name: value}, device=CARD)
            if any(tool.EXPRESSED.get(n, _missing)(v, subject) for n, v in subject.changed.items()):
                with pytest.raises(CannotExport):
                    make(subject)
                continue
            text = make(subject).main
            document = json.loads(text) if text.startswith("{") else read_yaml(text)
            assert text.startswith("{") or document == yaml.safe_load(text)  # as the tools read it
            assert set(names(document)) - {"use_reentrant"} <= known_names
            made += 1
    assert made > len(BUILTIN)  # neutral values, and some others


def _missing(value: Value, subject: Subject) -> str:
    return "it has no such setting"


@pytest.mark.parametrize(
    "tool", [accelerate, axolotl, deepspeed, llamafactory, torchtitan], ids=lambda t: t.TARGET
)
def test_knobs_of_tools_exist(tool: Any) -> None:
    assert set(tool.EXPRESSED) <= {knob.name for knob in BUILTIN}


@pytest.mark.parametrize(
    ("make", "change", "match"),
    [
        (export_axolotl, {"objective": "text_classification"}, "the objective text_classification"),
        (export_axolotl, {"model": None}, "needs a model of yours"),
        (export_llamafactory, {"data": None}, "needs a data of yours"),
        (export_torchtitan, {"objective": "seq2seq"}, "the objective seq2seq"),
    ],
)
def test_what_tools_are_not_for(
    make: Callable[[Subject], Export], change: dict[str, Any], match: str
) -> None:
    with pytest.raises(CannotExport, match=match):
        make(subject_of({}, **change))


def test_every_missing_setting_is_named_with_what_to_do() -> None:
    config = {"prune.ffn": 0.5, "distill": "logits", "optimizer": "adafactor", "accumulation": 2}
    with pytest.raises(CannotExport, match="3 settings") as caught:
        export_axolotl(subject_of(config, device=CARD))
    lines = caught.value.context
    assert [line.split(":")[0] for line in lines] == [
        "distill logits", "prune.ffn 0.5", "optimizer adafactor"
    ]  # fmt: skip
    assert lines[1].endswith("search again with --set prune.ffn=0.0")
    assert "absolute" in lines[2]


def test_registry_has_all_targets() -> None:
    for name in EXPORTERS.names():
        exporter = EXPORTERS.load(name)
        assert isinstance(exporter, Exporter)
        assert exporter.name == name
        assert exporter.help
    with pytest.raises(UnknownName, match="unknown target 'deepsped'"):
        EXPORTERS.load("deepsped")


def test_models_that_plain_transformers_cannot_load_are_said() -> None:
    check_loads_plainly(subject_of({"prune.heads": 0.5}, family="bert"))
    with pytest.raises(CannotExport, match="plain network of torch") as caught:
        check_loads_plainly(subject_of({}, family="lstm"))
    assert "--to json" in str(caught.value.help)
