"""`--to accelerate`: a configuration file for `accelerate launch`.

It says where and in what precision a script runs; the training itself is the script's business.
Written to `accelerate.commands.config.config_args.ClusterConfig` of accelerate 1.15.
"""

from __future__ import annotations

from typing import Any

from autotune.core.domains import Value
from autotune.export.base import Export, Exporter, Refusal, Subject, always, check, fine, only
from autotune.export.settings import comment, yaml_text

TARGET = "accelerate"


def _accumulation(value: Value, subject: Subject) -> str:
    return f"write it in the script: Accelerator(gradient_accumulation_steps={value})"


def _in_script(what: str) -> Refusal:
    return always(f"{what} is the script's business; --to hf writes one with it")


EXPRESSED: dict[str, Refusal] = {
    "accumulation": _accumulation,
    "attention": _in_script("the attention kernel"),
    "checkpointing": _in_script("recomputing blocks"),
    "compile": only(
        ("inductor",), "other backends compile parts that autotune chooses; set compile to none"
    ),
    "global_batch": _in_script("the batch"),
    "layout.ranks": fine,
    "layout.data": only(
        ("zero2", "zero3"), "its ZeRO is FSDP; set layout.data to ddp, zero2 or zero3"
    ),
    "learning_rate": _in_script("the learning rate"),
    "lora.rank": _in_script("putting on adapters"),
    "optimizer": _in_script("the optimizer"),
    "precision": only(
        ("bf16_mixed", "fp16_mixed"),
        "it changes the dtype of products only, not that of weights; set precision to bf16_mixed",
    ),
    "sequence_length": _in_script("the sequence length"),
}
"""What stands against a value; a knob that is not here has no setting there."""

_MIXED = {"bf16_mixed": "bf16", "fp16_mixed": "fp16"}


def export_accelerate(subject: Subject) -> Export:
    """Return the configuration file of a trial.

    Raises:
        CannotExport: If it has settings that the file does not.
    """
    check(subject, TARGET, EXPRESSED)
    values: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": "NO",
        "downcast_bf16": "no",
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": _MIXED.get(str(subject.value("precision")), "no"),
        "num_machines": 1,
        "num_processes": 1,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": not subject.on_cuda,
    }
    ranks, data = int(subject.number("layout.ranks")), str(subject.value("layout.data"))
    if ranks > 1:
        plain = "MULTI_GPU" if subject.on_cuda else "MULTI_CPU"
        values["distributed_type"] = plain if data == "ddp" else "FSDP"
        values["num_processes"] = ranks
    if ranks > 1 and data != "ddp":
        values["fsdp_config"] = {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_reshard_after_forward": data == "zero3",
            "fsdp_state_dict_type": "FULL_STATE_DICT",
        }
    if subject.value("compile") == "inductor":
        values["dynamo_config"] = {"dynamo_backend": "INDUCTOR"}
    use = "accelerate launch --config_file accelerate.yaml train.py (accelerate 1.15)"
    return Export(files={"accelerate.yaml": comment(subject, (), use) + yaml_text(values)})


EXPORTER = Exporter(
    name="accelerate",
    help="a configuration file for accelerate launch (1.15)",
    make=export_accelerate,
)
