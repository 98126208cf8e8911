"""`--to torchtitan`: a configuration module for `torchtitan.train --module … --config trial`.

Written to torchtitan 0.3, whose configurations are Python functions (releases before it read TOML).
torchtitan brings its own models and data, so the module takes one of its recipes and changes what
the trial decided.
"""

from __future__ import annotations

from autotune.core.domains import Value
from autotune.export.base import (
    Export,
    Exporter,
    Refusal,
    Subject,
    always,
    check,
    fine,
    only,
    refuse_objective,
)
from autotune.export.numbers import Numbers
from autotune.export.settings import STREAM_NOTE, comment

TARGET = "torchtitan"
RECIPES = {
    "llama": ("llama3", "llama3_debugmodel"),
    "qwen3": ("qwen3", "qwen3_debugmodel"),
}
"""Module and recipe to start from, by family."""


def _optimizer(value: Value, subject: Subject) -> str:
    return "" if value == "adamw" else "its recipes train with AdamW; set optimizer to adamw"


EXPRESSED: dict[str, Refusal] = {
    "accumulation": fine,
    "checkpointing": only(
        ("full", "selective"), "it checkpoints all blocks; set checkpointing to full"
    ),
    "compile": only(
        ("inductor",), "other backends compile parts that autotune chooses; set compile to none"
    ),
    "global_batch": fine,
    "layout.ranks": fine,
    "layout.data": only(
        ("zero2", "zero3"), "it has DDP and FSDP; set layout.data to ddp, zero2 or zero3"
    ),
    "layout.shards": fine,
    "layout.tensor": fine,
    "layout.pipeline": fine,
    "layout.schedule": fine,
    "layout.context": fine,
    "learning_rate": fine,
    "loss_chunks": always(
        "its recipes choose the loss: set ChunkedLossWrapper in the recipe by hand"
    ),
    "optimizer": _optimizer,
    "optimizer.kernel": fine,
    "precision": only(
        ("bf16", "bf16_mixed"), "it has bf16 and its autocast; set precision to one of them"
    ),
    "sequence_length": fine,
}
"""What stands against a value; a knob that is not here has no setting there."""

_KERNELS = {"fused": "fused", "foreach": "foreach", "loop": "for-loop"}
_CHECKPOINTING = {"none": None, "full": "FullAC", "selective": "SelectiveAC"}


def export_torchtitan(subject: Subject) -> Export:
    """Return the configuration module of a trial.

    Raises:
        CannotExport: If it has settings, or a model, that torchtitan does not.
    """
    refuse_objective(subject, TARGET, ("causal_lm",))
    family = subject.spec.facts.model.family
    expressed = dict(EXPRESSED)
    check(subject, TARGET, expressed)
    numbers = Numbers.of(subject)
    module, recipe = RECIPES.get(family, RECIPES["llama"])
    chosen = _CHECKPOINTING[str(subject.value("checkpointing"))]
    mixed = "bfloat16" if subject.value("precision") == "bf16_mixed" else "float32"
    dtype = "bfloat16" if subject.value("precision") == "bf16" else "float32"
    notes = [
        f"It starts from the recipe {recipe}: put the one of your model in its place.",
        "torchtitan decays every weight; the search left out biases and norms.",
        STREAM_NOTE,
    ]
    if family not in RECIPES:
        notes.append(f"torchtitan may not have models of the family '{family}'.")
    if dtype == "bfloat16":
        notes.append(
            "bf16 weights have bf16 states there, and updates are not rounded by chance: small "
            "ones are lost."
        )
    lines = [
        "from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw",
        *([f"from torchtitan.distributed.activation_checkpoint import {chosen}"] if chosen else []),
        f"from torchtitan.models.{module}.config_registry import {recipe}",
        "",
        "",
        "def trial():",
        f"    config = {recipe}()",
        f"    config.training.local_batch_size = {numbers.micro}",
        f"    config.training.global_batch_size = {numbers.batch}",
        f"    config.training.seq_len = {numbers.length}",
        f"    config.training.steps = {numbers.steps}",
        "    config.training.max_norm = 1.0",
        f'    config.training.dtype = "{dtype}"',
        f'    config.training.mixed_precision_param = "{mixed if dtype == "float32" else dtype}"',
        f"    config.optimizer = default_adamw(lr={numbers.rate!r}, betas=(0.9, 0.999), "
        f"weight_decay={numbers.decay!r})",
        "    config.optimizer.implementation = "
        f'"{_KERNELS[str(subject.value("optimizer.kernel"))]}"',
        f"    config.lr_scheduler = LRSchedulersContainer.Config(warmup_steps={numbers.warmup})",
        f"    config.activation_checkpoint = {f'{chosen}.Config()' if chosen else None}",
        f"    config.compile.enable = {subject.value('compile') == 'inductor'}",
        f"    config.debug.seed = {numbers.seed}",
        "    return config",
    ]
    ranks = numbers.layout.ranks
    lines[-1:-1] = _parallelism(numbers) if ranks > 1 else []
    use = (
        f"torchrun --nproc-per-node {ranks} -m torchtitan.train --module titan_config "
        "--config trial"
    )
    return Export(
        files={"titan_config.py": comment(subject, notes, use) + "\n".join(lines) + "\n"},
        notes=tuple(notes),
    )


def _parallelism(numbers: Numbers) -> list[str]:
    """Return the lines for a layout; every rank along a dimension is said."""
    layout = numbers.layout
    divided = layout.data in ("zero2", "zero3")
    shards = (layout.shards or layout.replicas) if divided else 1
    rows = numbers.micro * (numbers.accumulation if layout.pipeline > 1 else 1)
    settings = {
        "data_parallel_replicate_degree": layout.replicas // shards,
        "data_parallel_shard_degree": shards,
        "fsdp_reshard_after_forward": '"always"' if layout.data == "zero3" else '"never"',
        "tensor_parallel_degree": layout.tensor,
        "pipeline_parallel_degree": layout.pipeline,
        "pipeline_parallel_schedule": '"1F1B"' if layout.schedule == "1f1b" else '"GPipe"',
        "pipeline_parallel_microbatch_size": numbers.micro,
        "context_parallel_degree": layout.context,
    }
    lines = [f"    config.parallelism.{name} = {value}" for name, value in settings.items()]
    # Micro-batches of a pipeline are parts of a local batch there, and no accumulation.
    return [f"    config.training.local_batch_size = {rows}", *lines]


EXPORTER = Exporter(
    name="torchtitan",
    help="a configuration module for torchtitan (0.3)",
    make=export_torchtitan,
)
