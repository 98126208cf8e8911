"""`autotune spaces show --budget`: how many configurations of a space fit?"""

from __future__ import annotations

from rich.console import RenderableType

from autotune.cli.estimate import estimating
from autotune.cli.options import Common
from autotune.core.budget import Budget
from autotune.core.config import Config
from autotune.core.context import Context, Device
from autotune.core.space import Space
from autotune.estimate import Asked
from autotune.report.spaces import FitsDocument, fits_document, fits_screen
from autotune.survey import survey


def asked_for(
    space: Space,
    *,
    objective: str | None,
    model: str | None,
    data: str | None,
    batch: int,
    sequence_length: int,
) -> Asked:
    """Return what is trained: what was typed, then what the space suggests.

    Args:
        space: May suggest sizes.
        objective: Its name.
        model: A folder or hub name.
        data: A file or folder.
        batch: Sequences per optimizer step; 0 if not typed.
        sequence_length: Tokens per sequence; 0 if not typed.
    """
    return Asked(
        objective=objective,
        model=model,
        data=data,
        global_batch=batch or space.training.get("global_batch", 0),
        sequence_length=sequence_length or space.training.get("sequence_length", 0),
        eval_examples=space.training.get("eval_examples", 0),
        purpose=space.purpose,
    )


def count_fitting(
    space: Space, asked: Asked, place: Device, budget: Budget, *, seconds: float, common: Common
) -> tuple[Context, FitsDocument, RenderableType]:
    """Rehearse configurations of a space and count those that fit.

    Args:
        space: The space.
        asked: What is trained.
        place: The device, here or not.
        budget: What they have to fit.
        seconds: Most time for it.
        common: Options of every command.

    Returns:
        What the space was judged against, and the result as a document and as a screen.

    Raises:
        AutotuneError: What is wrong with the model or the data.
    """
    limit = budget.limit_bytes
    with estimating(asked, place, common) as estimator:

        def need(config: Config) -> int:
            return estimator.predict(config, limit_bytes=limit).predicted_bytes

        found = survey(space, estimator.context, need, limit, seconds=seconds, say=common.say)
    shown = (found, budget, estimator.facts, place)
    return estimator.context, fits_document(*shown), fits_screen(*shown)
