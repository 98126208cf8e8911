"""Structured pruning while training: units and blocks fall silent one by one, and are cut at last.

Which ones go, and in which order, is decided at the start (`doom_units`, `doom_blocks`) and kept
beside the model. After every optimizer step (`thin_out`), a growing part of them is silent: units
by weights that are zero, blocks by being passed by. At the end (`cut_doomed`) they are cut out,
which changes nothing, since a model whose units are cut equals the one where they are silent. Until
then the model is as large as it was, and so is the memory of training.

References:
    Zhu and Gupta 2017, arXiv:1710.01878 (the cubic schedule).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from autotune.core.errors import ModelError
from autotune.knobs.depth import drop_blocks, find_stacks, pass_by
from autotune.knobs.masks import masked_layers, pruned_by
from autotune.knobs.recurrence import RECURRENT_UNITS
from autotune.knobs.surgery import FEED_FORWARDS, HEADS
from autotune.knobs.units import Kept, Structure, silence

if TYPE_CHECKING:
    from torch import Tensor

STRUCTURES: dict[str, Structure] = {s.knob: s for s in (FEED_FORWARDS, HEADS, RECURRENT_UNITS)}
"""Every kind of units, by the knob that prunes it."""

_PLACE = "doomed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Doomed:
    """What of a model goes while it is trained.

    Attributes:
        kept: Units that stay, by knob and layer.
        gone: Units that go, the least important first, by knob and layer.
        blocks: Blocks that go, the least important first, by stack.
    """

    kept: dict[str, Kept] = field(default_factory=dict)
    gone: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    blocks: dict[str, list[int]] = field(default_factory=dict)


def doom_units(model: nn.Module, structure: Structure, kept: Kept, gone: dict[str, Tensor]) -> None:
    """Have units of one kind go while the model is trained."""
    doomed = _doomed_of(model)
    doomed.kept[structure.knob] = kept
    doomed.gone[structure.knob] = gone


def doom_blocks(model: nn.Module, gone: Mapping[str, Sequence[int]]) -> None:
    """Have blocks go while the model is trained."""
    for stack in find_stacks(model):
        for number in gone[stack.name]:
            pass_by(stack.blocks[number])
        _doomed_of(model).blocks[stack.name] = list(gone[stack.name])


def thin_out(model: nn.Module, done: float) -> None:
    """Silence as much as the schedule asks for by now: after an optimizer step.

    Args:
        model: After `doom_units` or `doom_blocks`, or with masks that grow.
        done: Share of the training that is done, from 0 to 1.

    Raises:
        ModelError: If nothing is doomed, or its layers were replaced since.
    """
    inner, doomed = _find(model)
    if doomed is None:
        if any(True for _ in masked_layers(model)):
            return  # masks grow by themselves (`masks.keep_zeros`)
        raise ModelError(
            f"nothing of {type(model).__name__} is pruned while it trains",
            help="set prune.schedule to start",
        )
    share = pruned_by(done)
    for knob, gone in doomed.gone.items():
        found = STRUCTURES[knob].find(inner)
        if {units.name for units in found} != gone.keys():
            raise ModelError(
                f"layers that {knob} prunes while training were replaced by another knob",
                help="set prune.schedule to start",
            )
        for units in found:
            going = gone[units.name]
            silence(inner, units, going[: round(share * len(going))])
    for stack in find_stacks(inner) if doomed.blocks else ():
        passed = doomed.blocks[stack.name]
        for number in passed[: round(share * len(passed))]:
            vars(stack.blocks[number])["passed_by"] = True


def cut_doomed(model: nn.Module) -> nn.Module:
    """Cut out everything that was to go."""
    inner, doomed = _find(model)
    if doomed is None:
        return model
    for knob, kept in doomed.kept.items():
        STRUCTURES[knob].cut(inner, kept)
    if doomed.blocks:
        drop_blocks(inner, doomed.blocks)
    del vars(inner)[_PLACE]
    return model


def _doomed_of(model: nn.Module) -> Doomed:
    found: Doomed = vars(model).setdefault(_PLACE, Doomed())
    return found


def _find(model: nn.Module) -> tuple[nn.Module, Doomed | None]:
    """Return the module that was pruned, which another one may hold by now, and what goes of it."""
    for module in model.modules():
        doomed = vars(module).get(_PLACE)
        if doomed is not None:
            return module, doomed
    return model, None
