"""`--to axolotl`: a YAML file for `axolotl train`.

Written to the schema of axolotl 0.19 (`axolotl.utils.schemas.config.AxolotlInputConfig`).
"""

from __future__ import annotations

from typing import Any

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
from autotune.knobs.attention import SPELLED

TARGET = "axolotl"


EXPRESSED: dict[str, Refusal] = {
    "accumulation": fine,
    "activation_offload": fine,
    "attention": fine,
    "checkpointing": only(
        ("full", "selective"), "it checkpoints all blocks or none; set checkpointing to full"
    ),
    "data.pinned": fine,
    "global_batch": fine,
    "learning_rate": fine,
    "lora.rank": fine,
    "lora.targets": lora_targets,
    "lora.variant": fine,
    "loss_chunks": fine,
    "optimizer": optimizer,
    "optimizer.bits": optimizer_bits,
    "precision": fine,
    "sequence_length": fine,
    **WEIGHT_BITS,
}
"""What stands against a value; a knob that is not here has no setting there."""

_PRECISION: dict[str, dict[str, Any]] = {
    "fp32": {"bf16": False, "tf32": False},
    "tf32": {"bf16": False, "tf32": True},
    "bf16": {"bfloat16": True},
    "fp16": {"float16": True},
    "bf16_mixed": {"bf16": True},
    "fp16_mixed": {"fp16": True},
}


def export_axolotl(subject: Subject) -> Export:
    """Return the YAML file of a trial.

    Raises:
        CannotExport: If it has settings that axolotl does not.
    """
    refuse(subject, TARGET, ("causal_lm",))
    model, data = require_own(subject, TARGET)
    check(subject, TARGET, EXPRESSED)
    numbers, workload = Numbers.of(subject), subject.workload
    values: dict[str, Any] = {
        "base_model": model,
        **({"trust_remote_code": True} if workload.trust_remote_code else {}),
        "datasets": [{"path": data, "type": "completion", "field": workload.text_column or "text"}],
        "val_set_size": 0.1,
        "output_dir": f"./{subject.run}-{subject.record.number}",
        "sequence_len": numbers.length,
        "sample_packing": True,
        "pad_to_sequence_len": True,
        "micro_batch_size": numbers.micro,
        "gradient_accumulation_steps": numbers.accumulation,
        "max_steps": numbers.steps,
        "optimizer": optimizer_name(subject),
        "learning_rate": numbers.rate,
        "lr_scheduler": "linear",
        "warmup_steps": numbers.warmup,
        "weight_decay": numbers.decay,
        "max_grad_norm": 1.0,
        "seed": numbers.seed,
        **_PRECISION[str(subject.value("precision"))],
        **_memory(subject),
        **_adapters(subject),
    }
    notes = notes_of(subject)
    if subject.value("precision") in ("bf16_mixed", "fp16_mixed"):
        notes += ("axolotl loads the weights in 16 bits too; the search kept them in 32.",)
    opening = comment(subject, notes, "axolotl train axolotl.yaml (axolotl 0.19)")
    return Export(files={"axolotl.yaml": opening + yaml_text(values)}, notes=notes)


def _memory(subject: Subject) -> dict[str, Any]:
    attention = str(subject.value("attention"))
    found: dict[str, Any] = {"attn_implementation": SPELLED.get(attention, attention)}
    if (value := subject.value("checkpointing")) != "none":
        found["gradient_checkpointing"] = True
        found["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
        if value == "selective":
            found["selective_checkpointing"] = {"save": ["attention", "aten::mm", "aten::addmm"]}
    if (where := subject.value("activation_offload")) != "none":
        found["activation_offloading"] = "disk" if where == "disk" else True
    if (chunks := int(subject.number("loss_chunks"))) > 1:
        found["chunked_cross_entropy"] = True
        found["chunked_cross_entropy_num_chunks"] = chunks
    if subject.value("data.pinned") == "yes":
        found["dataloader_pin_memory"] = True
    return found


def _adapters(subject: Subject) -> dict[str, Any]:
    rank, bits = int(subject.number("lora.rank")), int(subject.number("weight_bits"))
    if not rank:
        return {}
    found: dict[str, Any] = {
        "adapter": "qlora" if bits == 4 else "lora",
        **({f"load_in_{bits}bit": True} if bits != 16 else {}),
        "lora_r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
    }
    if subject.value("lora.targets") == "all":
        found["lora_target_linear"] = True
    else:
        found["lora_target_modules"] = list(target_paths(subject))
    if subject.value("lora.variant") == "dora":
        found["peft_use_dora"] = True
    return found


EXPORTER = Exporter(
    name="axolotl", help="a YAML file for axolotl train (0.19)", make=export_axolotl
)
