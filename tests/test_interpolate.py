from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrp.rules.interpolate import TemplateError, parse_template, value_text


def test_a_name_is_replaced_by_its_value() -> None:
    template = parse_template("solve ${record.task.name} with seed ${seed}\n")
    assert template.names() == ("record.task.name", "seed")
    assert template.render({"record": {"task": {"name": "f"}}, "seed": 7}) == "solve f with seed 7\n"


def test_a_name_used_twice_is_named_once() -> None:
    template = parse_template("${b}${a}${b}")
    assert template.names() == ("b", "a")
    assert template.render({"a": 1, "b": 2}) == "212"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a $b ${c}", "a $b ${c}"),
        (7, "7"),
        (Decimal("0.70"), "0.7"),
        (True, "true"),
        (False, "false"),
        (None, ""),
        ([1, Decimal("2.50"), "x"], '[1,2.5,"x"]'),
        ({"b": None, "a": "é"}, '{"a":"é","b":null}'),
    ],
)
def test_values_have_one_spelling(value: object, text: str) -> None:
    assert value_text(value) == text
    assert parse_template("<${x}>").render({"x": value}) == f"<{text}>"


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("$${x}", "${x}"),
        ("$$${x}", "$${x}"),
        ("cost $5 and $$", "cost $5 and $$"),
        ("$x {x}", "$x {x}"),
        ("", ""),
        ("$${${x}}", "${1}"),
    ],
)
def test_only_a_dollar_and_a_brace_open_a_name(text: str, rendered: str) -> None:
    assert parse_template(text).render({"x": 1}) == rendered


@pytest.mark.parametrize(
    ("text", "column", "word"),
    [
        ("ab ${x", 4, "no closing"),
        ("${}", 1, "`${}`"),
        ("${a b}", 1, "`${a b}`"),
        ("${a}${.b}", 5, "`${.b}`"),
        ("${a..b}", 1, "`${a..b}`"),
        ("${1a}", 1, "`${1a}`"),
        ("${a\n}", 1, "is no name"),
    ],
)
def test_a_malformed_name_is_an_error_with_its_column(text: str, column: int, word: str) -> None:
    with pytest.raises(TemplateError) as caught:
        parse_template(text)
    assert caught.value.column == column
    assert word in caught.value.message


def test_a_missing_name_is_an_error_that_says_where_it_ends() -> None:
    template = parse_template("${record.task.nmae}")
    with pytest.raises(TemplateError) as caught:
        template.render({"record": {"task": {"name": "f"}}})
    assert caught.value.message == "`${record.task.nmae}`: record.task has no `nmae`"
    with pytest.raises(TemplateError) as caught:
        parse_template("${seed}").render({})
    assert caught.value.message == "`${seed}`: the scope has no `seed`"


@given(st.text(alphabet="${}ax.\n"))
def test_any_text_can_be_escaped_and_comes_back(text: str) -> None:
    assert parse_template(text.replace("${", "$${")).render({}) == text


@given(st.text(alphabet="${}ax._-\n"))
def test_any_text_parses_or_says_where_it_is_wrong(text: str) -> None:
    try:
        template = parse_template(text)
    except TemplateError as error:
        assert text.startswith("${", error.column - 1)
    else:
        assert all(part in text for part in template.names())
