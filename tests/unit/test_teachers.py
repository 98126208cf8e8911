"""Teachers that a user names: found early, held against model and data, and built to be heard."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from autotune.objectives import teachers
from autotune.objectives.causal_lm import CausalLM
from autotune.objectives.text_classification import TextClassification
from transformers import AutoModelForCausalLM, BertConfig, BertModel, LlamaConfig

from autotune.core.errors import ModelError
from autotune.core.workload import Workload, WorkloadFacts
from autotune.knobs.distillation import Distillation, Distiller
from autotune.knobs.stages import DataPlan, LoadPlan, StepPlan
from tests import tiny_folders
from tests import tiny_models as tiny

KINDS = {"text_classification": TextClassification, "causal_lm": CausalLM}
CLASSES = {"id2label": {0: "field", 1: "sea"}, "label2id": {"field": 0, "sea": 1}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a teacher of each kind, and rows to train on."""
    folder = tmp_path_factory.mktemp("teachers")
    tiny_folders.write_rows(folder / "rows.jsonl")
    for name in KINDS:
        changes = CLASSES if name == "text_classification" else {}
        tiny_folders.save_model(folder / name, name)
        tiny_folders.save_model(folder / f"{name}_teacher", name, **changes)
    return folder


def asked(folder: Path, name: str, **changes: object) -> Workload:
    workload = Workload(
        objective=name,
        model=str(folder / name),
        data=str(folder / "rows.jsonl"),
        teacher=str(folder / f"{name}_teacher"),
        sequence_length=16,
        global_batch=8,
    )
    return replace(workload, **changes)


def refusal(workload: Workload, cache: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        KINDS[workload.objective](workload, cache).describe()
    assert caught.value.help
    return caught.value


@pytest.mark.parametrize("name", KINDS)
def test_a_teacher_is_heard_with_its_own_weights(folder: Path, tmp_path: Path, name: str) -> None:
    facts = KINDS[name](asked(folder, name), tmp_path).describe()
    assert "teacher" in facts.features
    assert WorkloadFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    trial = KINDS[name](facts.workload, tmp_path)
    teacher = trial.build_teacher()
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    stored = type(teacher).from_pretrained(folder / f"{name}_teacher").state_dict()
    for key, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, stored[key]), key
    student = trial.build(LoadPlan(), seed=0)
    distiller = Distiller(student, Distillation(teacher=teacher))
    batch = next(trial.train_batches(DataPlan(sequence_length=16, global_batch=8), 0))
    loss = trial.loss(student, batch, StepPlan())
    assert distiller.mix(loss).item() != loss.item()


@pytest.mark.parametrize("name", KINDS)
def test_without_a_name_there_is_no_teacher(folder: Path, tmp_path: Path, name: str) -> None:
    task = KINDS[name](asked(folder, name, teacher=None), tmp_path)
    assert "teacher" not in task.describe().features
    with pytest.raises(ModelError, match="no teacher is named"):
        task.build_teacher()


@pytest.mark.parametrize("name", KINDS)
def test_a_teacher_keeps_its_dtype_where_that_is_no_burden(
    folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tmp_path / "narrow"
    changes = CLASSES if name == "text_classification" else {}
    tiny_folders.save_model(teacher, name, **changes)
    kind = KINDS[name](asked(folder, name), tmp_path / "other")
    kind.describe()
    kind.build_teacher().to(torch.bfloat16).save_pretrained(teacher)
    task = KINDS[name](asked(folder, name, teacher=str(teacher)), tmp_path / "cache")
    task.describe()
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(teachers, "cpu_has_bf16", lambda fast=fast: fast)
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        assert {p.dtype for p in task.build_teacher().parameters()} == {dtype}


@pytest.mark.parametrize("name", KINDS)
def test_what_cannot_be_learnt_from_is_said_before_anything_trains(
    folder: Path, tmp_path: Path, name: str
) -> None:
    missing = refusal(asked(folder, name, teacher=str(tmp_path / "none")), tmp_path / "a")
    assert "there is no folder" in missing.message
    changes = CLASSES if name == "text_classification" else {}
    teacher = tiny_folders.save_model(tmp_path / "teacher", name, **changes)
    workload = asked(folder, name, teacher=str(teacher))
    (teacher / "tokenizer.json").unlink()
    assert "no tokenizer" in refusal(workload, tmp_path / "b").message
    (teacher / "model.safetensors").unlink()
    assert "has no weights" in refusal(workload, tmp_path / "c").message


@pytest.mark.parametrize("name", KINDS)
def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    changes = CLASSES if name == "text_classification" else {}
    teacher = tiny_folders.save_model(tmp_path / "teacher", name, **changes)
    tokenizer = tiny_folders.byte_tokenizer()
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(teacher)
    error = refusal(asked(folder, name, teacher=str(teacher)), tmp_path / "cache")
    assert "another tokenizer" in error.message


@pytest.mark.parametrize("name", KINDS)
def test_shorter_positions_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    changes = CLASSES if name == "text_classification" else {}
    teacher = tmp_path / "teacher"
    tiny_folders.save_model(teacher, name, **changes, max_position_embeddings=12)
    error = refusal(asked(folder, name, teacher=str(teacher)), tmp_path / "cache")
    assert "sequences of 16 tokens are longer than the 12" in error.message


def test_other_classes_are_refused(folder: Path, tmp_path: Path) -> None:
    name = "text_classification"
    other = str(folder / name)  # has the classes that transformers makes up
    error = refusal(asked(folder, name, teacher=other), tmp_path)
    assert "'LABEL_0', 'LABEL_1', but the data has the classes 'field', 'sea'" in error.message


def test_an_encoder_without_a_classifier_is_refused(folder: Path, tmp_path: Path) -> None:
    teacher = tiny_folders.save_model(tmp_path / "teacher", "text_classification", **CLASSES)
    config = BertConfig.from_pretrained(teacher)
    BertModel(config).save_pretrained(teacher)
    workload = asked(folder, "text_classification", teacher=str(teacher))
    assert "has no weights for classifier.weight" in refusal(workload, tmp_path / "cache").message


def test_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    wide = len(tiny_folders.byte_tokenizer()) + 64
    tiny_folders.save_model(teacher, "causal_lm", vocab_size=wide)
    error = refusal(asked(folder, "causal_lm", teacher=str(teacher)), tmp_path / "cache")
    assert f"has a vocabulary of {wide} tokens" in error.message


def test_a_model_over_bytes_learns_from_another(folder: Path, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=256, hidden_size=tiny.HIDDEN, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=tiny.FFN, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "teacher")
    workload = Workload(objective="causal_lm", teacher=str(tmp_path / "teacher"))
    assert "teacher" in CausalLM(workload, tmp_path / "cache").describe().features
    reads = replace(workload, teacher=str(folder / "causal_lm_teacher"))
    assert "the model reads bytes" in refusal(reads, tmp_path / "other").message


def test_a_recurrent_model_takes_the_tokenizer_of_its_teacher(folder: Path, tmp_path: Path) -> None:
    workload = asked(folder, "text_classification", model="lstm")
    facts = TextClassification(workload, tmp_path).describe()
    trial = TextClassification(facts.workload, tmp_path)
    student = trial.build(LoadPlan(), seed=0)
    assert student.config.vocab_size == len(tiny_folders.byte_tokenizer())
    distiller = Distiller(student, Distillation(teacher=trial.build_teacher()))
    plan = DataPlan(sequence_length=16, global_batch=8, on_the_fly=True)
    loss = trial.loss(student, next(trial.train_batches(plan, 0)), StepPlan())
    assert distiller.mix(loss).item() != loss.item()
