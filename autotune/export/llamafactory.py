"""`--to llamafactory`: a YAML file for `llamafactory-cli train`, and its list of data sets.

Written to the arguments of LLaMA-Factory 0.9.5 (`llamafactory.hparams`) and of transformers'
`TrainingArguments`.
"""

from __future__ import annotations

import json
from typing import Any

from autotune.core.domains import Value
from autotune.export.base import Export, Exporter, Refusal, Subject, check, fine, only
from autotune.export.base import refuse_objective as refuse
from autotune.export.numbers import Numbers
from autotune.export.script_knobs import target_paths
from autotune.export.settings import (
    WEIGHT_BITS,
    comment,
    lora_targets,
    notes_of,
    optimizer,
    optimizer_bits,
    optimizer_name,
    require_own,
    yaml_text,
)

TARGET = "LLaMA-Factory"
DATASET = "searched"


def _precision(value: Value, subject: Subject) -> str:
    if value == "fp16":
        return "it keeps weights in fp32 or bf16; set precision to bf16 or fp16_mixed"
    return ""


EXPRESSED: dict[str, Refusal] = {
    "accumulation": fine,
    "attention": only(
        ("sdpa", "eager", "flash"), "it has no flex attention; set attention to sdpa or flash"
    ),
    "checkpointing": only(
        ("full",), "it checkpoints all blocks or none; set checkpointing to full or none"
    ),
    "data.pinned": fine,
    "global_batch": fine,
    "learning_rate": fine,
    "lora.rank": fine,
    "lora.targets": lora_targets,
    "lora.variant": fine,
    "optimizer": optimizer,
    "optimizer.bits": optimizer_bits,
    "precision": _precision,
    "sequence_length": fine,
    **WEIGHT_BITS,
}
"""What stands against a value; a knob that is not here has no setting there."""

_PRECISION: dict[str, dict[str, Any]] = {
    "fp32": {},
    "tf32": {"tf32": True},
    "bf16": {"pure_bf16": True},
    "bf16_mixed": {"bf16": True},
    "fp16_mixed": {"fp16": True},
}
_ATTENTION = {"sdpa": "sdpa", "eager": "disabled", "flash": "fa2"}


def export_llamafactory(subject: Subject) -> Export:
    """Return the files of a trial.

    Raises:
        CannotExport: If it has settings that LLaMA-Factory does not.
    """
    refuse(subject, TARGET, ("causal_lm",))
    model, data = require_own(subject, TARGET)
    check(subject, TARGET, EXPRESSED)
    numbers, workload = Numbers.of(subject), subject.workload
    values: dict[str, Any] = {
        "stage": "pt",
        "do_train": True,
        "model_name_or_path": model,
        **({"trust_remote_code": True} if workload.trust_remote_code else {}),
        "dataset_dir": ".",
        "dataset": DATASET,
        "cutoff_len": numbers.length,
        "packing": True,
        "val_size": 0.1,
        "output_dir": f"./{subject.run}-{subject.record.number}",
        "per_device_train_batch_size": numbers.micro,
        "gradient_accumulation_steps": numbers.accumulation,
        "max_steps": numbers.steps,
        "optim": optimizer_name(subject),
        "learning_rate": numbers.rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": numbers.warmup,
        "weight_decay": numbers.decay,
        "max_grad_norm": 1.0,
        "seed": numbers.seed,
        **_PRECISION[str(subject.value("precision"))],
        "disable_gradient_checkpointing": subject.value("checkpointing") == "none",
        "use_reentrant_gc": False,
        "flash_attn": _ATTENTION[str(subject.value("attention"))],
        **({"dataloader_pin_memory": True} if subject.value("data.pinned") == "yes" else {}),
        **_adapters(subject),
    }
    notes = notes_of(subject)
    listed = {DATASET: {"file_name": data, "columns": {"prompt": workload.text_column or "text"}}}
    use = "llamafactory-cli train train.yaml, in this folder (LLaMA-Factory 0.9.5)"
    return Export(
        files={
            "train.yaml": comment(subject, notes, use) + yaml_text(values),
            "dataset_info.json": f"{json.dumps(listed, indent=2)}\n",
        },
        notes=notes,
    )


def _adapters(subject: Subject) -> dict[str, Any]:
    rank, bits = int(subject.number("lora.rank")), int(subject.number("weight_bits"))
    if not rank:
        return {"finetuning_type": "full"}
    named = [path.rpartition(".")[2] for path in target_paths(subject)]
    every = subject.value("lora.targets") == "all"
    return {
        "finetuning_type": "lora",
        "lora_rank": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "lora_target": "all" if every else ",".join(named),
        **({"use_dora": True} if subject.value("lora.variant") == "dora" else {}),
        **({"quantization_bit": bits, "quantization_method": "bnb"} if bits != 16 else {}),
    }


EXPORTER = Exporter(
    name="llamafactory",
    help="files for llamafactory-cli train (LLaMA-Factory 0.9.5)",
    make=export_llamafactory,
)
