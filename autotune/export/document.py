"""`--to json`: the configuration, and everything that its run depends on."""

from __future__ import annotations

import json
from typing import Any

from autotune.export.base import Export, Exporter, Subject
from autotune.export.numbers import Numbers
from autotune.knobs import BUILTIN

SCHEMA = 1


def export_document(subject: Subject) -> Export:
    """Return a trial as one JSON object."""
    return Export(files={"trial.json": f"{json.dumps(document(subject), indent=2)}\n"})


def document(subject: Subject) -> dict[str, Any]:
    """Return what a trial was, what it depends on, and what came of it."""
    record, spec, numbers = subject.record, subject.spec, Numbers.of(subject)
    return {
        "schema": SCHEMA,
        "trial": subject.name,
        "differs": subject.title,
        "config": record.config.to_json(),
        "values": record.config.complete(BUILTIN),
        "training": {
            "global_batch": numbers.batch,
            "micro_batches": numbers.accumulation,
            "steps": numbers.steps,
            "warmup_steps": numbers.warmup,
            "sequence_length": numbers.length,
            "learning_rate": numbers.rate,
            "weight_decay": numbers.decay,
            "seed": numbers.seed,
        },
        "limit_bytes": record.limit_bytes,
        "fingerprint": record.config.fingerprint,
        "outcome": record.outcome.to_json() if record.outcome else None,
        "run": {**spec.to_json(), "fingerprint": spec.fingerprint},
    }


EXPORTER = Exporter(
    name="json",
    help="the configuration and everything that its run depends on",
    make=export_document,
)
