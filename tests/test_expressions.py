"""The expression language: what it means, what it refuses, and that evaluation is total."""

import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mrp.specs.expression_tree import (
    KEYWORDS,
    Arithmetic,
    Call,
    Comparison,
    Field,
    ListOf,
    Literal,
    Logical,
    Negative,
    Node,
    Not,
    literal,
)
from mrp.specs.expression_values import COMPARISONS, FUNCTIONS
from mrp.specs.expressions import Expression, ExpressionError, parse_condition, parse_expression

FIELDS = {
    "language": "python",
    "instruction": "Write a function.",
    "tags": ["easy", "search"],
    "reward": {"mean": Decimal("0.95"), "n": 24, "se": None},
    "passed": True,
    "float": 0.1,
    "nan": float("nan"),
    "odd name": {"x.y": 5},
    "fields": {"a": 7, "b c": 8},
    "zero": 0,
}


def value(text: str) -> Any:
    return parse_expression(text).evaluate(FIELDS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("language == 'python' and len(instruction) <= 2000", True),
        ("reward.mean >= 0.9", True),
        ("reward.mean >= 0.95", True),
        ("reward.se", None),
        ("reward.se.deeper", None),
        ("missing == null", True),
        ("missing < 1", False),
        ("missing >= 1", False),
        ("null < 1", False),
        ("missing != 1", True),
        ("1 == 'a'", False),
        ("1 == true", False),
        ("1 == 1.0", True),
        ("[1, 'a', null] == [1.0, 'a', null]", True),
        ("[true] == [1]", False),
        ("language < 5", False),
        ("language >= reward.n", False),
        ("'B' < 'a'", True),
        ("float == 0.1", True),
        ("nan == null", True),
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("10 - 4 - 3", 3),
        ("-2 * -3", 6),
        ("--2", 2),
        ("1 / 3", Decimal("0.3333333333333333333333333333333333")),
        ("1 / 0", None),
        ("0 / 0", None),
        ("1 % 0", None),
        ("1 / zero == null", True),
        ("-7 % 3", -1),
        ("missing + 1", None),
        ("language * 2", None),
        ("passed + 1", None),
        ("9e6144 * 10", None),
        ("0.1 + 0.2 == 0.3", True),
        ("'easy' in tags", True),
        ("'hard' not in tags", True),
        ("'eas' in tags", False),
        ("'thon' in language", True),
        ("'mean' in reward", True),
        ("1 in missing", False),
        ("1 not in missing", True),
        ("not passed", False),
        ("not missing", True),
        ("not language", True),
        ("language or passed", True),
        ("language and passed", False),
        ("passed or missing and missing", True),
        ("not missing and not language", True),
        ("len(tags)", 2),
        ("len('añ')", 2),
        ("len(reward.n)", None),
        ("lower('ABC')", "abc"),
        ("upper(language)", "PYTHON"),
        ("upper(missing)", None),
        ("startswith(language, 'py')", True),
        ("endswith(language, 'py')", False),
        ("startswith(missing, 'py')", False),
        ("contains(tags, 'easy')", True),
        ("contains(language, 'tho')", True),
        ("contains(missing, 1)", False),
        (r"matches(instruction, 'fun\w+\.$')", True),
        ("matches(instruction, '^function')", False),
        ("matches(instruction, language)", False),
        ("matches('x', missing)", False),
        ("min(3, 1.5, 2)", Decimal("1.5")),
        ("max([3, 1.5, 2])", 3),
        ("max(tags)", "search"),
        ("min([])", None),
        ("min(1, 'a')", None),
        ("min(1, missing)", None),
        ("abs(-3)", 3),
        ("round(2.5)", 2),
        ("round(3.5)", 4),
        ("round(2.345, 2)", Decimal("2.34")),
        ("round(1250, -2)", 1200),
        ("round(1, 0.5)", None),
        ("round(1, 1e9)", None),
        ("fields['odd name']['x.y']", 5),
        ("fields.a", 7),
        ("fields['fields']['b c']", 8),
        ("reward['mean'] == reward.mean", True),
        ("'it\\'s' == \"it's\"", True),
        (r"'\u0041\n\t\\' == 'A" + r"\n\t\\'", True),
        (r"len('\d')", 2),
    ],
)
def test_what_expressions_mean(text: str, expected: Any) -> None:
    found = value(text)
    assert found == expected
    assert isinstance(found, bool) == isinstance(expected, bool)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 1, "the expression is empty"),
        (" \n ", 1, "the expression is empty"),
        ("a ==", 5, "the expression ends too early"),
        ("a = 1", 3, "`=` does not fit here (to compare, write `==`)"),
        ("a && b", 3, "`&` does not fit here (write `and`)"),
        ("!a", 1, "`!` does not fit here (write `not` or `!=`)"),
        ("a b", 3, "`b` does not fit here"),
        (".5 < a", 1, "`.` does not fit here"),
        ("a == 'abc", 6, "the text that ' opens is not closed"),
        ("a == 1x", 7, "`x` does not fit here"),
        ("a.b.", 5, "the expression ends too early"),
        ("rows[0] == 1", 6, "`0` does not fit here"),
        ("1 < 'a'", 3, "a number and text have no order"),
        ("'a' >= 1", 5, "text and a number have no order"),
        ("true < false", 1, "`<` needs a number or text, and this is true or false"),
        ("[1] < [2]", 1, "`<` needs a number or text, and this is a list"),
        ("not 5", 5, "`not` needs true or false, and this is a number"),
        ("a and 'b'", 7, "`and` needs true or false, and this is text"),
        ("a or len(b)", 6, "`or` needs true or false, and this is a number"),
        ("1 + 'a'", 5, "`+` needs a number, and this is text"),
        ("'a' * 2", 1, "`*` needs a number, and this is text"),
        ("-(a == b)", 5, "`-` needs a number, and this is true or false"),
        ("a in 5", 6, "the right side of `in` needs text or a list or an object, and this is a number"),
        ("5 in 'a5'", 3, "a number cannot be in text (write the value as text, or look in a list)"),
        ("contains('a5', 5)", 1, "a number cannot be in text (write the value as text, or look in a list)"),
        ("leng(a)", 1, "`leng` is not a function (did you mean `len`?)"),
        ("len()", 1, "`len` takes 1 value in its brackets, not 0"),
        ("round(1, 2, 3)", 1, "`round` takes 1 or 2 values in its brackets, not 3"),
        ("min()", 1, "`min` takes 1 or more values in its brackets, not 0"),
        ("lower(5)", 7, "`lower` needs text, and this is a number"),
        ("matches(a, '(b')", 12, "the pattern is wrong: missing ): (b (patterns are RE2)"),
        ("a < b < c", 7, "comparisons cannot be chained (write `a < b and b < c`, or use brackets)"),
        ("a == True", 6, "`True` is not a word of the language (write `true`, or fields['True'] for the field)"),
        ("1" * 35, 1, "the number has more than 34 digits"),
        ("a < 1e6145", 5, "`1e6145` has an exponent beyond 6144"),
        (r"'\ud800'", 2, r"`\ud800` names no character"),
        (r"a == 'x\u00g0'", 8, r"`\u` names no character"),
    ],
)
def test_what_is_refused_and_where(text: str, column: int, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse_expression(text)
    assert caught.value.column == column
    assert str(caught.value).startswith(f"column {column}: {message}")


@pytest.mark.parametrize(
    "text",
    ["(" * 101 + "a" + ")" * 101, "not " * 101 + "a", "-" * 101 + "1", "[" * 200, "len(" * 101 + "a" + ")" * 101],
)
def test_more_than_100_levels_are_refused(text: str) -> None:
    with pytest.raises(ExpressionError, match="more than 100"):
        parse_expression(text)


def test_100_levels_and_long_chains_are_fine() -> None:
    assert parse_expression("(" * 100 + "passed" + ")" * 100).evaluate(FIELDS) is True
    assert parse_expression("+".join(["1"] * 5000)).evaluate({}) == 5000
    assert parse_expression(" or ".join(["missing"] * 900 + ["passed"])).evaluate(FIELDS) is True


def test_more_than_10000_characters_are_refused() -> None:
    with pytest.raises(ExpressionError, match="10002 characters, more than 10000"):
        parse_expression("a" + " " * 10_001)


def test_checking_nested_membership_takes_linear_time() -> None:
    text = "1 in [" * 49 + "2" + "]" * 49
    assert parse_expression(text).evaluate({}) is False


def test_a_condition_must_be_able_to_be_true() -> None:
    assert parse_condition("passed").holds(FIELDS)
    assert not parse_condition("language").holds(FIELDS)
    with pytest.raises(ExpressionError, match="a condition is expected, and this is always a number"):
        parse_condition("len(a) + 1")


def test_names_are_the_fields_that_are_read() -> None:
    expression = parse_expression("reward.mean > 1 and len(language) < min(reward.n, fields['odd name']) or true")
    assert expression.names() == {"reward.mean", "language", "reward.n", "odd name"}
    assert ("odd name",) in expression.paths()


def test_equal_readings_are_equal_expressions() -> None:
    assert parse_expression("a  ==\n1.0") == parse_expression("a == 1")
    assert parse_expression("a == 1") != parse_expression("a == true")
    assert str(parse_expression("(a and (b)) or not(c == -1)")) == "a and b or not c == -1"


def test_whole_numbers_too_long_to_print_are_numbers_still() -> None:
    fields = {"n": 10**5000}
    assert parse_expression("n > 9e6000 or n == n and n > 1").evaluate(fields) is True
    assert parse_expression("n * n").evaluate(fields) is None


def test_slow_patterns_are_answered_quickly() -> None:
    fields = {"text": "a" * 50_000 + "!"}
    assert parse_expression("matches(text, '(a+)+$')").evaluate(fields) is False


def test_nothing_heavy_is_loaded_before_an_expression_is_parsed() -> None:
    code = "import sys, mrp.specs.expressions; print({'lark', 're2', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# -- for all expressions and all fields ---------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8"), max_size=6)
names = st.sampled_from(["a", "b", "fields", "reward"]) | texts.filter(lambda name: name not in KEYWORDS)
decimals = st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=0, max_value=10**12)
literals = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(0, 10**33),
    decimals,
    st.just(Decimal("1e6144")),
    st.just(Decimal("1e-6144")),
    texts,
).map(literal)
paths = st.lists(names, min_size=1, max_size=3).map(tuple).map(Field)


def calls(nodes: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    def arguments(name: str) -> st.SearchStrategy[Node]:
        function = FUNCTIONS[name]
        most = function.least + 2 if function.most is None else function.most
        return st.lists(nodes, min_size=function.least, max_size=most).map(lambda found: Call(name, tuple(found)))

    return st.sampled_from(sorted(FUNCTIONS)).flatmap(arguments)


def bigger(nodes: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    some = st.lists(nodes, min_size=2, max_size=3).map(tuple)

    def chain(operators: str) -> st.SearchStrategy[Node]:
        rest = st.lists(st.tuples(st.sampled_from(operators), nodes), min_size=1, max_size=3).map(tuple)
        return st.builds(Arithmetic, nodes, rest)

    return st.one_of(
        st.builds(Not, nodes),
        st.builds(Negative, nodes),
        st.builds(Comparison, st.sampled_from(sorted(COMPARISONS)), nodes, nodes),
        st.builds(Logical, st.sampled_from(["and", "or"]), some),
        chain("+-"),
        chain("*/%"),
        st.lists(nodes, max_size=3).map(tuple).map(ListOf),
        calls(nodes),
    )


nodes: st.SearchStrategy[Node] = st.recursive(literals | paths, bigger, max_leaves=12)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.decimals()
    | st.sampled_from([Decimal("1e999999"), Decimal("-1e-999999"), Decimal("sNaN"), 10**4000, b"bytes", object()])
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
fields = st.dictionaries(names, values, max_size=5)


@given(nodes)
def test_what_is_printed_reads_the_same(node: Node) -> None:
    try:
        parsed = parse_expression(str(Expression(node)))
    except ExpressionError as error:
        # Types and patterns may be wrong in a random tree; its text may not.
        assert any(word in error.message for word in ("needs", "no order", "cannot be in", "pattern")), error
        return
    assert parsed.root == node
    assert parse_expression(str(parsed)) == parsed


@given(nodes, fields)
@example(Arithmetic(Field(("a",)), (("%", literal(3)),)), {"a": Decimal("1e999999")})
@example(Call("round", (Field(("a",)), Field(("b",)))), {"a": 1, "b": Decimal("-1e-999999")})
@example(Call("round", (literal(1), Field(("b",)))), {"b": Decimal("1e999999")})
@example(Call("matches", (Field(("a",)), literal("x"))), {"a": "\ud800"})
@example(Call("matches", (literal("x"), Field(("a",)))), {"a": "\ud800("})
def test_evaluation_never_raises(node: Node, fields: dict[str, Any]) -> None:
    found = Expression(node).evaluate(fields)
    assert not isinstance(found, float)
    if isinstance(node, Comparison | Logical | Not):
        assert isinstance(found, bool)
    if isinstance(node, Arithmetic | Negative):
        assert found is None or (isinstance(found, Decimal) and found.is_finite())


@given(st.text("ab.'\\()[]<>=!+-*/% 01eE,nottrue\n\"", max_size=30), fields)
def test_any_text_is_parsed_or_refused_with_a_place(text: str, fields: dict[str, Any]) -> None:
    try:
        expression = parse_expression(text)
    except ExpressionError as error:
        assert 1 <= error.column <= len(text) + 1
        return
    expression.evaluate(fields)
    assert parse_expression(str(expression)) == expression


@given(values, values)
def test_equality_and_order_are_consistent(left: Any, right: Any) -> None:
    both = {"l": left, "r": right}

    def holds(text: str) -> bool:
        return parse_expression(text).holds(both)

    assert holds("l == r") == holds("r == l") == (not holds("l != r"))
    assert holds("l == l")
    assert holds("l <= r") == (holds("l < r") or (holds("l == r") and holds("l <= l")))
    assert holds("l < r") == holds("r > l")


def test_a_literal_knows_true_from_1() -> None:
    assert Literal(True, "boolean") != Literal(1, "number")
