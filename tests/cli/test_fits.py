"""How much of a space fits a budget, and what a probe measures, as they look in a pipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

import autotune.cli.estimate
import autotune.survey
from autotune.core.outcome import (
    Completed,
    Crashed,
    Measurement,
    Outcome,
    OutOfMemory,
    Peak,
    PeakKind,
    Phase,
)
from autotune.core.units import GIB
from autotune.memory.rehearsal import CannotRehearse, Rehearsal
from autotune.trial.spec import TrialSpec
from tests.cli.conftest import Command
from tests.cli.test_estimate import LLAMA, SHAPE, Canned, folder

SPACE = """\
summary: two knobs
knobs:
  precision: [fp32, bf16]
  accumulation: [1, 2, 4, 8]
training:
  global_batch: 8
  sequence_length: 32
"""


class Halved(Canned):
    """Needs 3 GiB, less for more micro-batches; fp32 in eight pieces cannot be rehearsed."""

    def rehearse(self, spec: TrialSpec, *, record: bool = False) -> Rehearsal:  # type: ignore[override]  # the spec is looked at
        pieces = int(spec.config.get("accumulation", 1))
        if pieces == 8 and "precision" not in spec.config:
            raise CannotRehearse("an operator cannot be followed without values")
        size = 3 * GIB // pieces
        return Rehearsal(
            peak_bytes=size, phase="steady", within="backward", operator="aten.mm.default",
            anatomy={"weights": size}, peaks={"steady": size}, parameters=10**6,
            trained_parameters=10**6,
        )  # fmt: skip


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune.cli.estimate, "RehearsalWorker", Halved)
    monkeypatch.setattr(autotune.survey.time, "monotonic", lambda: 0.0)


def space() -> str:
    Path("two.yaml").write_text(SPACE)
    return "two.yaml"


def test_screen(canned: None, autotune_says: Command, snapshot: SnapshotAssertion) -> None:
    model = ("--model", folder("small", LLAMA), "--device", "T4")
    said = autotune_says("spaces", "show", space(), "--budget", "2GB", *model, "--quiet")
    assert (said.status, said.err) == (0, "")
    assert said.out == snapshot


def test_document(canned: None, autotune_says: Command, snapshot: SnapshotAssertion) -> None:
    model = ("--model", folder("small", LLAMA), "--batch", "16")
    said = autotune_says("spaces", "show", space(), "--budget", "2GB", *model, "--json")
    assert said.status == 0, said.err
    fits = said.document["fits"]
    assert fits == snapshot
    assert (fits["rehearsed"], fits["unknown"], fits["complete"]) == (7, 1, True)
    assert fits["global_batch"] == 16
    assert said.document["space"]["legal"] == 8


def test_a_sample_says_that_it_is_one(
    canned: None, autotune_says: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune.survey, "MOST_REHEARSED", 3)
    model = ("--model", folder("small", LLAMA))
    said = autotune_says("spaces", "show", space(), "--budget", "2GB", *model)
    assert "Of 3 legal configurations drawn at random" in " ".join(said.out.split())
    assert "at 95% confidence" in " ".join(said.out.split())


def test_without_a_budget_nothing_is_counted(autotune_says: Command) -> None:
    said = autotune_says("spaces", "show", space(), "--json")
    assert "fits" not in said.document
    said = autotune_says("spaces", "show", space(), "--model", "small")
    assert said.status == 2
    assert "add --budget 16GB" in said.err


class Probed:
    """Ends every probe as it was told to."""

    outcome: Outcome = Completed(
        measurement=Measurement(
            peaks=(
                Peak(phase=Phase.STEADY, kind=PeakKind.ALLOCATED, bytes=3 * GIB),
                Peak(phase=Phase.LOAD, kind=PeakKind.RESIDENT, bytes=4 * GIB),
            ),
            anatomy={"weights": 2 * GIB, "activations": GIB},
            parameters=10**9,
            trained_parameters=10**9,
        )
    )

    def __enter__(self) -> Probed:
        return self

    def __exit__(self, *_: object) -> None: ...

    def probe(self, spec: TrialSpec) -> Outcome:
        return self.outcome


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune.cli.estimate, "LocalProber", Probed)
    monkeypatch.setattr(autotune.cli.estimate, "RehearsalWorker", Canned)


def test_a_probe_is_shown_as_measured(
    probed: None, autotune_says: Command, snapshot: SnapshotAssertion
) -> None:
    said = autotune_says("estimate", "--probe", *SHAPE, "--budget", "4GB", "--quiet")
    assert said.status == 3, said.err
    assert said.out == snapshot
    document = autotune_says("estimate", "--probe", *SHAPE, "--json").document
    assert document["measured"]
    assert document["predicted_gib"]["low"] == document["predicted_gib"]["high"] == 4.0


@pytest.mark.parametrize(
    ("outcome", "status", "said"),
    [
        (OutOfMemory(needed_bytes=40 * GIB), 3, "needs more than cpu has free: at least 40.00 GiB"),
        (Crashed(signal="SIGSEGV"), 1, "the probe of baseline crashed: SIGSEGV"),
    ],
)
def test_a_probe_that_fails_says_how(
    outcome: Outcome, status: int, said: str, probed: None, autotune_says: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Probed, "outcome", outcome)
    found = autotune_says("estimate", "--probe", *SHAPE)
    assert found.status == status
    assert said in found.err


def test_a_probe_needs_the_device(autotune_says: Command) -> None:
    said = autotune_says("estimate", "--probe", "--device", "A100-80GB")
    assert said.status == 2
    assert "has no A100-80GB" in said.err


@pytest.mark.training
def test_a_probe_measures_what_is_estimated(autotune_says: Command) -> None:
    measured = autotune_says("estimate", "--probe", "--json", *SHAPE)
    assert measured.status == 0, measured.err
    counted = autotune_says("estimate", "--json", *SHAPE)
    assert counted.status == 0, counted.err
    found, expected = (said.document["parts_gib"] for said in (measured, counted))
    assert found["weights"] == pytest.approx(expected["weights"], rel=0.001)
    outside = found.pop("outside"), expected.pop("outside")
    assert sum(found.values()) == pytest.approx(sum(expected.values()), rel=0.02), outside
