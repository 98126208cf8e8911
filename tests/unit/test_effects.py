"""Effects of knobs: only pairs that differ in one knob count, and they are averaged."""

from __future__ import annotations

import pytest

from autotune.core.config import Config
from autotune.core.units import GIB
from autotune.report.effects import knob_effects
from tests.knobs import KNOBS, LOSS, completed, out_of_memory


def config(**values: object) -> Config:
    return Config({name.replace("_dot_", "."): value for name, value in values.items()}, KNOBS)


def test_pairs_are_averaged_from_neutral_outwards() -> None:
    records = [
        completed(0, config(), loss=1.0, peak=8 * GIB),
        completed(1, config(share=0.5), loss=1.2, peak=6 * GIB),
        completed(2, config(checkpointing="full"), loss=1.0, peak=4 * GIB),
        completed(3, config(checkpointing="full", share=0.5), loss=1.4, peak=3 * GIB),
    ]
    checkpointing, share = knob_effects(records, LOSS, KNOBS)
    assert (checkpointing.knob, checkpointing.before, checkpointing.after) == (
        "checkpointing",
        "none",
        "full",
    )
    assert checkpointing.exact
    assert checkpointing.peak_bytes == -3.5 * GIB
    assert (share.knob, share.before, share.after, share.pairs) == ("share", 0.0, 0.5, 2)
    assert share.peak_bytes == -1.5 * GIB
    assert share.score == pytest.approx(0.3)
    assert not share.exact
    assert share.speed is None


def test_order_of_trials_does_not_matter() -> None:
    records = [
        completed(0, config(weight_bits=4, lora_dot_rank=8), peak=2 * GIB),
        completed(1, config(weight_bits=8, lora_dot_rank=8), peak=3 * GIB),
        completed(2, config(weight_bits=8, lora_dot_rank=8, chunks=9), peak=1 * GIB),
    ]
    effects = knob_effects(records, LOSS, KNOBS)
    assert effects == knob_effects(records[::-1], LOSS, KNOBS)
    assert [(e.knob, e.before, e.after) for e in effects] == [
        ("chunks", 1, 9),
        ("weight_bits", 8, 4),
    ]


def test_two_knobs_at_once_and_failures_tell_nothing() -> None:
    records = [
        completed(0, config()),
        completed(1, config(share=0.5, checkpointing="full")),
        out_of_memory(2, config(share=0.5)),
        completed(3, config(checkpointing="full"), loss=float("inf")),
    ]
    assert knob_effects(records, LOSS, KNOBS) == []
