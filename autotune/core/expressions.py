"""A small, safe grammar for conditions: `lora.rank == 0 or optimizer != "sgd"`.

One grammar serves the rules of space files and `front --where "perplexity <= 1.02 * best"`: names
(dotted ones too), numbers, strings, `+ - * / // %`, comparisons (chained ones too), `in` and
`not in` a tuple, `and`, `or`, `not`, parentheses. The text is parsed by Python's own parser, every
node is checked against a list of what is allowed, and the tree is then walked: nothing is ever
handed to `eval`, there are no calls, no attributes of objects and no powers.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from autotune.core.domains import Value
from autotune.core.errors import BadValue, UnknownName

_MAX_LENGTH = 1000
_MAX_DEPTH = 40
_GRAMMAR = 'for example: lora.rank == 0 or optimizer in ("adamw", "lion")'

_ARITHMETIC: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_ORDER: Mapping[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MEMBERSHIP = (ast.In, ast.NotIn)
_COMPARISONS = (*_ORDER, *_MEMBERSHIP, ast.Eq, ast.NotEq)


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression.

    Attributes:
        text: As written.
        names: The names that it uses.
        is_condition: Whether its value is true or false, and not a number or text.
    """

    text: str
    names: frozenset[str]
    is_condition: bool
    _tree: ast.expr

    def evaluate(self, values: Mapping[str, Value]) -> Value | bool:
        """Return the value for these values of the names.

        Raises:
            BadValue: If a name has no value, text meets arithmetic, or something is divided by 0.
        """
        return _Evaluation(self.text, values).of(self._tree)

    def holds(self, values: Mapping[str, Value]) -> bool:
        """Return whether the condition is true for these values; errors as in `evaluate`."""
        return bool(self.evaluate(values))


def compile_expression(text: str, names: Collection[str]) -> Expression:
    """Check an expression and make it ready to be evaluated.

    Args:
        text: The expression.
        names: The names that it may use.

    Raises:
        UnknownName: If it uses another name.
        BadValue: If it is no expression of this grammar; the context shows the position.
    """
    text = text.replace("\n", " ").strip()
    if len(text) > _MAX_LENGTH:
        raise BadValue(f"an expression has at most {_MAX_LENGTH} characters, this has {len(text)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as for "\d": it is text to us, not Python
            tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        offset = error.offset or len(text) + 1  # from 1; none where the text ends too early
        raise _error(text, offset - 1, 1, _syntax_message(text, offset, error.msg)) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadValue(f"this is not an expression: {error}", help=_GRAMMAR) from error
    check = _Check(text, names)
    check.node(tree, 0)
    condition = isinstance(tree, ast.Compare | ast.BoolOp) or (
        isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not)
    )
    return Expression(text, frozenset(check.used), condition, tree)


class _Check:
    """Walks a tree once and raises at the first node that the grammar does not have."""

    def __init__(self, text: str, names: Collection[str]) -> None:
        self.text = text
        self.names = names
        self.used: set[str] = set()

    def node(self, node: ast.expr, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise self.refuse(node, "the expression is nested too deeply")
        name = _dotted(node)
        if name is not None:
            self.name(node, name)
            return
        for child in self.children(node):
            self.node(child, depth + 1)

    def name(self, node: ast.expr, name: str) -> None:
        if name not in self.names:
            context = _underlined(self.text, *_span(self.text, node))
            raise UnknownName.among("name", name, self.names, context=context)
        self.used.add(name)

    def children(self, node: ast.expr) -> list[ast.expr]:
        """Return what a node of the grammar is made of; raise for any other node."""
        match node:
            case ast.Constant(value=bool() | None | complex() | bytes()):
                raise self.refuse(node, f"{node.value!r} is neither a number nor text")
            case ast.Constant(value=int() | float() | str()):
                return []
            case ast.BinOp(op=op) if type(op) in _ARITHMETIC:
                return [node.left, node.right]
            case ast.BoolOp():
                return node.values
            case ast.UnaryOp(op=ast.Not() | ast.UAdd() | ast.USub()):
                return [node.operand]
            case ast.Compare():
                return [node.left, *self.comparators(node)]
        raise self.refuse(node, f"an expression cannot contain {_called(node)}")

    def comparators(self, node: ast.Compare) -> list[ast.expr]:
        """Return what is compared with; members of a tuple stand for the tuple."""
        found: list[ast.expr] = []
        if len(node.ops) > 1 and any(isinstance(op, _MEMBERSHIP) for op in node.ops):
            raise self.refuse(node, "`in` cannot be part of a chain: join comparisons with `and`")
        for op, right in zip(node.ops, node.comparators, strict=True):
            if not isinstance(op, _COMPARISONS):
                raise self.refuse(node, "write == and != where Python would say `is`")
            members = isinstance(right, ast.Tuple | ast.List)
            if isinstance(op, _MEMBERSHIP) != members:
                raise self.refuse(right, 'write `in` with values in parentheses: x in ("a", "b")')
            found += right.elts if isinstance(right, ast.Tuple | ast.List) else [right]
        return found

    def refuse(self, node: ast.expr, message: str) -> BadValue:
        return _error(self.text, *_span(self.text, node), message)


class _Evaluation:
    """Walks a checked tree for one set of values."""

    def __init__(self, text: str, values: Mapping[str, Value]) -> None:
        self.text = text
        self.values = values

    def of(self, node: ast.expr) -> Value | bool:
        name = _dotted(node)
        if name is not None:
            return self.name(node, name)
        match node:
            case ast.BoolOp(op=ast.And()):
                return all(self.of(part) for part in node.values)
            case ast.BoolOp():
                return any(self.of(part) for part in node.values)
            case ast.UnaryOp(op=ast.Not()):
                return not self.of(node.operand)
            case ast.UnaryOp():
                number = self.number(node.operand)
                return -number if isinstance(node.op, ast.USub) else number
            case ast.BinOp():
                return self.arithmetic(node)
            case ast.Compare():
                return self.compare(node)
        assert isinstance(node, ast.Constant)
        value = node.value
        assert isinstance(value, int | float | str)
        return value

    def name(self, node: ast.expr, name: str) -> Value:
        if name not in self.values:
            raise _error(self.text, *_span(self.text, node), f"'{name}' has no value here")
        return self.values[name]

    def number(self, node: ast.expr) -> float:
        value = self.of(node)
        if isinstance(value, str | bool):
            message = f"{value!r} is not a number, so there is no arithmetic or order with it"
            raise _error(self.text, *_span(self.text, node), message)
        return value

    def arithmetic(self, node: ast.BinOp) -> float:
        left, right = self.number(node.left), self.number(node.right)
        try:
            return _ARITHMETIC[type(node.op)](left, right)
        except ArithmeticError as error:
            raise _error(self.text, *_span(self.text, node), f"{error}") from error

    def compare(self, node: ast.Compare) -> bool:
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            if not self.holds(left, op, right):
                return False
            left = right
        return True

    def holds(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> bool:
        if isinstance(right, ast.Tuple | ast.List):
            found = any(self.of(left) == self.of(member) for member in right.elts)
            return found == isinstance(op, ast.In)
        if type(op) in _ORDER:
            return _ORDER[type(op)](self.number(left), self.number(right))
        return (self.of(left) == self.of(right)) == isinstance(op, ast.Eq)


def _dotted(node: ast.expr) -> str | None:
    """Return `a.b.c` for a chain of attributes that starts at a name, else None."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _called(node: ast.expr) -> str:
    names = {ast.Call: "a call", ast.Tuple: "a tuple here", ast.List: "a list here"}
    names |= {ast.Subscript: "brackets", ast.Lambda: "a function", ast.IfExp: "if and else"}
    if isinstance(node, ast.BinOp):
        return "this operator: there are + - * / // %"
    return names.get(type(node), f"this ({type(node).__name__})")


def _span(text: str, node: ast.expr) -> tuple[int, int]:
    """Return start and width of a node in characters; `ast` counts bytes."""
    raw = text.encode()
    start = len(raw[: node.col_offset].decode())
    end = len(raw[: node.end_col_offset or node.col_offset + 1].decode())
    return start, max(1, end - start)


def _syntax_message(text: str, offset: int, problem: str) -> str:
    if not text:
        return "an expression cannot be empty"
    if text[offset - 1 : offset] == "=" or "Maybe you meant '=='" in problem:
        return "this is not an expression: write == to compare"
    return f"this is not an expression: {problem}"


def _underlined(text: str, start: int, width: int) -> tuple[str, str]:
    return text, " " * start + "^" * width


def _error(text: str, start: int, width: int, message: str) -> BadValue:
    start = min(max(start, 0), len(text))
    return BadValue(message, context=_underlined(text, start, width), help=_GRAMMAR)
