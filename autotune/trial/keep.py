"""A trained model in a folder that plain transformers loads, with what belongs to it.

What a trial deploys is a dense model of transformers' own classes (the stages `DEPLOY` and `SAVE`),
so saving it is a call. Its tokenizer goes beside it, and so does what else stood in the folder that
the model came from and is needed to use it, such as the sizes that images are brought to.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from autotune.core.errors import ModelError
from autotune.core.registry import Registry
from autotune.trial.objective import Objective

COMPANIONS: Registry[object] = Registry(
    "companion", {"tokenizer": "autotune.objectives.exported:tokenizer_of"}
)
"""What objectives that ship with autotune know of the files that belong to their models."""

BESIDE = ("preprocessor_config.json", "processor_config.json", "chat_template.jinja")
"""Files of a model's folder that describe its inputs and stay as they are."""


def keep_model(model: nn.Module, objective: Objective, folder: Path) -> None:
    """Save a deployed model and its tokenizer.

    Args:
        model: As the stage `SAVE` left it.
        objective: Has the tokenizer, if there is one.
        folder: Is made; must not hold anything yet.

    Raises:
        ModelError: If it is no model of transformers.
    """
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"{type(model).__name__} is no model of transformers, so there is no folder that "
            "transformers could load",
            help="train a model of transformers, such as --model FOLDER",
        )
    configs: tuple[Any, ...] = (model.config, getattr(model, "generation_config", None))
    for config in configs:
        if hasattr(config, "use_cache"):
            config.use_cache = True  # training needs none, and generating is slow without
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    find = COMPANIONS.load("tokenizer")
    tokenizer = find(objective) if callable(find) else None
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    source = str(getattr(getattr(objective, "source", None), "folder", None) or "")
    for name in BESIDE if source else ():
        if (Path(source) / name).is_file():
            shutil.copy(Path(source) / name, folder / name)
