"""Search space files: YAML for people who do not read Python.

::

    summary: one line
    minimise: training                 # memory of the training, or `inference`: of its result
    knobs:
      precision: [fp32, bf16]          # some values of the knob's domain
      prune.ffn: {min: 0.0, max: 0.5}  # or a range of it, optionally with `log: true`
      optimizer: adamw                 # or one
    rules:
      - lora.rank == 0 or optimizer != "sgd"
    training:
      steps: 30

A file can be wrong in many ways; each is an error with `file:line:column`, the lines around it, and
what to write instead. YAML is read as version 1.2, where `1e-4` is a number and `no` is text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError

from autotune.core.domains import Choice, Domain, Float, Int, Value, contains
from autotune.core.errors import AutotuneError, BadValue, SpaceFileError, UnknownName
from autotune.core.excerpt import excerpt
from autotune.core.expressions import Expression, compile_expression
from autotune.core.knob import Knob
from autotune.core.rules import RULES, Rule
from autotune.core.space.model import LISTING, Space

TRAINING = ("steps", "global_batch", "sequence_length", "eval_examples")
"""Workload settings that a space may suggest."""

_SECTIONS = ("summary", "minimise", "knobs", "rules", "training")
_PURPOSES = ("training", "inference")
SUFFIXES = (".yaml", ".yml")
"""How names of space files end."""


def parse_space(text: str, where: str, knobs: Sequence[Knob]) -> Space:
    """Read a space from YAML.

    Args:
        text: The YAML.
        where: Path of the file, for errors; its last part without suffix is the space's name.
        knobs: Every knob there is.

    Raises:
        SpaceFileError: If the file is not a space.
        UnknownName: If it has a section, knob, setting or name that does not exist.
        BadValue: If it has a value outside a knob's domain, or a rule that is no condition.
    """
    return _SpaceFile(text, where, {knob.name: knob for knob in knobs}).space()


def space_name(path: str) -> str:
    """Return the name of a space from the path of its file: `default` for `a/default.yaml`."""
    name = Path(path).name
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


class _SpaceFile:
    """One file while it is read: knows where everything stands in it."""

    def __init__(self, text: str, where: str, knobs: Mapping[str, Knob]) -> None:
        self.text = text
        self.where = where
        self.knobs = knobs

    def space(self) -> Space:
        """Return the space that the file describes."""
        root = self.load()
        if not isinstance(root, CommentedMap):
            self.fail(SpaceFileError, "a space file has sections", (0, 0), help=_outline())
        for section in root:
            if section not in _SECTIONS:
                self.unknown("section", section, _SECTIONS, root.lc.key(section))
        summary = root.get("summary", "")
        if not isinstance(summary, str):
            self.fail(SpaceFileError, "a summary is one line of text", root.lc.value("summary"))
        return Space(
            name=space_name(self.where),
            summary=" ".join(summary.split()),
            source=self.text,
            knobs=tuple(self.knobs.values()),
            domains=self.domains(root),
            rules=(*RULES, *self.rules(root)),
            training=self.training(root),
            purpose=self.purpose(root),
        )

    def load(self) -> Any:
        """Return the file as ruamel's nodes, which know their line and column."""
        try:
            return YAML(typ="rt", pure=True).load(self.text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            at = (mark.line, mark.column) if mark else (0, 0)
            problem = (error.problem or error.context or "malformed").splitlines()[0]
            self.fail(SpaceFileError, f"this is not YAML: {problem}", at, help=_outline())
        except Exception as error:  # noqa: BLE001  (becomes the error that the user reads)
            # ruamel lets errors of its constructors through, such as for month 13 of a date.
            problem = (str(error) or type(error).__name__).splitlines()[0]
            self.fail(SpaceFileError, f"this is not YAML: {problem}", (0, 0), help=_outline())

    def domains(self, root: Any) -> dict[str, Domain]:
        """Return the narrowed domains, in the order of the knobs."""
        section = self.section(root, "knobs", CommentedMap, "lists knobs with their values")
        found: dict[str, Domain] = {}
        for name in section or ():
            if name not in self.knobs:
                self.unknown("knob", name, self.knobs, section.lc.key(name), LISTING)
            found[name] = self.domain(self.knobs[name], section[name], section.lc.value(name))
        if not found:
            at = root.lc.key("knobs") if "knobs" in root else (0, 0)
            self.fail(SpaceFileError, "a space needs at least one knob", at, help=_outline())
        return {name: found[name] for name in self.knobs if name in found}

    def domain(self, knob: Knob, entry: Any, at: tuple[int, int]) -> Domain:
        """Return a knob's domain narrowed to a list of values, a range, or one value."""
        if isinstance(entry, CommentedMap):
            return self.range(knob, entry, at)
        if not isinstance(entry, CommentedSeq):
            return Choice((self.value(knob, entry, at),))
        if not entry:
            self.fail(BadValue, f"{knob.name} has no values", at, help=_values_help(knob))
        places = [entry.lc.item(index) for index in range(len(entry))]
        values = [self.value(knob, v, p) for v, p in zip(entry, places, strict=True)]
        for index, value in enumerate(values):
            if value in values[:index]:
                self.fail(BadValue, f"{knob.name} has {value} twice", places[index])
        return Choice(tuple(values))

    def value(self, knob: Knob, entry: Any, at: tuple[int, int]) -> Value:
        """Return a value of a knob as its domain spells it: 0 becomes 0.0 among fractions."""
        value = _plain(knob.domain, entry)
        if value is None:
            shown = f"'{entry}'" if isinstance(entry, str) else _yaml(entry)
            message = f"{shown} is not a value of {knob.name}: it may be {knob.domain.describe()}"
            self.fail(BadValue, message, at, help=_values_help(knob))
        return value

    def range(self, knob: Knob, entry: Any, at: tuple[int, int]) -> Domain:
        """Return a knob's domain narrowed to `{min, max}`."""
        for key in entry:
            if key not in ("min", "max", "log"):
                self.unknown("key of a range", key, ("min", "max", "log"), entry.lc.key(key))
        if not isinstance(entry.get("log", False), bool):
            self.fail(BadValue, "log is true or false", entry.lc.value("log"))
        for key in ("min", "max"):
            if key not in entry or not _is_number(entry[key]):
                place = entry.lc.value(key) if key in entry else at
                message = f"a range of {knob.name} needs numbers as min and max"
                self.fail(BadValue, message, place, help=f"{knob.name}: {{min: …, max: …}}")
        try:
            domain = _narrow_range(knob.domain, entry["min"], entry["max"], log=entry.get("log"))
        except ValueError as error:
            self.fail(BadValue, f"the range of {knob.name} is wrong: {error}", at)
        if domain is None:
            message = f"this range of {knob.name} leaves its domain: {knob.domain.describe()}"
            self.fail(BadValue, message, at, help=_values_help(knob))
        return domain

    def rules(self, root: Any) -> list[Rule]:
        """Return the file's own rules."""
        section = self.section(root, "rules", CommentedSeq, "is a list of conditions")
        return [self.rule(e, section.lc.item(i)) for i, e in enumerate(section or ())]

    def rule(self, entry: Any, at: tuple[int, int]) -> Rule:
        """Return a condition as a rule, tried once so that text in arithmetic shows here."""
        if not isinstance(entry, str):
            self.fail(SpaceFileError, f"a rule is a condition, but this is {_yaml(entry)}", at)
        try:
            expression = compile_expression(entry, tuple(self.knobs))
            expression.holds({name: knob.neutral for name, knob in self.knobs.items()})
        except (UnknownName, BadValue) as error:
            self.fail(type(error), f"in a rule: {error.message}", at, help=error.help)
        if not expression.is_condition:
            example = 'lora.rank == 0 or optimizer != "sgd"'
            self.fail(BadValue, "a rule must be true or false", at, help=f"for example: {example}")
        return _as_rule(expression)

    def purpose(self, root: Any) -> str:
        """Return whose memory is minimised."""
        found = root.get("minimise", "training")
        if found not in _PURPOSES:
            self.unknown("purpose", str(found), _PURPOSES, root.lc.value("minimise"))
        return str(found)

    def training(self, root: Any) -> dict[str, int]:
        """Return the workload settings that the file suggests."""
        section = self.section(root, "training", CommentedMap, "has settings")
        found: dict[str, int] = {}
        for key in section or ():
            if key not in TRAINING:
                self.unknown("training setting", key, TRAINING, section.lc.key(key))
            value = section[key]
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                message = f"{key} is a whole number above 0, but got {_yaml(value)}"
                self.fail(BadValue, message, section.lc.value(key))
            found[key] = int(value)
        return found

    def section(self, root: Any, name: str, kind: type, what: str) -> Any:
        """Return a section of the file, None if it is missing or empty."""
        section = root.get(name)
        if section is not None and not isinstance(section, kind):
            message = f"section '{name}' {what}, but this is {_yaml(section)}"
            self.fail(SpaceFileError, message, root.lc.value(name), help=_outline())
        return section

    def unknown(
        self,
        kind: str,
        name: object,
        known: Sequence[str] | Mapping[str, Knob],
        at: tuple[int, int],
        listing: str | None = None,
    ) -> NoReturn:
        """Raise for a name that does not exist."""
        raise UnknownName.among(
            kind, str(name), known, where=self.place(at), context=self.lines(at), listing=listing
        )

    def fail(
        self,
        error: type[AutotuneError],
        message: str,
        at: tuple[int, int],
        *,
        help: str | None = None,
    ) -> NoReturn:
        """Raise an error that points at line and column `at`, both from 0."""
        raise error(message, where=self.place(at), context=self.lines(at), help=help)

    def place(self, at: tuple[int, int]) -> str:
        """Return `file:line:column`, counted from 1."""
        return f"{self.where}:{at[0] + 1}:{at[1] + 1}"

    def lines(self, at: tuple[int, int]) -> tuple[str, ...]:
        """Return the lines around a place."""
        return excerpt(self.text, *at)


def _plain(domain: Domain, entry: Any) -> Value | None:
    """Return what YAML gave as the domain's own value, None if it is none."""
    if isinstance(entry, bool) or not isinstance(entry, str | int | float):
        return None
    if isinstance(domain, Choice):
        return next((v for v in domain.values if v == entry), None)
    if isinstance(entry, str):
        return None
    value = float(entry) if isinstance(domain, Float) else entry
    return (int(value) if isinstance(domain, Int) else value) if value in domain else None


def _narrow_range(domain: Domain, low: Any, high: Any, *, log: bool | None) -> Domain | None:
    part: Domain
    if isinstance(domain, Choice):
        inside = tuple(v for v in domain.values if not isinstance(v, str) and low <= v <= high)
        return Choice(inside) if inside and not log else None
    if isinstance(domain, Int):
        if not (isinstance(low, int) and isinstance(high, int)):
            raise ValueError("min and max must be whole numbers")
        part = Int(int(low), int(high), domain.step, domain.log if log is None else log)
    else:
        part = Float(float(low), float(high), domain.log if log is None else log)
    return part if contains(domain, part) else None


def _as_rule(expression: Expression) -> Rule:
    return Rule(
        name=expression.text,
        holds=lambda context: expression.holds(context.config),
        reason=f"the space demands: {expression.text}",
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _yaml(value: object) -> str:
    """Say what YAML made of something."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return f"{value}"


def _values_help(knob: Knob) -> str:
    return f"`{LISTING} {knob.name}` explains its values"


def _outline() -> str:
    return "write `knobs:` and below it, indented, lines like `precision: [fp32, bf16]`"
