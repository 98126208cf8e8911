"""The grammar of conditions: what it says, what it refuses, and where it points."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.errors import BadValue, UnknownName, UsageError
from autotune.core.expressions import compile_expression

VALUES = {
    "lora.rank": 8,
    "optimizer": "sgd",
    "optimizer.bits": 32,
    "loss": 2.5,
    "best": 2.0,
    "n": 0,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lora.rank == 8", True),
        ('lora.rank == 0 or optimizer != "sgd"', False),
        ("loss <= 1.02 * best", False),
        ("loss <= 1.3 * best and not n", True),
        ("0 < loss < 3", True),
        ("0 < loss < 2", False),
        ("3 > loss >= 2.5 != best", True),
        ("optimizer in ('adamw', 'sgd')", True),
        ("optimizer not in ('adamw', 'sgd')", False),
        ("lora.rank in (4, 2 * 4)", True),
        ("optimizer in ['lion']", False),
        ("optimizer in ('sgd',)", True),
        ("lora.rank + 2 * 3 - 1", 13),
        ("(lora.rank + 2) * 3", 30),
        ("-lora.rank // 3", -3),
        ("+lora.rank % 3 / 2", 1.0),
        ("optimizer.bits", 32),
        ("optimizer", "sgd"),
        ('optimizer == 8 or "a" == "a"', True),
        ("  loss\n > 2  ", True),
        ("1e-4 < loss", True),
    ],
)
def test_expressions_mean_what_they_say(text, value):
    found = compile_expression(text, VALUES).evaluate(VALUES)
    assert found == value
    assert type(found) is type(value)


def test_or_and_and_stop_as_soon_as_they_know():
    text = "n == 0 or 1 / n > 2"
    assert compile_expression(text, VALUES).holds(VALUES)
    assert not compile_expression("n != 0 and 1 / n > 2", VALUES).holds(VALUES)


def test_an_expression_knows_its_names_and_whether_it_is_a_condition():
    found = compile_expression("lora.rank > 1 and best > loss", VALUES)
    assert found.names == {"lora.rank", "best", "loss"}
    assert found.is_condition
    assert compile_expression("not n", VALUES).is_condition
    assert not compile_expression("lora.rank + 1", VALUES).is_condition
    assert not compile_expression("-n", VALUES).is_condition


@pytest.mark.parametrize(
    ("text", "suggestion", "underline"),
    [
        ("lora.rnk == 0", "'lora.rank'", "^^^^^^^^"),
        ("loss < 3 or bst > 1", "'best'", " " * 12 + "^^^"),
        ("'ä' == optimiser", "'optimizer'", " " * 7 + "^^^^^^^^^"),
    ],
)
def test_unknown_names_are_underlined_and_corrected(text, suggestion, underline):
    with pytest.raises(UnknownName) as caught:
        compile_expression(text, VALUES)
    assert f"did you mean {suggestion}?" in caught.value.help
    assert caught.value.context == (text, underline)


@pytest.mark.parametrize(
    ("text", "message", "column"),
    [
        ("", "an expression cannot be empty", 0),
        ("lora.rank = 0", "this is not an expression: write == to compare", 10),
        ("(loss > 2", "this is not an expression: '(' was never closed", 0),
        ("loss > ", "this is not an expression: invalid syntax", 6),
        ("loss ** 2 > 1", "an expression cannot contain this operator: there are + - * / // %", 0),
        ("n > abs(loss)", "an expression cannot contain a call", 4),
        ("loss if n else 2", "an expression cannot contain if and else", 0),
        ("(1, 2)", "an expression cannot contain a tuple here", 0),
        ("loss[0]", "an expression cannot contain brackets", 0),
        ("'a'.upper == 1", "an expression cannot contain this (Attribute)", 0),
        ("n == True", "True is neither a number nor text", 5),
        ("n == 2j", "2j is neither a number nor text", 5),
        ("n is 0", "write == and != where Python would say `is`", 0),
        ("n in best", 'write `in` with values in parentheses: x in ("a", "b")', 5),
        ("n == (1, 2)", 'write `in` with values in parentheses: x in ("a", "b")', 5),
        ("n in (1, 2) == best", "`in` cannot be part of a chain: join comparisons with `and`", 0),
        ("f'{n}' == 1", "an expression cannot contain this (JoinedStr)", 0),
        ("(n := 3) > 1", "an expression cannot contain this (NamedExpr)", 1),
    ],
)
def test_what_is_no_expression_is_refused_with_its_position(text, message, column):
    with pytest.raises(BadValue) as caught:
        compile_expression(text, VALUES)
    assert caught.value.message == message
    shown, underline = caught.value.context
    assert shown == text.strip()
    assert len(underline) - len(underline.lstrip()) == column
    assert "lora.rank == 0" in caught.value.help


def test_what_is_too_long_or_too_deep_is_refused():
    with pytest.raises(BadValue, match="at most 1000 characters, this has 1006"):
        compile_expression("1 > 0 " + "+" * 1000, VALUES)
    with pytest.raises(BadValue, match="nested too deeply"):
        compile_expression("not " * 60 + "n", VALUES)
    with pytest.raises(BadValue, match="this is not an expression"):
        compile_expression("(" * 500 + "n" + ")" * 499, VALUES)
    with pytest.raises(BadValue, match="this is not an expression"):
        compile_expression("n > 1\0", VALUES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer > 3", "'sgd' is not a number, so there is no arithmetic or order with it"),
        ("optimizer * 2 == 3", "'sgd' is not a number"),
        ("(n > 1) + 1 > 2", "False is not a number"),
        ("loss / n > 1", "division by zero"),
        ("loss % n > 1", "modulo"),
    ],
)
def test_mistakes_that_values_show_are_errors_too(text, message):
    with pytest.raises(BadValue, match=message):
        compile_expression(text, VALUES).evaluate(VALUES)


def test_a_name_without_a_value_is_an_error():
    with pytest.raises(BadValue, match="'best' has no value here"):
        compile_expression("best > 1", VALUES).evaluate({})


PIECES = st.sampled_from([*VALUES, "(", ")", ",", "==", "<", "in", "not", "and", "or", "+", "-",
                          "*", "/", "//", "%", "0", "2.5", "'a'", "[", "]", ".", "**", "lambda",
                          "if", "else", "=", "é", "\\", "#", "is"])  # fmt: skip


@given(st.lists(PIECES, max_size=12).map(" ".join) | st.text(max_size=30))
def test_any_text_is_an_expression_or_an_error(text):
    message = "none"
    try:
        compile_expression(text, VALUES).evaluate(VALUES)
    except UsageError as error:
        message = error.message
    assert message
