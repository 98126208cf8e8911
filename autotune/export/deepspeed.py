"""`--to deepspeed`: `ds_config.json`, for a script that calls `deepspeed.initialize`.

Written to the configuration of DeepSpeed 0.19 (`deepspeed.runtime.config`). JSON has no comments,
so what differs is in the notes alone.
"""

from __future__ import annotations

import json
from typing import Any

from autotune.core.domains import Value
from autotune.export.base import Export, Exporter, Refusal, Subject, always, check, fine, only
from autotune.export.numbers import Numbers

TARGET = "deepspeed"


def _in_script(what: str) -> Refusal:
    return always(f"{what} is the script's business; --to hf writes one with it")


def _optimizer(value: Value, subject: Subject) -> str:
    if value in ("adamw", "lion", "sgd", "adafactor"):
        return ""
    return f"its {value} is another one, if it has it; set optimizer to adamw or lion"


EXPRESSED: dict[str, Refusal] = {
    "accumulation": fine,
    "attention": _in_script("the attention kernel"),
    "checkpointing": _in_script("recomputing blocks"),
    "global_batch": fine,
    "layout.ranks": fine,
    "layout.data": only(
        ("zero1", "zero2", "zero3"), "it has no parameter server; set layout.data to zero3"
    ),
    "learning_rate": fine,
    "lora.rank": _in_script("putting on adapters"),
    "loss_chunks": _in_script("the loss"),
    "optimizer": _optimizer,
    "optimizer.offload": fine,
    "precision": only(
        ("bf16", "bf16_mixed", "fp16_mixed"),
        "it has bf16, or torch's autocast; set precision to bf16 or bf16_mixed",
    ),
    "sequence_length": _in_script("the sequence length"),
}
"""What stands against a value; a knob that is not here has no setting there."""

_TYPES = {"adamw": "AdamW", "lion": "Lion", "sgd": "SGD", "adafactor": "Adafactor"}
_STAGES = {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3}
_AUTOCAST = {"bf16_mixed": "bfloat16", "fp16_mixed": "float16"}


def export_deepspeed(subject: Subject) -> Export:
    """Return the configuration of a trial.

    Raises:
        CannotExport: If it has settings that DeepSpeed does not.
    """
    check(subject, TARGET, EXPRESSED)
    numbers, precision = Numbers.of(subject), str(subject.value("precision"))
    values: dict[str, Any] = {
        "train_batch_size": numbers.batch,
        "train_micro_batch_size_per_gpu": numbers.micro,
        "gradient_accumulation_steps": numbers.accumulation,
        "gradient_clipping": 1.0,
        "optimizer": {
            "type": _TYPES[str(subject.value("optimizer"))],
            "params": {"lr": numbers.rate, "weight_decay": numbers.decay},
        },
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "warmup_min_lr": 0.0,
                "warmup_max_lr": numbers.rate,
                "warmup_num_steps": numbers.warmup,
                "warmup_type": "linear",
                "total_num_steps": numbers.steps,
            },
        },
        "zero_optimization": {"stage": 0},
    }
    notes = ["DeepSpeed decays every weight; the search left out biases and norms."]
    if precision == "bf16":
        values["bf16"] = {"enabled": True}
        notes.append(
            "DeepSpeed keeps a copy of bf16 weights in fp32 beside them; the search rounded "
            "updates by chance in its place, so the memory of the weights is three times as much."
        )
    elif precision in _AUTOCAST:
        values["torch_autocast"] = {"enabled": True, "dtype": _AUTOCAST[precision]}
    if subject.value("optimizer.offload") != "none":
        values["zero_optimization"] = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    if numbers.layout.ranks > 1:
        values["zero_optimization"]["stage"] = _STAGES[numbers.layout.data]
        notes.append(f"Start it on {numbers.layout.ranks} ranks: deepspeed --num_gpus N train.py")
    return Export(files={"ds_config.json": f"{json.dumps(values, indent=2)}\n"}, notes=tuple(notes))


EXPORTER = Exporter(name="deepspeed", help="ds_config.json (DeepSpeed 0.19)", make=export_deepspeed)
