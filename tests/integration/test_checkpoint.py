"""A recorded trial trained in full again: its numbers hold, and plain transformers loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from autotune.core.errors import StorageError
from autotune.export.checkpoint import train_and_keep
from autotune.repeat import repeat_trial
from autotune.storage.run import Run
from autotune.tuner import tune
from tests import tiny_folders

pytestmark = pytest.mark.training

SPACE = """
summary: adapters on packed weights
knobs:
  lora.rank: [4]
  weight_bits: [8]
  prune.ffn: [0.5]
training:
  steps: 4
  global_batch: 8
  sequence_length: 16
  eval_examples: 12
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("searched")
    (folder / "space.yaml").write_text(SPACE)
    return tune(
        budget="1GB",
        objective="text_classification",
        model=str(tiny_folders.save_model(folder / "tiny", "text_classification")),
        data=str(tiny_folders.write_rows(folder / "rows.jsonl")),
        space=str(folder / "space.yaml"),
        trials=1,
        jobs=1,
        device="cpu",
        name="tiny",
        results=folder / "results",
    )


def test_numbers_hold_on_the_machine_that_recorded_them(run: Run) -> None:
    repeat = repeat_trial(run, run.records[0].number, seeds=2)
    assert repeat.holds
    assert repeat.notes == ()
    assert [check.difference for check in repeat.checks] == [0.0, 0.0]
    assert len(repeat.scores("accuracy")) == 2


def test_the_kept_model_loads_with_plain_transformers(run: Run, tmp_path: Path) -> None:
    record = run.records[0]
    assert record.config["weight_bits"] == 8
    repeat = train_and_keep(run, record.number, tmp_path / "model")
    assert repeat.holds
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.config.intermediate_size * 2 == 64
    assert set(model.config.id2label.values()) == {"sea", "field"}
    inputs = tokenizer(["wave tide salt", "plough barley"], padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        assert model(**inputs).logits.shape == (2, 2)
    with pytest.raises(StorageError, match="ever overwritten"):
        train_and_keep(run, record.number, tmp_path / "model")
