"""The JSON schema of space files, generated from the knobs: editors complete and check by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autotune.core.domains import Choice, Int
from autotune.core.knob import Knob
from autotune.core.space import TRAINING

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def space_schema(knobs: Sequence[Knob]) -> Mapping[str, Any]:
    """Return a schema that accepts what `core.space.file` accepts, but for the rules' grammar."""
    return {
        "$schema": _DIALECT,
        "title": "autotune search space",
        "type": "object",
        "required": ["knobs"],
        "additionalProperties": False,
        "properties": {
            "summary": {"type": "string", "description": "One line for listings."},
            "knobs": {
                "type": "object",
                "description": "Knobs with the values that a search may try.",
                "minProperties": 1,
                "additionalProperties": False,
                "properties": {knob.name: _knob(knob) for knob in knobs},
            },
            "rules": {
                "type": "array",
                "description": "Conditions that every configuration must meet.",
                "items": {"type": "string", "examples": ['lora.rank == 0 or optimizer != "sgd"']},
            },
            "training": {
                "type": "object",
                "description": "Workload settings that this space suggests.",
                "additionalProperties": False,
                "properties": {name: {"type": "integer", "minimum": 1} for name in TRAINING},
            },
        },
    }


def _knob(knob: Knob) -> dict[str, Any]:
    value = _value(knob)
    forms: list[dict[str, Any]] = [
        value,
        {"type": "array", "items": value, "minItems": 1, "uniqueItems": True},
    ]
    if "type" in value or all(not isinstance(v, str) for v in value["enum"]):
        bound = {"type": "number"}
        properties = {"min": bound, "max": bound, "log": {"type": "boolean"}}
        forms.append(
            {
                "type": "object",
                "required": ["min", "max"],
                "additionalProperties": False,
                "properties": properties,
            }
        )
    return {"description": knob.help, "default": knob.neutral, "anyOf": forms}


def _value(knob: Knob) -> dict[str, Any]:
    domain = knob.domain
    if isinstance(domain, Choice):
        return {"enum": list(domain.values)}
    kind = "integer" if isinstance(domain, Int) else "number"
    return {"type": kind, "minimum": domain.low, "maximum": domain.high}
