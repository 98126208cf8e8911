"""The time of one optimizer step, from first principles: operations, bytes over links, waiting.

    step = compute + what ranks tell each other + waiting of stages + reading weights and states

- Compute: 6 operations per parameter and token, two of them forward, and 12 x layers x width x
  length for attention; two more per parameter and token where blocks are computed again.
- Exchange: a ring moves `2 (n - 1) / n` of the bytes for a sum of all, half of it to gather or to
  scatter, unless it was measured to take more. Matrices shared by ranks take four sums of the
  activations per block and micro-batch, six with recomputation; norms and residuals are done whole
  by each of them.
- A pipeline of `p` stages and `m` micro-batches waits `(p - 1) / m` of its computing time, unless
  ranks share cores, which other stages then use.

It is meant to put layouts in order, not to tell seconds: nothing overlaps, and rates are peaks.

References:
    Kaplan et al. 2020, arXiv:2001.08361 (6 N D); Narayanan et al. 2021, arXiv:2104.04473 (exchange
    and bubble); Rajbhandari et al. 2020, arXiv:1910.02054 (volumes of ZeRO); Patarasuk and Yuan
    2009, Bandwidth optimal all-reduce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.core.context import ModelFacts
from autotune.core.domains import Value
from autotune.core.knob import run_stage
from autotune.knobs import BUILTIN
from autotune.knobs.stages import LAYOUT, LayoutPlan
from autotune.parallel.rates import Rates

_PASSES = {"none": 3.0, "every_third": 3.33, "every_other": 3.5, "selective": 3.1, "full": 4.0}
"""Forward passes that a step costs, with a backward pass as two, by what is computed again."""

_ELEMENTWISE = 10
"""Times that norms and residuals read or write the activations in a forward pass of a block."""

_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "bf16_mixed": 4, "fp16_mixed": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds of one optimizer step.

    Attributes:
        compute: Of a rank that computes.
        exchange: In which ranks tell each other gradients, weights and activations.
        bubble: In which stages of a pipeline wait.
        update: In which weights, gradients and states are read and written.
    """

    compute: float
    exchange: float
    bubble: float
    update: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute + self.exchange + self.bubble + self.update


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one step of a workload is.

    Attributes:
        model: Shape of the model.
        global_batch: Sequences.
        tokens: Of each.
    """

    model: ModelFacts
    global_batch: int
    tokens: int


def pace_of(config: Mapping[str, Value], work: Work, rates: Rates) -> Pace:
    """Predict the time of one step of a configuration.

    Args:
        config: Values that are off neutral.
        work: What a step is.
        rates: Of the devices.
    """
    layout = run_stage(LAYOUT, LayoutPlan(), BUILTIN, config)
    size = _BYTES.get(str(config.get("precision", "fp32")), 4)
    mixed = str(config.get("precision", "fp32")) in ("bf16_mixed", "fp16_mixed")
    micro = int(config.get("accumulation", 1))
    compute = _compute(config, work, rates, layout, halves=mixed or size == 2)
    held = work.model.parameters * size / (layout.tensor * layout.pipeline)
    exchange = (
        _gradients(layout, held, micro, rates)
        + _tensor(config, work, layout, 2 if mixed else size, rates)
        + _stages(work, layout, micro, 2 if mixed else size, rates)
        + _context(work, layout, micro, size, rates)
    )
    return Pace(
        compute=compute,
        exchange=exchange,
        bubble=_waiting(compute, layout, micro, rates),
        update=_update(layout, held, rates),
    )


def _compute(
    config: Mapping[str, Value], work: Work, rates: Rates, layout: LayoutPlan, *, halves: bool
) -> float:
    model, tokens = work.model, work.global_batch * work.tokens
    forward = 2.0 * model.parameters * tokens + 4.0 * (
        model.layers * model.hidden * work.tokens * tokens
    )
    passes = _PASSES.get(str(config.get("checkpointing", "none")), 3.0)
    flops = rates.flops16 if halves else rates.flops32
    ranks = layout.replicas * layout.tensor * layout.pipeline * layout.context
    return forward * passes / (flops * min(ranks, rates.together))


def _waiting(compute: float, layout: LayoutPlan, micro: int, rates: Rates) -> float:
    """Return seconds that no stage can fill; stages that share cores fill each other's."""
    alone = compute * min(layout.ranks, rates.together) / layout.ranks
    return max(0.0, alone * (1.0 + (layout.pipeline - 1) / max(1, micro)) - compute)


def _gradients(layout: LayoutPlan, held: float, micro: int, rates: Rates) -> float:
    """Return seconds to average gradients and to hand round what is divided."""
    ranks = layout.replicas * layout.context
    if layout.data == "server":
        # Each worker sends gradients and gets weights, all through the servers' links.
        link = rates.link_of(layout.ranks)
        return 2.0 * ranks * held / layout.servers / link * _in_turn(layout, rates)
    if ranks == 1:
        return 0.0
    inside = layout.shards or ranks
    whole = rates.sum_seconds(held, ranks, stride=layout.tensor, devices=layout.ranks)
    if layout.data in ("zero2", "zero3"):
        near = rates.sum_seconds(held, inside, stride=layout.tensor, devices=layout.ranks)
        times = 2 if layout.data == "zero3" else 1
        copies = 0.5 * whole if inside < ranks else 0.0
        return near * rates.gathering * (times * micro + micro) + copies
    return whole * (1.0 + rates.gathering if layout.data == "zero1" else 1.0)


def _tensor(
    config: Mapping[str, Value], work: Work, layout: LayoutPlan, size: int, rates: Rates
) -> float:
    degree = layout.tensor
    if degree == 1:
        return 0.0
    sums = 6 if config.get("checkpointing", "none") == "full" else 4
    rows = work.global_batch / layout.replicas
    activation = rows * work.tokens * work.model.hidden * size
    micro = int(config.get("accumulation", 1))
    blocks = work.model.layers / layout.pipeline
    each = rates.sum_seconds(activation / micro, degree, devices=layout.ranks)
    # Norms and residuals are not divided: every rank does them for all units.
    passes = _PASSES.get(str(config.get("checkpointing", "none")), 3.0)
    again = _ELEMENTWISE * passes * activation * _in_turn(layout, rates) / rates.memory
    return blocks * (sums * micro * each + again * (1.0 - 1.0 / degree))


def _stages(work: Work, layout: LayoutPlan, micro: int, size: int, rates: Rates) -> float:
    if layout.pipeline == 1:
        return 0.0
    rows = work.global_batch / layout.replicas
    activation = rows * work.tokens * work.model.hidden * size
    link = rates.link_of(layout.ranks)
    return 2.0 * (activation / link + rates.latency * micro) * _in_turn(layout, rates)


def _context(work: Work, layout: LayoutPlan, micro: int, size: int, rates: Rates) -> float:
    degree, model = layout.context, work.model
    if degree == 1:
        return 0.0
    share = (model.kv_heads or model.heads or 1) / (model.heads or 1)
    rows = work.global_batch / layout.replicas
    keys = 2.0 * rows * work.tokens * model.hidden * share * size
    # Gathered forward; the gradients of all of them are summed backward.
    each = (1.0 + rates.gathering) * rates.sum_seconds(keys / micro, degree, devices=layout.ranks)
    return model.layers * micro * each


def _update(layout: LayoutPlan, held: float, rates: Rates) -> float:
    """Return seconds to read weights, gradients and two states, and to write three of them."""
    divided = layout.replicas if layout.data in ("zero1", "zero2", "zero3") else 1
    return 7.0 * held / divided * _in_turn(layout, rates) / rates.memory


def _in_turn(layout: LayoutPlan, rates: Rates) -> float:
    """Return how many ranks share a core."""
    return max(1.0, layout.ranks / rates.together)
