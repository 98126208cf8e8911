"""The teacher that a user names for distillation: found and held against the model early.

What a teacher says of a batch can be compared with what the trained model says only if both read
the same tokens and answer with the same classes, or over the same vocabulary. That is checked when
a run is described, before anything trains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from autotune.core.errors import ModelError
from autotune.knobs.dense import cpu_has_bf16
from autotune.knobs.stages import LoadPlan

from .models import build_model, check_sequence_length
from .sources import ModelSource, find_model, loadable, quiet


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A model that is listened to and not trained.

    Attributes:
        source: Where it is.
        attention: Attention kernel that it has.
    """

    source: ModelSource
    attention: str = "sdpa"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Teacher:
        """Rebuild the teacher from the JSON object of `to_json`."""
        return cls(source=ModelSource(**data["source"]), attention=data["attention"])

    def check_length(self, length: int) -> None:
        """Hold a sequence length against its positions.

        Raises:
            ModelError: If it is longer.
        """
        check_sequence_length(length, self.source, self.source.config())

    def build(self, kind: Any) -> nn.Module:
        """Build it on the CPU, in evaluation mode, without gradients.

        Its weights keep the dtype that they are stored in, unless this machine computes only with
        fp32 ones at a bearable speed.

        Args:
            kind: A class such as `AutoModelForCausalLM`.

        Raises:
            ModelError: If transformers cannot build it.
        """
        config = self.source.config()
        stored = config.get_text_config().dtype or torch.float32
        narrow = torch.cuda.is_available() or cpu_has_bf16()
        dtype = str(stored).removeprefix("torch.") if narrow else "float32"
        plan = LoadPlan(dtype=dtype, attention=self.attention)
        model = build_model(kind, self.source, config, plan, seed=0)
        return model.eval().requires_grad_(False)


def find_teacher(name: str, kind: Any, *, trust: bool) -> Teacher:
    """Find a teacher by what the user typed, and see that it can be listened to.

    Args:
        name: A folder, or a name on the hub.
        kind: A class such as `AutoModelForCausalLM`.
        trust: Whether code that comes with it may run.

    Raises:
        ModelError: If it is not there, or has no weights or not all of them.
    """
    source = find_model(name, trust=trust)
    if not source.pretrained:
        raise ModelError(
            f"the teacher {source.name} has no weights, so there is nothing to learn from it",
            where=source.folder,
            help="name a trained model with --teacher",
        )
    config = source.config()
    with torch.device("meta"), quiet(), loadable(source):
        model = kind.from_config(config, attn_implementation="eager", trust_remote_code=trust)
    _check_head(model, source)
    fused = getattr(model, "_supports_sdpa", True)
    return Teacher(source=source, attention="sdpa" if fused else "eager")


def check_same_tokens(teacher: Teacher, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Hold the teacher's tokenizer against that of the model.

    Args:
        teacher: The teacher.
        tokenizer: Of the model; None if it reads bytes.

    Raises:
        ModelError: If they make different tokens of a text.
    """
    source = teacher.source
    if tokenizer is None:
        if source.has_tokenizer:
            raise ModelError(
                f"the model reads bytes, but the teacher {source.name} has a tokenizer",
                where=source.folder,
                help="name a teacher that reads bytes too, or give the model with --model",
            )
        return
    others = source.tokenizer()
    probe = "The same words, in both: 12.5 %"
    same = others.get_vocab() == tokenizer.get_vocab()
    if not same or others(probe)["input_ids"] != tokenizer(probe)["input_ids"]:
        raise ModelError(
            f"the teacher {source.name} has another tokenizer than the model, so that it would "
            "read other words",
            where=source.folder,
            help="name a teacher of the model's own family with --teacher",
        )


def check_same_vocabulary(teacher: Teacher, config: PreTrainedConfig) -> None:
    """Hold the width of the teacher's logits against that of the model's.

    Raises:
        ModelError: If they differ.
    """
    theirs = teacher.source.config().get_text_config().vocab_size
    ours = config.get_text_config().vocab_size
    if theirs != ours:
        raise ModelError(
            f"the teacher {teacher.source.name} has a vocabulary of {theirs} tokens and the model "
            f"one of {ours}",
            where=teacher.source.folder,
            help="name a teacher with the same vocabulary with --teacher",
        )


def check_same_classes(teacher: Teacher, classes: Sequence[str]) -> None:
    """Hold the teacher's classes against those of the data.

    Raises:
        ModelError: If they are others, or in another order.
    """
    names: Mapping[Any, str] = teacher.source.config().id2label or {}
    theirs = [str(name) for _, name in sorted(names.items())]
    if theirs != list(classes):
        raise ModelError(
            f"the teacher {teacher.source.name} tells apart {_some(theirs)}, but the data has "
            f"the classes {_some(classes)}",
            where=teacher.source.folder,
            help="name a teacher that was trained on the same classes with --teacher",
        )


def _check_head(model: Any, source: ModelSource) -> None:
    """See that weights of the task head are in the files: transformers would make new ones."""
    stored: set[str] = set()
    for path in Path(source.folder or "").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored.update(file.keys())
    if not stored or not model.base_model_prefix:
        return
    base = f"{model.base_model_prefix}."
    # A head that is tied to the embeddings goes by their name, which is one of the base.
    names = (name for name, _ in model.named_parameters())
    missing = [name for name in names if not name.startswith(base) and name not in stored]
    if missing:
        raise ModelError(
            f"the teacher {source.name} has no weights for {missing[0]}, so it was trained for "
            "something else",
            where=source.folder,
            help="name a model that was trained for this task with --teacher",
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:4])
    return f"{shown} …" if len(names) > 4 else shown
