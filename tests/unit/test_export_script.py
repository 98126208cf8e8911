"""Training scripts: they reproduce their trials without autotune, and can be read in one go."""

from __future__ import annotations

import ast
import json
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from autotune.core.context import Device
from autotune.core.domains import Value
from autotune.core.errors import CannotExport, StorageError
from autotune.core.space import load_space
from autotune.export.base import Subject
from autotune.export.script import MOST_LINES, compose, export_script
from autotune.export.script_knobs import EXPRESSED
from autotune.export.script_training import PIECE
from autotune.knobs import BUILTIN
from autotune.trial.objective import load_objective
from tests.exports import Workbench, run_script, subject_of

CARD = Device(kind="cuda", name="Card", total_bytes=2**34, bf16=True, capability=(9, 0))
NOISE_BYTES = 4 * PIECE["cpu"]
"""What the search's own optimizers draw for rounding, also where nothing is rounded."""


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench.of("text_classification", tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench.of("causal_lm", tmp_path_factory.mktemp("language"))


def check(bench: Workbench, config: Mapping[str, Value], folder: Path) -> None:
    """Run a trial and its script, and compare losses, score and peak."""
    subject, losses = bench.trial(config)
    export_script(subject).write(folder)
    printed, again = run_script(folder)
    outcome = subject.record.outcome
    assert outcome is not None
    score = outcome.scores[bench.facts.metric.name].value  # type: ignore[union-attr] # completed
    close = 2e-3 if "bf16" in str(config.get("precision")) else 2e-4
    assert again == pytest.approx(losses, rel=close, abs=1e-4)
    assert printed[bench.facts.metric.name] == pytest.approx(score, rel=close)
    peak = outcome.measurement.peak_bytes
    own = config.get("optimizer") in ("lion", "adafactor") or "gradients" in config
    close = 0.01 * peak + (NOISE_BYTES if own else 0)
    assert printed["peak_bytes"] == pytest.approx(peak, abs=close)


CLASSIFIERS: tuple[dict[str, Value], ...] = (
    {},
    {"accumulation": 4, "checkpointing": "full", "optimizer": "sgd", "zero_grad": "keep"},
    {"precision": "bf16", "prune.ffn": 0.5, "prune.heads": 0.5, "lora.rank": 4},
    {"lora.rank": 4, "lora.targets": "attention", "optimizer": "lion"},
    {"prune.layers": 0.5, "optimizer": "adafactor", "global_batch": 0.5, "sequence_length": 0.5},
    {"freeze.layers": 0.5, "freeze.embeddings": "yes", "optimizer.kernel": "foreach"},
    {"optimizer.in_backward": "yes", "learning_rate": 3.0},
)
LANGUAGE: tuple[dict[str, Value], ...] = (
    {},
    {"loss_chunks": 4, "accumulation": 2, "checkpointing": "selective", "optimizer": "lion"},
    {"precision": "bf16", "prune.ffn": 0.5, "prune.heads": 0.5, "recompute.norms": "yes"},
    {"lora.rank": 4, "lora.targets": "ffn", "checkpointing": "every_other"},
    {"gradients": "bf16", "attention": "eager", "optimizer.in_backward": "yes"},
)


@pytest.mark.parametrize("config", CLASSIFIERS, ids=str)
def test_classifier_comes_out_again(
    config: dict[str, Value], classifier: Workbench, tmp_path: Path
) -> None:
    check(classifier, config, tmp_path / "out")


@pytest.mark.parametrize("config", LANGUAGE, ids=str)
def test_language_model_comes_out_again(
    config: dict[str, Value], language: Workbench, tmp_path: Path
) -> None:
    check(language, config, tmp_path / "out")


def test_the_objectives_own_model_comes_out_again(tmp_path: Path) -> None:
    bench = Workbench.of("causal_lm", tmp_path, own=True, global_batch=4, sequence_length=32)
    subject, losses = bench.trial({"precision": "bf16", "optimizer": "sgd"})
    export_script(subject).write(tmp_path / "out")
    printed, again = run_script(tmp_path / "out")
    assert again == pytest.approx(losses, abs=1e-4)
    assert printed["peak_bytes"] == pytest.approx(
        subject.record.outcome.measurement.peak_bytes,  # type: ignore[union-attr] # completed
        rel=0.01,
    )


def test_no_line_of_it_needs_autotune(classifier: Workbench, tmp_path: Path) -> None:
    subject, losses = classifier.trial({"lora.rank": 4})
    export_script(subject).write(tmp_path / "out")
    program = (
        "import runpy, sys; sys.modules['autotune'] = None; sys.path.insert(0, '.'); "
        "sys.argv = ['train.py', 'kept']; runpy.run_path('train.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "out", text=True, capture_output=True,
        check=True, timeout=120,
    )  # fmt: skip
    *steps, last = done.stdout.splitlines()
    assert [float(step.split()[-1]) for step in steps] == pytest.approx(losses, abs=1e-4)
    assert json.loads(last)["peak_bytes"] > 0
    kept = tmp_path / "out" / "kept"
    model = AutoModelForSequenceClassification.from_pretrained(kept)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert AutoTokenizer.from_pretrained(kept)("sea")["input_ids"]


def test_data_of_the_user_is_read_where_it_is_and_other_data_goes_beside(
    classifier: Workbench, language: Workbench, tmp_path: Path
) -> None:
    own, _ = classifier.trial({})
    export_script(own).write(tmp_path / "own")
    assert f'Path("{own.workload.data}")'.replace('"', "'") in (
        tmp_path / "own" / "train.py"
    ).read_text().replace('"', "'")
    assert not list((tmp_path / "own").glob("*.jsonl"))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(Path(str(own.workload.data)).read_bytes())
    bench = Workbench.of("text_classification", tmp_path)
    workload = bench.facts.workload
    assert workload.data is not None
    moved = replace(workload, data=str(folder))
    facts = load_objective("text_classification")(moved, tmp_path / "cache").describe()
    subject, losses = Workbench(facts=facts, cache=tmp_path / "cache").trial({})
    export_script(subject).write(tmp_path / "beside")
    assert {path.name for path in (tmp_path / "beside").glob("*.jsonl")} == {
        "train.jsonl",
        "validation.jsonl",
    }
    _, again = run_script(tmp_path / "beside")
    assert again == pytest.approx(losses, abs=1e-4)


def test_what_is_saved_is_a_language_model(language: Workbench, tmp_path: Path) -> None:
    subject, _ = language.trial({"prune.heads": 0.5, "prune.layers": 0.5})
    export_script(subject).write(tmp_path / "out")
    run_script(tmp_path / "out", str(tmp_path / "kept"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "kept")
    assert model.config.num_hidden_layers == 1


def found(objective: str) -> SimpleNamespace:
    classes = ("sea", "field") if objective == "text_classification" else ()
    return SimpleNamespace(
        weights="owner/model", trust=False, pad=0, classes=classes, text="text", label="label",
        data="/data/rows.csv", held_share=0.15, tokenizer=SimpleNamespace(eos_token_id=2),
        config=SimpleNamespace(head_dim=None, intermediate_size=128),
    )  # fmt: skip


def expressible(space: str, objective: str, family: str, device: Device) -> list[Subject]:
    """Every value of a space that a script can express, and some configurations of it."""
    domains, chance = load_space(space, BUILTIN).domains, random.Random(0)
    values = [{name: value} for name, domain in domains.items() for value in domain.grid()]
    drawn = [{n: chance.choice(d.grid()) for n, d in domains.items()} for _ in range(40)]
    subjects = [
        subject_of(config, objective=objective, family=family, device=device)
        for config in [{}, *values, *drawn]
    ]
    return [
        subject_of(kept, objective=objective, family=family, device=device)
        for subject in subjects
        if (kept := {n: v for n, v in subject.changed.items() if not EXPRESSED[n](v, subject)})
        or not subject.changed
    ]


KINDS = (("causal_lm", "llama"), ("text_classification", "bert"))
DEVICES = (Device(kind="cpu", name="CPU"), CARD)
MOST: dict[str, Value] = {
    "precision": "bf16", "prune.ffn": 0.5, "prune.heads": 0.5, "prune.layers": 0.5,
    "lora.rank": 8, "lora.targets": "ffn", "checkpointing": "selective", "accumulation": 4,
    "optimizer": "adafactor", "optimizer.in_backward": "no", "recompute.norms": "yes",
}  # fmt: skip


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.kind)
@pytest.mark.parametrize(("objective", "family"), KINDS)
@pytest.mark.parametrize("space", ["default", "lossless", "qlora", "smoke"])
def test_scripts_are_short_python(space: str, objective: str, family: str, device: Device) -> None:
    subjects = expressible(space, objective, family, device)
    assert len(subjects) > 5
    for subject in subjects:
        for name, text in compose(subject, found(objective)).items():
            ast.parse(text)
            lines = text.splitlines()
            assert name != "train.py" or len(lines) <= MOST_LINES, (subject.title, len(lines))
            assert max(map(len, lines)) <= 100, (name, max(lines, key=len))
            assert "import autotune" not in text


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.kind)
@pytest.mark.parametrize(("objective", "family"), KINDS)
def test_a_script_with_most_settings_defines_what_it_uses(
    objective: str, family: str, device: Device, tmp_path: Path
) -> None:
    subject = subject_of(MOST, objective=objective, family=family, device=device)
    for name, text in compose(subject, found(objective)).items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "F,E", "--ignore", "E402",
         "--line-length", "100", "--isolated", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_every_knob_is_expressed_or_has_a_sentence() -> None:
    assert set(EXPRESSED) == {knob.name for knob in BUILTIN}
    for knob in BUILTIN:
        for value in knob.domain.grid():
            subject = subject_of({knob.name: value})
            reason = EXPRESSED[knob.name](value, subject) if subject.changed else ""
            assert not reason or len(reason.split()) > 5


def test_all_that_cannot_be_expressed_is_named_at_once() -> None:
    subject = subject_of({"weight_bits": 4, "lora.rank": 8, "optimizer.bits": 8})
    with pytest.raises(CannotExport, match="2 settings of tiny/3") as caught:
        export_script(subject)
    assert [line.split(":")[0] for line in caught.value.context] == [
        "weight_bits 4",
        "optimizer.bits 8",
    ]
    assert "autotune export tiny/3 --to json" in str(caught.value.help)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"objective": "seq2seq"}, "the objective seq2seq"),
        ({"family": "lstm", "objective": "text_classification"}, "recurrent"),
        ({"family": "gemma2"}, "change their logits"),
        ({"purpose": "inference"}, "memory of a trained model"),
    ],
)
def test_what_no_script_can_do_is_said(change: dict[str, str], match: str) -> None:
    with pytest.raises(CannotExport, match=match):
        export_script(subject_of({}, **change))  # type: ignore[arg-type] # by name


def test_nothing_is_overwritten(classifier: Workbench, tmp_path: Path) -> None:
    subject, _ = classifier.trial({})
    export = export_script(subject)
    export.write(tmp_path / "out")
    with pytest.raises(StorageError, match="ever overwritten"):
        export.write(tmp_path / "out")
