"""What the exporters of settings files share: comments, YAML, and how Trainer spells optimizers."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from autotune.core.domains import Value
from autotune.core.errors import CannotExport
from autotune.export.base import Refusal, Subject, always, only
from autotune.export.script_knobs import target_paths

OPTIMIZERS = {
    ("adamw", 32): "adamw_torch_fused",
    ("adamw", 8): "adamw_bnb_8bit",
    ("sgd", 32): "sgd",
    ("lion", 32): "lion_32bit",
    ("lion", 8): "lion_8bit",
}
"""Names of `transformers.TrainingArguments.optim`, by family and bits of its states."""

BITS_NOTE = (
    "Weights of {bits} bits are those of bitsandbytes, which rounds them otherwise than the search "
    "did: score and memory will be near, not equal."
)
STATES_NOTE = (
    "Optimizer states of 8 bits are those of bitsandbytes, which keeps small tensors in 32."
)
LION_NOTE = "Lion is that of bitsandbytes, which needs a CUDA device."
STREAM_NOTE = (
    "The search cut all texts into blocks of one stream; here whole texts are packed, so the order "
    "of the data is another one."
)


def lora_targets(value: Value, subject: Subject) -> str:
    """Say that the layers of a family are not known; empty if they are."""
    return "" if target_paths(subject) else f"the {value} layers of this family are not known"


def optimizer(value: Value, subject: Subject) -> str:
    """Say why Trainer has no such optimizer, and what to do instead; empty if it has."""
    if value == "adafactor":
        return (
            "rates of its Adafactor are absolute, and that of the search is relative to each "
            "weight; set optimizer to adamw or lion"
        )
    if (str(value), 32) not in OPTIMIZERS:
        return f"{value} is another one there; set optimizer to adamw or lion"
    return ""


def optimizer_bits(value: Value, subject: Subject) -> str:
    """Say why Trainer has no states of so few bits, and what to do instead; empty if it has."""
    if (str(subject.value("optimizer")), value) in OPTIMIZERS:
        return ""
    return "its optimizers have states of 32 or 8 bits; set optimizer.bits to one of them"


def optimizer_name(subject: Subject) -> str:
    """Return how Trainer calls the optimizer of a trial."""
    key = (str(subject.value("optimizer")), int(subject.number("optimizer.bits")))
    return OPTIMIZERS[key]


WEIGHT_BITS: Mapping[str, Refusal] = {
    "weight_bits": only((8, 4), "bitsandbytes packs into 8 or 4 bits; set weight_bits to one"),
    "weight_bits.format": only(
        ("nf4",), "bitsandbytes has nf4 and its own 8 bits; set weight_bits.format to integer"
    ),
    "weight_bits.group": always("bitsandbytes chooses its groups; set weight_bits.group to 64"),
}
"""What stands against frozen weights in few bits where bitsandbytes packs them."""


def notes_of(subject: Subject) -> tuple[str, ...]:
    """Return what is not quite the same where Trainer and bitsandbytes do the work."""
    found = [STREAM_NOTE]
    bits = int(subject.number("weight_bits"))
    if bits != 16:
        found.append(BITS_NOTE.format(bits=bits))
    if subject.value("optimizer.bits") == 8:
        found.append(STATES_NOTE)
    elif subject.value("optimizer") == "lion":
        found.append(LION_NOTE)
    return tuple(found)


def require_own(subject: Subject, target: str) -> tuple[str, str]:
    """Return the model and the data that the user named.

    Raises:
        CannotExport: If the trial trained an objective's own model, or on its own data.
    """
    workload = subject.workload
    if workload.model is not None and workload.data is not None:
        return workload.model, workload.data
    what = "model" if workload.model is None else "data"
    raise CannotExport(
        f"{target} needs a {what} of yours to train, and {subject.name} used the objective's own",
        help=f"search with --{what} first, or: autotune export "
        f"{subject.name}{subject.options} --to hf",
    )


def comment(subject: Subject, notes: Sequence[str], usage: str) -> str:
    """Return comment lines: what it is, what was recorded, how it is used, what differs."""
    lines = [
        f"Settings of {subject.name}: {subject.title}.",
        *([f"Recorded: {subject.recorded}."] if subject.recorded else []),
        f"Use: {usage}",
        *notes,
    ]
    wrapped = [piece for line in lines for piece in textwrap.wrap(line, 96, subsequent_indent="  ")]
    return "".join(f"# {line}\n" for line in wrapped)


def yaml_text(values: Mapping[str, Any]) -> str:
    """Return a mapping as YAML 1.1, which PyYAML reads, and with it every tool.

    A bare `no` of YAML 1.2 is false there, and `1e-05` a word.
    """
    from ruamel.yaml import YAML

    stream = io.StringIO()
    yaml = YAML()
    yaml.version = (1, 1)
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(dict(values), stream)
    return stream.getvalue().removeprefix("%YAML 1.1\n---\n")
