"""How much each unit, and each block, of a model matters: what decides which of them are pruned.

| importance | of a unit | of a block |
|---|---|---|
| magnitude | norms of its weights | none: blocks are kept evenly spread |
| taylor | change of the loss if it went, to first order | the same, of what the block adds |
| activation | mean magnitude of its activation | how far it turns the hidden states |

The last two are measured on a few batches of the training data, without dropout, and added up in
fp32. The model is left as it was: no gradients, no graph, every module in the mode it was in.

References:
    Molchanov et al. 2019, arXiv:1906.10771 (first-order Taylor expansion);
    Michel et al. 2019, arXiv:1905.10650 (of heads); Men et al. 2024, arXiv:2403.03853 (blocks).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from autotune.core.errors import ModelError
from autotune.knobs.dense import restore_linears, widen_linears
from autotune.knobs.units import Structure, Units, magnitude

if TYPE_CHECKING:
    from torch import Tensor

    from autotune.knobs.stages import Adaptation


def unit_scores(state: Adaptation, structure: Structure, found: list[Units]) -> list[Tensor]:
    """Return the importance of each unit of each layer, as `state.importance` says.

    Args:
        state: The model, and the losses to measure it by.
        structure: The kind of units.
        found: What `structure.find` found.

    Returns:
        fp32 `(count,)` for each layer; equal for layers that must lose the same units.

    Raises:
        ModelError: If there is nothing to measure by, or the losses are not finite.
    """
    if state.importance == "magnitude":
        scores = [magnitude(state.model, units) for units in found]
    elif state.importance == "taylor":
        scores = _checked(taylor(state, found))
    else:
        scores = _checked((structure.activations or activations)(state, found))
    return _added_where_shared(found, scores)


def taylor(state: Adaptation, found: list[Units]) -> list[Tensor]:
    """Return how much the loss would change without each unit, to first order.

    Silencing a unit takes away the weights that read it, so the change is their product with their
    gradients, added up; its absolute value is taken for each batch.
    """
    model = state.model
    names = sorted({slices.tensor for units in found for slices in units.outgoing})
    weights = {name: model.get_parameter(name) for name in names}
    totals = [torch.zeros(units.count) for units in found]
    with at_rest(model), _with_gradients(weights.values()):
        for loss in measured(state):
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            changes = {
                name: torch.zeros_like(weight, dtype=torch.float32)
                if gradient is None
                else weight.detach().float() * gradient.float()
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
            for place, units in enumerate(found):
                parts = [s.of(changes[s.tensor], units.count).sum(1) for s in units.outgoing]
                totals[place] += torch.stack(parts).sum(0).abs()
    return totals


def activations(state: Adaptation, found: list[Units]) -> list[Tensor]:
    """Return the mean magnitude of what each unit gives to the layer that reads it."""
    sums: dict[str, Tensor] = {}

    def hear(name: str, layer: nn.Module) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            heard = args[0].detach().float().abs().flatten(0, -2).mean(0)
            sums[name] = sums[name] + heard if name in sums else heard

        return layer.register_forward_pre_hook(note)

    readers = {units.name: units.outgoing[0].tensor.rpartition(".")[0] for units in found}
    hooks = [hear(name, state.model.get_submodule(reader)) for name, reader in readers.items()]
    try:
        run_batches(state)
    finally:
        for hook in hooks:
            hook.remove()
    silent = [name for name in readers if name not in sums]
    if silent:
        raise ModelError(
            f"the objective's loss does not run {silent[0]}, so its activations cannot be measured",
            help="set prune.importance to magnitude",
        )
    scores = []
    for units in found:
        (reads,) = units.outgoing
        along = sums[units.name].narrow(0, reads.start, units.count * reads.size)
        scores.append(along.reshape(units.count, -1).mean(1))
    return scores


def block_scores(state: Adaptation, blocks: Sequence[nn.Module]) -> Tensor:
    """Return the importance of each block, as `state.importance` says, fp32 `(blocks,)`.

    Args:
        state: The model, and the losses to measure it by; not for `"magnitude"`.
        blocks: Each takes hidden states and gives others of the same shape.

    Raises:
        ModelError: If there is nothing to measure by, or the losses are not finite.
    """
    measure = _block_taylor if state.importance == "taylor" else _block_change
    (scores,) = _checked([measure(state, blocks)])
    return scores


def measured(state: Adaptation) -> Iterator[Tensor]:
    """Yield the losses to measure by.

    Raises:
        ModelError: If there are none.
    """
    count = 0
    for count, loss in enumerate(state.losses(state.model) if state.losses else (), 1):  # noqa: B007
        yield loss
    if count == 0:
        raise ModelError(
            f"prune.importance '{state.importance}' is measured on training data, and there is "
            "none here",
            help="set prune.importance to magnitude",
        )


def run_batches(state: Adaptation) -> None:
    """Run the batches to measure by, without a graph, so that hooks hear them."""
    with at_rest(state.model), torch.no_grad():
        for _ in measured(state):
            pass


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Have a model compute without chance, then leave every module in the mode it was in.

    The generators of random numbers are left as they were too, so the training that follows is the
    same whether anything was measured or not.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    widen_linears(model)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        restore_linears(model)
        for module, training in modes:
            module.training = training


def entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states among the arguments of a block."""
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def leaving(output: Any) -> Tensor:
    """Return the hidden states in what a block gives."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def with_states(output: Any, states: Tensor) -> Any:
    """Return what a block gives, with other hidden states in it."""
    return (states, *output[1:]) if isinstance(output, tuple) else states


def _block_taylor(state: Adaptation, blocks: Sequence[nn.Module]) -> Tensor:
    """Return the gradient of the loss in a factor on what each block adds, summed over batches."""
    factors = [torch.ones((), requires_grad=True) for _ in blocks]

    def scale(block: nn.Module, factor: Tensor) -> Any:
        def scaled(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            before = entering(args, kwargs)
            added = (leaving(output) - before).float() * factor.to(before.device)
            return with_states(output, before + added.to(before.dtype))

        return block.register_forward_hook(scaled, with_kwargs=True)

    total = torch.zeros(len(blocks))
    hooks = [scale(*pair) for pair in zip(blocks, factors, strict=True)]
    try:
        with at_rest(state.model):
            for loss in measured(state):
                gradients = torch.autograd.grad(loss, factors, materialize_grads=True)
                total += torch.stack(gradients).abs()
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _block_change(state: Adaptation, blocks: Sequence[nn.Module]) -> Tensor:
    """Return how far each block turns its hidden states, summed over batches."""
    total = torch.zeros(len(blocks))

    def hear(place: int, block: nn.Module) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before, after = entering(args, kwargs).float(), leaving(output).float()
            total[place] += (1.0 - functional.cosine_similarity(before, after, dim=-1)).mean().cpu()

        return block.register_forward_hook(note, with_kwargs=True)

    hooks = [hear(*pair) for pair in enumerate(blocks)]
    try:
        run_batches(state)
    finally:
        for hook in hooks:
            hook.remove()
    return total


@contextmanager
def _with_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let parameters have gradients, also those that are frozen."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _checked(scores: list[Tensor]) -> list[Tensor]:
    if all(bool(score.isfinite().all()) for score in scores):
        return scores
    raise ModelError(
        "the losses that importance is measured by are not finite",
        help="set prune.importance to magnitude",
    )


def _added_where_shared(found: list[Units], scores: list[Tensor]) -> list[Tensor]:
    """Add up the scores of layers that must lose the same units, each with the same weight."""
    total: dict[str, Tensor] = {}
    for units, score in zip(found, scores, strict=True):
        part = score / score.sum().clamp_min(torch.finfo(torch.float32).tiny)
        total[units.shared] = total[units.shared] + part if units.shared in total else part
    return [
        total[units.shared] if units.shared else score
        for units, score in zip(found, scores, strict=True)
    ]
