"""Problems for samplers: made-up trainings whose memory and accuracy follow known laws.

`SCALING` is a language model trained for a fixed number of steps: its loss follows a scaling law in
parameters and tokens, with an optimal learning rate that moves with size, batch and optimizer, and
penalties for quantising, pruning and adapters that depend on each other. Memory and time are summed
over weights, gradients, optimizer states, activations and logits. Exact knobs change memory and
time alone.

`VIOLATED` is the same model on which nothing holds that the frontier search relies on: losses are
four times as noisy, and the knobs that are declared exact move accuracy.

On the way to its end a loss comes down as a power of the share of the training: more slowly for
large models and low rates, so that cheap trainings prefer what is not the best in the end. Their
order of the best fifth agrees with that after whole trainings by a rank correlation of 0.4 after a
ninth and 0.8 after a third, and noise is three times as large.

References:
    Hoffmann et al. 2022, arXiv:2203.15556 (the form of the loss); Korthikanti et al. 2022,
    arXiv:2205.05198 (bytes of activations); Yang et al. 2022, arXiv:2203.03466 (learning rates).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product

from autotune.core.config import Config
from autotune.core.context import Context
from autotune.core.domains import Choice, Domain, Float, Int, Value
from autotune.core.knob import Knob, Numerics
from autotune.core.outcome import Completed, Measurement, OutOfMemory, Peak, PeakKind, Phase, Score
from autotune.core.pareto import Point
from autotune.core.record import TrialRecord
from autotune.core.space import Space
from autotune.core.units import GIB
from autotune.core.workload import Metric
from autotune.search.rungs import AUTO

LOSS = Metric(name="loss", maximize=False)
SEQUENCE = 2048
STEPS = 2000
VOCABULARY = 32_000
DIVERGED = 8.0

Values = Mapping[str, Value]


def _knob(
    name: str,
    domain: Domain,
    neutral: Value,
    leanest: Value,
    numerics: Numerics = Numerics.LOSSY,
    blocked: Callable[[Value, Context], str | None] | None = None,
) -> Knob:
    more = {} if blocked is None else {"blocked": blocked}
    return Knob(
        name=name,
        help="",
        domain=domain,
        neutral=neutral,
        leanest=leanest,
        label=f"{name} {{}}",
        numerics=numerics,
        transforms=(),
        **more,
    )


def _needs(name: str, off: Value, neutral: Value) -> Callable[[Value, Context], str | None]:
    """Return a condition: any value but the neutral one needs another knob to be on."""

    def blocked(value: Value, context: Context) -> str | None:
        on = value == neutral or context.config[name] != off
        return None if on else f"there is nothing to choose: set {name} to something but {off}"

    return blocked


EXACT = Numerics.EXACT
KNOBS = (
    _knob("width", Int(256, 4096, step=64), 1024, 256),
    _knob("depth", Int(4, 48), 16, 4),
    _knob("learning_rate", Float(1e-4, 1e-2, log=True), 1e-3, 1e-3),
    _knob("batch", Choice((16, 32, 64, 128, 256)), 64, 16),
    _knob("optimizer", Choice(("adamw", "adafactor", "lion", "sgd")), "adamw", "sgd"),
    _knob("schedule", Choice(("cosine", "constant")), "cosine", "cosine"),
    _knob("weight_bits", Choice((16, 8, 4)), 16, 4),
    _knob("prune", Choice((0.0, 0.2, 0.4, 0.6)), 0.0, 0.6),
    _knob("lora.rank", Choice((0, 4, 16, 64)), 0, 4),
    _knob(
        "lora.targets",
        Choice(("all", "attention")),
        "all",
        "attention",
        blocked=_needs("lora.rank", 0, "all"),
    ),
    _knob("checkpointing", Choice(("none", "selective", "full")), "none", "full", EXACT),
    _knob("in_backward", Choice(("no", "yes")), "no", "yes", EXACT),
    _knob("offload", Choice(("none", "optimizer", "all")), "none", "all", EXACT),
    _knob(
        "offload.share",
        Choice((1.0, 0.5, 0.25)),
        1.0,
        1.0,
        EXACT,
        blocked=_needs("offload", "none", 1.0),
    ),
    _knob("micro_batch", Choice((1, 2, 4, 8, 16)), 16, 1, EXACT),
)

_STATES = {"adamw": 8.0, "adafactor": 0.1, "lion": 4.0, "sgd": 0.0}
_RATES = {"adamw": 1.0, "adafactor": 1.6, "lion": 0.25, "sgd": 5.0}
_WORSE = {"adamw": 0.0, "adafactor": 0.03, "lion": 0.015, "sgd": 0.25}
_KEPT = {"none": 34.0, "selective": 16.0, "full": 2.0}
_RECOMPUTED = {"none": 1.0, "selective": 1.08, "full": 1.33}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Parameters of a configuration.

    Attributes:
        kept: Those that are left in the model.
        trained: Those of them, or beside them, that are trained.
    """

    kept: float
    trained: float


def sizes(at: Values) -> Sizes:
    """Return the number of parameters."""
    width, depth = float(at["width"]), float(at["depth"])
    blocks = 12.0 * width**2 * depth * (1.0 - float(at["prune"]))
    kept = blocks + VOCABULARY * width
    if not at["lora.rank"]:
        return Sizes(kept=kept, trained=kept)
    share = 1.0 if at["lora.targets"] == "all" else 0.35
    return Sizes(kept=kept, trained=18.0 * width * depth * float(at["lora.rank"]) * share)


def peak_bytes(at: Values) -> float:
    """Return the peak memory of a training step."""
    count, width, depth = sizes(at), float(at["width"]), float(at["depth"])
    share = float(at["offload.share"])
    weights = count.kept * float(at["weight_bits"]) / 8.0
    states = count.trained * _STATES[str(at["optimizer"])]
    if at["offload"] != "none":
        states *= 1.0 - share
    if at["offload"] == "all":
        weights *= 1.0 - 0.9 * share
    gradients = 2.0 * count.trained / (depth if at["in_backward"] == "yes" else 1.0)
    tokens = SEQUENCE * min(float(at["micro_batch"]), float(at["batch"]))
    activations = tokens * width * (depth * _KEPT[str(at["checkpointing"])] + 34.0)
    logits = tokens * VOCABULARY * 6.0
    return 0.3 * GIB + weights + states + gradients + activations + logits


def step_seconds(at: Values) -> float:
    """Return the time of an optimizer step."""
    count = sizes(at)
    work = 6.0 * count.kept * SEQUENCE * float(at["batch"]) / 100e12
    work *= _RECOMPUTED[str(at["checkpointing"])]
    pieces = float(at["batch"]) / min(float(at["micro_batch"]), float(at["batch"]))
    moved = {"none": 0.0, "optimizer": 8.0 * count.trained, "all": 4.0 * count.kept * pieces}
    return work + 0.01 * pieces + moved[str(at["offload"])] * float(at["offload.share"]) / 12e9


def true_loss(at: Values) -> float:
    """Return the loss after training, without noise."""
    count, batch = sizes(at), float(at["batch"])
    bits, rank, prune = float(at["weight_bits"]), float(at["lora.rank"]), float(at["prune"])
    capacity = 360.0 / (count.kept * (0.55 + 0.45 * (1.0 - prune))) ** 0.34
    data = 76.0 / (batch * SEQUENCE * STEPS) ** 0.28
    best = 2e-3 * (512.0 / float(at["width"])) ** 0.6 * (12.0 / float(at["depth"])) ** 0.25
    best *= math.sqrt(batch / 64.0) * _RATES[str(at["optimizer"])] * (3.0 if rank else 1.0)
    off = math.log10(float(at["learning_rate"]) / best)
    if off > 1.1 or (at["optimizer"] == "sgd" and off > 0.8):
        return DIVERGED
    rate = (0.5 if off > 0 else 0.3) * off**2
    small = (1e8 / count.kept) ** 0.2
    quantised = {16.0: 0.0, 8.0: 0.008, 4.0: 0.09}[bits] * small * (0.6 if rank else 1.4)
    pruned = 0.45 * prune**2 * small * (1.5 if bits == 4.0 else 1.0)
    adapted = 0.05 + 0.3 * math.exp(-rank / 14.0) if rank else 0.0
    adapted += 0.06 if rank and at["lora.targets"] == "attention" else 0.0
    schedule = 0.0 if at["schedule"] == "cosine" else 0.05 + 0.03 * off
    others = quantised + pruned + adapted + schedule + _WORSE[str(at["optimizer"])]
    return min(DIVERGED, 1.7 + capacity + data + rate + others)


def shifted_loss(at: Values) -> float:
    """Return the loss where exact knobs are not exact: lean settings of them cost accuracy."""
    cost = {"none": 0.0, "selective": 0.04, "full": 0.12}[str(at["checkpointing"])]
    cost += {"none": 0.0, "optimizer": 0.03, "all": 0.15}[str(at["offload"])]
    cost += 0.05 * math.log2(16.0 / float(at["micro_batch"])) / 4.0
    return true_loss(at) + cost


def gap(at: Values, share: float) -> float:
    """Return by how much the loss is higher after a share of the training.

    A power of the share, larger where the learning rate is low and for large models, which are at
    their best last; so cheap trainings prefer small models and high rates.
    """
    size = math.log10(sizes(at).kept / 1e8)
    slow = math.log10(2e-3 * _RATES[str(at["optimizer"])] / float(at["learning_rate"]))
    height = 0.2 * math.exp(0.22 * max(-2.0, min(2.0, slow)) + 0.35 * size)
    height *= 1.25 if at["schedule"] == "cosine" else 0.9
    return height * (share**-0.5 - 1.0)


SPACE = Space(name="scaling", knobs=KNOBS, domains={k.name: k.domain for k in KNOBS}, rules=())
CONTEXT = Context()


@cache
def exact_settings() -> tuple[dict[str, Value], ...]:
    """Return every legal setting of the exact knobs: which ones go together is up to them alone."""
    exact = {knob.name: knob.domain.grid() for knob in KNOBS if knob.numerics is EXACT}
    settings = (dict(zip(exact, chosen, strict=True)) for chosen in product(*exact.values()))
    return tuple(s for s in settings if SPACE.legal(Config(s, KNOBS), CONTEXT))


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Made-up trainings under a budget.

    Attributes:
        name: How tables call it.
        loss: The loss that a configuration has without noise.
        noise: Standard deviation of what is observed, up to divergence.
        shared: Whether accuracy is the same for all settings of the exact knobs.
        limit_bytes: The budget.
        worst_loss: Losses beyond count for nothing.
        ideal: Hypervolume of the best front there is, in units of loss times GiB; `find_ideal`.
        space: What may be tried.
        rungs: At which shares of a training its loss is known, as `--rungs` takes it.
        steps: Optimizer steps of a whole training.
    """

    name: str
    loss: Callable[[Values], float]
    noise: float
    shared: bool
    limit_bytes: int = 6 * GIB
    worst_loss: float = 3.5
    ideal: float = 1.0
    space: Space = SPACE
    context: Context = CONTEXT
    rungs: str = AUTO
    steps: int = STEPS

    def at_rung(self, number: int, config: Config, seed: int, share: float) -> Score:
        """Return what a trial scores after a share of its training: worse, and less surely."""
        values = self.values(config)
        found = self.loss(values)
        higher = found + (gap(values, share) if found < DIVERGED else 0.0)
        noise = random.Random(f"{seed}/{number}/{share:.3f}").gauss(0.0, 3.0 * self.noise)
        return Score(value=higher + noise)

    def values(self, config: Config) -> dict[str, Value]:
        """Return a value for every knob."""
        return config.complete(self.space.knobs)

    def true_point(self, config: Config) -> Point:
        """Return loss without noise, and peak in GiB."""
        values = self.values(config)
        return self.loss(values), peak_bytes(values) / GIB

    def peak(self, config: Config) -> int:
        """Return the peak in bytes, as a rehearsal would find it."""
        return int(peak_bytes(self.values(config)))

    def train(self, number: int, config: Config, seed: int) -> TrialRecord:
        """Return the record of a trial; its noise follows from seed and number."""
        values = self.values(config)
        peak, seconds = int(peak_bytes(values)), step_seconds(values)
        if peak > self.limit_bytes:
            over = OutOfMemory(seconds=1.0, phase=Phase.FIRST, needed_bytes=peak)
            return TrialRecord(
                number=number, config=config, outcome=over, limit_bytes=self.limit_bytes
            )
        noise = random.Random(f"{seed}/{number}").gauss(0.0, self.noise)
        measured = Measurement(
            peaks=(Peak(phase=Phase.STEADY, kind=PeakKind.ALLOCATED, bytes=peak),),
            step_seconds=seconds,
            steps=STEPS,
            parameters=int(sizes(values).kept),
        )
        done = Completed(
            seconds=seconds * STEPS,
            measurement=measured,
            scores={LOSS.name: Score(value=self.loss(values) + noise)},
        )
        return TrialRecord(number=number, config=config, outcome=done, limit_bytes=self.limit_bytes)

    def expansions(self, config: Config) -> Iterator[Config]:
        """Yield the configuration with every legal setting of its exact knobs."""
        for setting in exact_settings():
            yield Config({**config, **setting}, self.space.knobs)

    def expanded(self, config: Config) -> list[Point]:
        """Return `true_point` of every expansion that fits; the leanest if they share the loss."""
        values = self.values(config)
        settings = [{**values, **setting} for setting in exact_settings()]
        peaks = [peak_bytes(at) for at in settings]
        if self.shared:
            fits = min(peaks) <= self.limit_bytes
            return [(self.loss(values), min(peaks) / GIB)] if fits else []
        pairs = zip(settings, peaks, strict=True)
        return [(self.loss(at), peak / GIB) for at, peak in pairs if peak <= self.limit_bytes]


SCALING = Problem(name="scaling", loss=true_loss, noise=0.015, shared=True, ideal=7.316)
VIOLATED = Problem(name="violated", loss=shifted_loss, noise=0.06, shared=False, ideal=5.935)
PROBLEMS = {problem.name: problem for problem in (SCALING, VIOLATED)}
