"""A search space: knobs narrowed to some of their values, and what may not be combined.

A space never adds anything: it lists knobs, narrows their domains, and may forbid combinations by
rules. Knobs that it does not list stay neutral. Whether a configuration is legal depends on its
context (device, model, installed libraries), so every question about legality takes one.
Files are read by `core/space/file.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from autotune.core.config import Config
from autotune.core.context import Context
from autotune.core.domains import Choice, Domain, Value, parse_value
from autotune.core.errors import BadValue, UnknownName
from autotune.core.knob import Knob
from autotune.core.rules import RULES, Rule

LISTING = "autotune spaces knobs"
MOST_TO_COUNT = 200_000
"""Combinations beyond which legal ones are not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What a search may try.

    Attributes:
        name: How the command line calls it.
        summary: One line for listings.
        source: The YAML that it was read from.
        knobs: Every knob there is, in order of application.
        domains: The narrowed domain of every knob that is listed, in the order of `knobs`.
        rules: Conditions on whole configurations.
        training: Workload settings that the space suggests, such as `steps`.
        purpose: Whose memory is minimised: `"training"`, or `"inference"`.
    """

    name: str
    summary: str = ""
    source: str = ""
    knobs: tuple[Knob, ...]
    domains: Mapping[str, Domain]
    rules: tuple[Rule, ...] = RULES
    training: Mapping[str, int] = field(default_factory=dict)
    purpose: str = "training"

    def knob(self, name: str) -> Knob:
        """Return the knob of that name.

        Raises:
            UnknownName: If there is none.
        """
        found = {knob.name: knob for knob in self.knobs}
        if name not in found:
            raise UnknownName.among("knob", name, found, listing=LISTING)
        return found[name]

    def reasons(self, config: Config, context: Context) -> tuple[str, ...]:
        """Return why a configuration is illegal, one sentence per reason; empty if it is legal."""
        return tuple(self._objections(config, context))

    def legal(self, config: Config, context: Context) -> bool:
        """Whether nothing stands against a configuration; stops at the first reason."""
        return next(self._objections(config, context), None) is None

    def compatible(self, config: Config, context: Context) -> bool:
        """Whether values go together; `legal` for values that are known to be of this space."""
        return next(self._conflicts(config.complete(self.knobs), context), None) is None

    def _objections(self, config: Config, context: Context) -> Iterator[str]:
        values = config.complete(self.knobs)
        for name in config:
            if name not in values:
                yield f"{name}: there is no knob of that name"
        for knob in self.knobs:
            outside = self._outside(knob, values[knob.name])
            if outside:
                yield f"{knob.name}={values[knob.name]}: {outside}"
        yield from self._conflicts(values, context)

    def _conflicts(self, values: Mapping[str, Value], context: Context) -> Iterator[str]:
        """Yield why values that the space lists do not go together here."""
        context = context.with_config(values)
        for knob in self.knobs:
            value = values[knob.name]
            if value != knob.neutral and value in knob.domain:
                blocked = knob.blocked(value, context)
                if blocked is not None:
                    yield f"{knob.name}={value}: {blocked}"
        yield from (rule.reason for rule in self.rules if not rule.holds(context))

    def _outside(self, knob: Knob, value: Value) -> str | None:
        domain = self.domains.get(knob.name)
        if domain is None:
            return None if value == knob.neutral else f"space '{self.name}' does not list this knob"
        return None if value in domain else f"space '{self.name}' allows {domain.describe()}"

    def baseline(self) -> Config:
        """Return the configuration with every knob neutral.

        A knob whose neutral value the space excludes gets the first value that the space lists.
        """
        neutral = {knob.name: knob.neutral for knob in self.knobs}
        first = {n: d.grid()[0] for n, d in self.domains.items() if neutral[n] not in d}
        return Config(first, self.knobs)

    def smallest(self, context: Context) -> Config:
        """Return a legal configuration that should need least memory, found greedily.

        From the baseline, each knob is set to its leanest value that leaves the configuration
        legal. A second pass gives a turn to knobs that were blocked until another was set. Knobs
        can exclude each other, so this is done in both orders, and the result with more knobs at
        their leanest value is returned.
        """
        names = tuple(self.domains)
        found = [self._descend(context, names), self._descend(context, names[::-1])]
        return max(found, key=lambda config: (self.legal(config, context), self._leanness(config)))

    def _descend(self, context: Context, names: tuple[str, ...]) -> Config:
        config = self.baseline()
        against = len(self.reasons(config, context))
        for name in names * 2:
            for value in self._leanest_first(name):
                changed = self.with_value(config, name, value)
                reasons = len(self.reasons(changed, context))
                if reasons <= against:
                    config, against = changed, reasons
                    break
        for name in names if against else ():  # give up leanness where that is what stands against
            for value in self._leanest_first(name):
                changed = self.with_value(config, name, value)
                reasons = len(self.reasons(changed, context))
                if reasons < against:
                    config, against = changed, reasons
        return config

    def _leanest_first(self, name: str) -> list[Value]:
        """Return the values of a listed knob, from its leanest value outwards."""
        knob, domain = self.knob(name), self.domains[name]
        if isinstance(knob.domain, Choice):
            order = knob.domain.values
            leanest = order.index(knob.leanest)
            return sorted(domain.grid(), key=lambda value: abs(order.index(value) - leanest))
        return sorted(domain.grid(), key=lambda value: abs(float(value) - float(knob.leanest)))

    def _leanness(self, config: Config) -> int:
        values = config.complete(self.knobs)
        return sum(values[name] == self._leanest_first(name)[0] for name in self.domains)

    def with_value(self, config: Config, name: str, value: Value) -> Config:
        """Return a configuration with one knob set to another value."""
        return Config({**config, name: value}, self.knobs)

    @property
    def size(self) -> int | None:
        """Number of combinations, legal or not; None if a knob varies continuously."""
        sizes = [domain.size for domain in self.domains.values()]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def enumerate(self, context: Context) -> Iterator[Config]:
        """Yield every legal configuration; ranges are tried at the points of `Domain.grid`."""
        for values in self._legal_values(context):
            yield Config(values, self.knobs)

    def count(self, context: Context) -> int | None:
        """Return the number of legal configurations; None if it cannot be counted quickly."""
        if self.size is None or self.size > MOST_TO_COUNT:
            return None
        return sum(1 for _ in self._legal_values(context))

    def _legal_values(self, context: Context) -> Iterator[dict[str, Value]]:
        neutral = {knob.name: knob.neutral for knob in self.knobs}
        for chosen in itertools.product(*(domain.grid() for domain in self.domains.values())):
            values = {**neutral, **dict(zip(self.domains, chosen, strict=True))}
            if next(self._conflicts(values, context), None) is None:
                yield values

    def blocked_values(self, context: Context) -> dict[str, dict[Value, str]]:
        """Return the listed values that are illegal alone, off the baseline, and why.

        Returns:
            For each knob that has such values: the sentence by value.
        """
        baseline, found = self.baseline(), dict[str, dict[Value, str]]()
        for name, domain in self.domains.items():
            for value in domain.grid():
                reasons = self.reasons(self.with_value(baseline, name, value), context)
                if reasons:
                    sentence = reasons[0].removeprefix(f"{name}={value}: ")
                    found.setdefault(name, {})[value] = sentence
        return found

    def narrowed(self, overrides: Mapping[str, str]) -> Space:
        """Return the space with some knobs narrowed to values typed as text.

        Args:
            overrides: By knob name one value, or several with commas: `{"lora.rank": "8,16"}`.
                A knob that the space does not list may take any value of its own domain.

        Raises:
            UnknownName: If there is no such knob.
            BadValue: If a value is outside the knob's domain, or outside what the space allows.
        """
        domains = dict(self.domains)
        for name, text in overrides.items():
            knob = self.knob(name)
            values = dict.fromkeys(self._typed(knob, part.strip()) for part in text.split(","))
            domains[name] = Choice(tuple(values))
        return replace(
            self, domains={k.name: domains[k.name] for k in self.knobs if k.name in domains}
        )

    def _typed(self, knob: Knob, text: str) -> Value:
        where = f"--set {knob.name}={text}"
        value = parse_value(knob.domain, text)
        if value is None:
            known = knob.domain.describe()
            message = f"'{text}' is not a value of {knob.name}: it may be {known}"
            raise BadValue(message, where=where, help=f"`{LISTING} {knob.name}` explains it")
        domain = self.domains.get(knob.name, knob.domain)
        if value not in domain:
            raise BadValue(
                f"space '{self.name}' narrows {knob.name} to {domain.describe()}, without {text}",
                where=where,
                help="choose one of these, or another space: `autotune spaces ls`",
            )
        return value
