"""The memory of one configuration, itemised, without running it.

A rehearsal counts the tensors (`memory/rehearse.py`), the simulated allocator what it reserves for
them, and what neither can see is assumed: the CUDA context, heap that a process keeps. The model
may be a `config.json` and nothing else, and the device one that is not here.

Beside a budget, more is rehearsed: the largest micro-batch that fits, and for each technique its
leanest legal value beside the configuration, to name the one that saves most.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from autotune.core.budget import Budget
from autotune.core.config import Config
from autotune.core.context import Context, Device
from autotune.core.domains import Choice, Value
from autotune.core.errors import AutotuneError, BadValue, BlockedConfiguration
from autotune.core.knob import Knob, Numerics
from autotune.core.space import Space
from autotune.core.workload import Workload, WorkloadFacts
from autotune.knobs import BUILTIN
from autotune.knobs.stages import ADAPT, DATA, LOAD, OPTIMISE, PARALLELISE, STEP
from autotune.memory.predict import Estimate, Rehearser, estimated
from autotune.memory.rehearsal import CannotRehearse
from autotune.plan import DEFAULT_OBJECTIVE
from autotune.trial.spec import TrialSpec

SHAPES = "autotune.objectives.shapes"
"""The module of objectives that need no weights, tokenizer or data."""

SHAPED: Mapping[str, str] = {
    "causal_lm": "CausalLMShapes",
    "image_classification": "ImageClassificationShapes",
    "seq2seq": "Seq2SeqShapes",
    "text_classification": "TextClassificationShapes",
}
"""What stands there for each shipped objective."""

OWN_MODELS = frozenset({"bert", "gru", "lstm"})
"""Models that an objective makes up by name, with its own data."""

MOST_TRIED = 12
"""Techniques that are tried beside a configuration."""

PATIENCE_SECONDS = 60.0
"""Time after which no further technique is tried: a large model takes seconds for each."""

FIRST_TRIED = (
    *("accumulation", "precision", "lora.rank", "checkpointing", "loss_chunks", "prune.ffn"),
    *("optimizer.bits", "freeze.layers", "optimizer.offload", "optimizer", "activation_offload"),
)
"""Techniques in the order in which they are tried, those that usually save most first and every
kind among the first; then come all others that keep the result, then the rest."""

_TRAINING = {stage.name for stage in (LOAD, ADAPT, PARALLELISE, OPTIMISE, STEP)}
_SPACE = "every value"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be trained; see `Workload`. Zeros stand for the objective's defaults.

    A model alone is rehearsed by its shapes. With a teacher, and for a probe, which trains, model
    and data are those of a search.

    Attributes:
        objective: Its name; None for what the model is made for, or else the default.
        model: A folder or hub name; None for the objective's own.
        data: A file or folder; None for random data of the right shapes, or with no model given,
            the objective's own.
        text_column: Column of the text.
        label_column: Column of the label.
        trust_remote_code: Whether code that comes with a model may run.
        global_batch: Sequences per optimizer step.
        sequence_length: Tokens per sequence.
        eval_examples: Sequences to evaluate on.
        teacher: A folder or hub name for distillation to learn from.
        purpose: Whose memory counts: `"training"` or `"inference"`.
        trains: Whether it will be trained, if only for a few steps.
    """

    objective: str | None = None
    model: str | None = None
    data: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    trust_remote_code: bool = False
    global_batch: int = 0
    sequence_length: int = 0
    eval_examples: int = 0
    teacher: str | None = None
    purpose: str = "training"
    trains: bool = False

    def workload(self) -> Workload:
        """Return the workload, of an objective that needs no more than what is there."""
        objective = self.objective and self.objective.replace("-", "_")
        by_shapes = self.data is None and self.teacher is None and not self.trains
        if self.model not in (None, *OWN_MODELS) and by_shapes:
            if objective is None:
                objective = f"{SHAPES}:by_architecture"
            elif objective in SHAPED:
                objective = f"{SHAPES}:{SHAPED[objective]}"
        return Workload(
            objective=objective or DEFAULT_OBJECTIVE,
            model=self.model,
            data=self.data,
            text_column=self.text_column,
            label_column=self.label_column,
            trust_remote_code=self.trust_remote_code,
            global_batch=self.global_batch,
            sequence_length=self.sequence_length,
            eval_examples=self.eval_examples,
            teacher=self.teacher,
            purpose=self.purpose,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """What one technique would save.

    Attributes:
        knob: The technique.
        value: Its leanest value that is legal beside the configuration.
        estimate: The configuration with it.
        saved_bytes: How much less that is predicted to need.
    """

    knob: Knob
    value: Value
    estimate: Estimate
    saved_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An estimate beside a budget.

    Attributes:
        budget: The budget.
        spare_bytes: What is left of its limit; negative if the configuration does not fit.
        certain: Whether the interval lies on one side of the limit.
        largest: The configuration with the largest micro-batch that fits; None if none does.
        savings: The best saving for each kind of technique, exact ones first.
        tried: How many techniques were rehearsed.
    """

    budget: Budget
    spare_bytes: int
    certain: bool
    largest: Estimate | None
    savings: tuple[Saving, ...] = ()
    tried: int = 0

    @property
    def fits(self) -> bool:
        """Whether the predicted peak is within the limit."""
        return self.spare_bytes >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """Predicts configurations of one workload on one device.

    Attributes:
        rehearser: Rehearses.
        context: Device, model and libraries that configurations are judged against.
        facts: The workload.
        cache: Folder of prepared data.
        say: Told what is being done, as a sentence.
    """

    rehearser: Rehearser
    context: Context
    facts: WorkloadFacts
    cache: str
    say: Callable[[str], None] = field(default=lambda _: None)

    def predict(self, config: Config, *, limit_bytes: int | None = None) -> Estimate:
        """Predict the memory of a configuration.

        Args:
            config: Legal in the context.
            limit_bytes: Most that may be reserved, context included: under a limit, the allocator
                gives back what it caches.

        Raises:
            AutotuneError: If it cannot be rehearsed.
        """
        spec = self.spec(config, limit_bytes or self.context.device.total_bytes)
        try:
            return estimated(spec, self.rehearser, limited=limit_bytes is not None)
        except CannotRehearse as error:
            raise AutotuneError(
                f"{config.describe(BUILTIN)} cannot be estimated: {error.message}",
                help="a few measured steps on this device tell: the same command with --probe",
            ) from error

    def spec(self, config: Config, limit_bytes: int) -> TrialSpec:
        """Return the probe of a configuration.

        Args:
            config: Legal in the context.
            limit_bytes: Most memory that it may use.
        """
        return TrialSpec(
            number=0,
            config=dict(config),
            facts=self.facts,
            device=self.context.device,
            threads=1,
            limit_bytes=limit_bytes,
            limit_seconds=0.0,
            cache=self.cache,
            log="",
            probe=True,
        )

    def judge(self, estimate: Estimate, budget: Budget) -> Verdict:
        """Hold an estimate against a budget, and look for what fits better.

        Args:
            estimate: Predicted under the budget's limit.
            budget: The budget.
        """
        limit = budget.limit_bytes
        self.say("looking for the largest micro-batch that fits")
        largest = self.largest(estimate, limit)
        tried = list(self._savings(estimate, limit))
        best = []
        for numerics in Numerics:
            kind = [s for s in tried if s.knob.numerics is numerics and s.saved_bytes > 0]
            best += [max(kind, key=lambda saving: saving.saved_bytes)] if kind else []
        return Verdict(
            budget=budget,
            spare_bytes=limit - estimate.predicted_bytes,
            certain=not estimate.interval.low <= limit < estimate.interval.high,
            largest=largest,
            savings=tuple(best),
            tried=len(tried),
        )

    def largest(self, estimate: Estimate, limit_bytes: int) -> Estimate | None:
        """Return the configuration with the largest micro-batch that fits, all else alike.

        If the configuration fits, fewer micro-batches than its own are tried, or else more.
        """
        fits = estimate.predicted_bytes <= limit_bytes
        others = [a for a in self._accumulations(estimate) if (a < estimate.accumulation) == fits]
        found = estimate if fits else None
        while others:  # by halves: memory falls as micro-batches get more
            middle = others[len(others) // 2]
            other = self._accumulated(estimate.config, middle, limit_bytes)
            if other is not None and other.predicted_bytes <= limit_bytes:
                found, others = other, [a for a in others if a < middle]
            else:
                others = [a for a in others if a > middle]
        return found

    def _accumulated(self, config: Config, pieces: int, limit_bytes: int) -> Estimate | None:
        """Predict a configuration in that many micro-batches; None if it cannot be rehearsed."""
        self.say(f"trying accumulation={pieces}")
        try:
            changed = every_value().with_value(config, "accumulation", pieces)
            return self.predict(changed, limit_bytes=limit_bytes)
        except AutotuneError:
            return None

    def _accumulations(self, estimate: Estimate) -> Iterator[int]:
        """Yield the other numbers of micro-batches that are legal beside the configuration."""
        space = every_value()
        for value in space.domains["accumulation"].grid():
            changed = space.with_value(estimate.config, "accumulation", value)
            other = int(value) != estimate.accumulation
            if other and space.legal(changed, self.context):
                yield int(value)

    def _savings(self, estimate: Estimate, limit_bytes: int) -> Iterator[Saving]:
        until = time.monotonic() + PATIENCE_SECONDS
        for knob, config in itertools.islice(self.leaner(estimate.config), MOST_TRIED):
            if time.monotonic() > until:
                return
            value = config.get(knob.name, knob.neutral)
            self.say(f"trying {knob.name}={value}")
            try:
                other = self.predict(config, limit_bytes=limit_bytes)
            except AutotuneError:
                continue  # what cannot be rehearsed cannot be recommended
            saved = estimate.predicted_bytes - other.predicted_bytes
            yield Saving(knob=knob, value=value, estimate=other, saved_bytes=saved)

    def leaner(self, config: Config) -> Iterator[tuple[Knob, Config]]:
        """Yield techniques worth trying, each with its leanest legal value beside the others."""
        for knob in sorted(BUILTIN, key=_turn):
            found = next(self._leaner_values(knob, config), None)
            if found is not None:
                yield knob, found

    def _leaner_values(self, knob: Knob, config: Config) -> Iterator[Config]:
        stages = {bound.stage.name for bound in knob.transforms}
        if not stages & _TRAINING or DATA.name in stages:
            return
        space, here = every_value(), config.get(knob.name, knob.neutral)
        for value in leanest_first(knob):
            if value == here:
                return
            changed = space.with_value(config, knob.name, value)
            if space.legal(changed, self.context):
                yield changed


def configuration(typed: Mapping[str, str]) -> Config:
    """Return the configuration of `--set` values.

    Args:
        typed: One value by knob name.

    Raises:
        UnknownName: If there is no such knob.
        BadValue: If a value is outside its domain, or there are several.
    """
    for name, text in typed.items():
        if "," in text:
            raise BadValue(
                "one configuration has one value for each knob",
                where=f"--set {name}={text}",
                help=f"--set {name}={text.partition(',')[0].strip()}",
            )
    narrowed = every_value().narrowed(typed)
    return Config({name: narrowed.domains[name].grid()[0] for name in typed}, BUILTIN)


def refuse_blocked(config: Config, context: Context) -> None:
    """See that a configuration could be trained.

    Raises:
        BlockedConfiguration: If not.
    """
    for reason in every_value().reasons(config, context)[:1]:
        named = next((name for name in config if re.search(rf"\b{re.escape(name)}\b", reason)), "")
        typed = f"{named}={config[named]}" if named else ""
        raise BlockedConfiguration(
            f"this cannot be trained on {context.device.name or context.device.label}: "
            f"{reason.removeprefix(f'{typed}: ')}",
            where=f"--set {typed}".strip(),
            help=f"`{f'autotune spaces knobs {named}'.strip()}` explains it",
        )


def every_value() -> Space:
    """Return the space of every knob with all of its values."""
    return Space(name=_SPACE, knobs=BUILTIN, domains={knob.name: knob.domain for knob in BUILTIN})


def held_against(estimate: Estimate, budget: Budget) -> Verdict:
    """Hold what was measured against a budget; nothing else is tried beside it."""
    spare = budget.limit_bytes - estimate.predicted_bytes
    return Verdict(budget=budget, spare_bytes=spare, certain=True, largest=None)


def budget_for(text: str | None, device: Device) -> Budget | None:
    """Read a budget; `auto` is what the device has free. It may be more than this machine has."""
    if text is None:
        return None
    return Budget(total_bytes=device.free_bytes) if text == "auto" else Budget.parse(text)


def leanest_first(knob: Knob) -> list[Value]:
    """Return a knob's values from the leanest one outwards, those far from neutral first."""
    values: Sequence[Value] = knob.domain.grid()
    if isinstance(knob.domain, Choice):
        lean, neutral = values.index(knob.leanest), values.index(knob.neutral)
        places = sorted(range(len(values)), key=lambda at: (abs(at - lean), -abs(at - neutral)))
        return [values[at] for at in places]
    return sorted(values, key=lambda value: abs(float(value) - float(knob.leanest)))


def _turn(knob: Knob) -> tuple[int, bool]:
    """Return where a knob stands in the order in which techniques are tried."""
    first = FIRST_TRIED.index(knob.name) if knob.name in FIRST_TRIED else len(FIRST_TRIED)
    return first, knob.numerics is not Numerics.EXACT
