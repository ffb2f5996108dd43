"""Each label has one canonical text; patterns take what they say; what is no label is told where and why."""

import re
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mrp.specs import label_text, labels
from mrp.specs.labels import Label, LabelError, encode_text, parse_label, parse_pattern, parse_patterns

CANONICAL = {
    "//p/q:n": "//p/q:n",
    "//p": "//p:p",
    "//p/q.r": "//p/q.r:q.r",
    "//:n": "//:n",
    ":n": "//here:n",
    "builtin:pass_at_k": "builtin:pass_at_k",
    "//.hidden/_x:n": "//.hidden/_x:n",
    "//jobs:solve@temperature=0.70,agent=builtin:nop": "//jobs:solve@agent=builtin:nop,temperature=0.7",
    "//jobs:solve@a=1e2,b=-0.0,c=007,d=,e=1.": "//jobs:solve@a=100,b=0,c=007,d=,e=1.",
    "//data:tasks@split=test": "//data:tasks@split=test",
    "//jobs:solve[HumanEval/3]": "//jobs:solve[HumanEval/3]",
    "//jobs:solve[task-17#2]": "//jobs:solve[task-17#2]",
    "//jobs@x=a%2Cb[a b,c@d=e%23]": "//jobs:jobs@x=a%2Cb[a%20b%2Cc%40d%3De%23]",
    "//jobs:solve[%61%2f]": "//jobs:solve[a/]",
    "//jobs:solve[日本é]": "//jobs:solve[日本é]",
    ":solve[x]": "//here:solve[x]",
}


@pytest.mark.parametrize("text", CANONICAL)
def test_every_spelling_has_one_canonical_text(text: str) -> None:
    label = parse_label(text, "here")
    assert str(label) == CANONICAL[text]
    assert parse_label(str(label)) == label


def test_a_bare_name_is_a_label_only_where_nothing_else_fits() -> None:
    assert str(parse_label("solve", "jobs", bare=True)) == "//jobs:solve"
    assert str(parse_label("solve@a=1", "jobs", bare=True)) == "//jobs:solve@a=1"
    with pytest.raises(LabelError, match=re.escape("`solve` is not a label; did you mean `:solve`?")):
        parse_label("solve", "jobs")


USUAL = "write //package:name, or :name in the same package"
WRONG = {
    "": (1, f"a label is empty; {USUAL}"),
    " //p:n": (1, "` //p:n` is not a label; remove the spaces around it"),
    "//p:n ": (6, "`//p:n ` is not a label; remove the spaces around it"),
    "jobs:n": (1, "`jobs:n` is not a label; did you mean `//jobs:n`?"),
    "/jobs:n": (1, "`/jobs:n` is not a label; did you mean `//jobs:n`?"),
    "//a/../b:n": (5, f"`//a/../b:n` is not a label: it climbs out of the workspace; {USUAL}"),
    "//jobs:so lve": (10, f"`//jobs:so lve` is not a label: ` ` cannot stand in column 10; {USUAL}"),
    "//a//b:c": (4, f"`//a//b:c` is not a label: `/` cannot stand in column 4; {USUAL}"),
    "//p:": (5, f"`//p:` is not a label: it ends too early; {USUAL}"),
    "//p:n@1=2": (7, f"`//p:n@1=2` is not a label: `1` cannot stand in column 7; {USUAL}"),
    "//p:n@a=1,a=2": (1, "`//p:n@a=1,a=2` gives the axis `a` twice; remove one of the two"),
    "//p:n[x": (8, "`//p:n[x` is not a label: it ends too early; close the `[`"),
    "//p:n[]": (7, "`//p:n[]` is not a label: `]` cannot stand in column 7; write an id between [ and ]"),
    "//p:n[a%2]": (8, "`//p:n[a%2]` is not a label: `%` cannot stand in column 8; in an id write %25 for it"),
    "//p:n[x#01]": (10, "`//p:n[x#01]` is not a label: `1` cannot stand in column 10; "
                        "a sample is a whole number, like #2"),
    "//p:n[x]y": (9, "`//p:n[x]y` is not a label: `y` cannot stand in column 9; nothing may follow the item"),
    "//p:n[%ff]": (1, "`//p:n[%ff]` holds percent-encoded bytes that are not UTF-8; encode characters as UTF-8"),
    "//_x": (1, "`//_x` means a target `_x`, which is no name; write the name after `:`"),
    "//...": (1, "`//...` is not a label but a pattern for several; name one target"),
    "//p:n*": (1, "`//p:n*` is not a label but a pattern for several; name one target"),
    "//p:" + "n" * 129: (1, "`//p:" + "n" * 36 + "...` has a name of 129 characters; at most 128 are allowed"),
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:20])
def test_what_is_no_label_is_told_where_and_why(text: str) -> None:
    with pytest.raises(LabelError) as raised:
        parse_label(text)
    assert (raised.value.column, str(raised.value)) == WRONG[text]


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,8}", fullmatch=True)
components = st.from_regex(r"\.?[A-Za-z0-9_+-][A-Za-z0-9_.+-]{0,5}", fullmatch=True)
packages = st.lists(components, max_size=3).map("/".join)
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
axis_values = anything | st.integers() | st.decimals(allow_nan=False, allow_infinity=False) | st.booleans() | st.none()
cells = st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,5}", fullmatch=True), axis_values, max_size=3)


@st.composite
def any_label(draw: st.DrawFn) -> Label:
    label = Label(draw(packages), draw(names)).of_cell(draw(cells))
    record = draw(st.none() | anything.filter(len))
    return label if record is None else label.item(record, draw(st.none() | st.integers(0, 999_999_999)))


@given(any_label())
def test_a_label_survives_its_text(label: Label) -> None:
    assert parse_label(str(label)) == label
    assert str(parse_label(str(label))) == str(label)


@given(any_label())
def test_the_canonical_text_needs_no_quotes_and_no_second_look(label: Label) -> None:
    text = str(label)
    assert text.isprintable()
    assert not set(text) & set(" '\"$`\\*?!&|;<>(){}")


@given(st.lists(any_label(), max_size=6))
def test_labels_have_a_total_order_that_agrees_with_equality(found: list[Label]) -> None:
    ordered = sorted(found)
    assert all(a <= b for a, b in pairwise(ordered))
    assert all((a == b) == (not a < b and not b < a) for a in found for b in found)


def test_samples_are_ordered_as_numbers() -> None:
    item = parse_label("//p:n[x]")
    assert sorted([item.item("x", 10), item.item("x", 9), item]) == [item, item.item("x", 9), item.item("x", 10)]


pieces = st.sampled_from(
    ["//", ":", "/", "...", ".", "..", "-", "@", "=", ",", "[", "]", "#", "%4A", "%", "*", "?", " ", "builtin:", "é"]
)
label_like = st.lists(pieces | names | packages | st.text("ab0_/%", max_size=3), max_size=9).map("".join)


@pytest.mark.parametrize("what", ["label", "pattern"])
@given(text=label_like | any_label().map(str) | st.text(max_size=6))
@example("//...:x")
@example("//a/.:x")
@example("//a/.b...")
@example("//p:n@a=,b=%41[x#0]")
@example("-//a*/?/...")
@example("//p:n\n")
@example("//p:n[a\nb]")
def test_what_is_found_without_the_grammar_agrees_with_it(what: str, text: str) -> None:
    try:
        by_grammar = label_text.parse(text, what)
    except LabelError:
        by_grammar = None
    assert label_text.scan(text, what) == by_grammar


@given(packages)
def test_patterns_of_all_below_agree_with_the_grammar(package: str) -> None:
    text = f"//{package}/..." if package else "//..."
    assert label_text.parse(text, "pattern") == label_text.Parts("below", package)
    assert parse_pattern(text) == labels.Pattern(text, package, below=True)


def test_encoding_leaves_what_people_read() -> None:
    assert encode_text("HumanEval/3") == "HumanEval/3"
    assert encode_text("a b#c[d]%é") == "a%20b%23c%5Bd%5D%25é"
    assert encode_text("😀") == "%F0%9F%98%80"


def test_parts_of_a_label() -> None:
    label = parse_label("//jobs:solve@a=1[x#2]")
    assert str(label.target) == "//jobs:solve"
    assert str(label.task) == "//jobs:solve@a=1"
    assert str(label.target.of_cell({"b": True, "a": Decimal("0.70"), "c": None})) == "//jobs:solve@a=0.7,b=true,c=null"
    assert str(label.task.item("y")) == "//jobs:solve@a=1[y]"


TAKES = {
    "//...": ["//:n", "//p:n", "//p/q:n@a=1[x#2]"],
    "//p/...": ["//p:n", "//p/q:n[x]"],
    "//p:all": ["//p:n", "//p:all", "//p:n[x]"],
    ":all": ["//here:x"],
    "//p": ["//p:p", "//p:p@a=1", "//p:p[x]"],
    "//p:n": ["//p:n", "//p:n@a=1", "//p:n@a=1[x]"],
    "//p:n@a=0.70": ["//p:n@a=0.7", "//p:n@a=0.7,b=2", "//p:n@a=0.7[x]"],
    "//p:n[x]": ["//p:n[x]", "//p:n[x#3]", "//p:n@a=1[x]"],
    "//p:n[x#3]": ["//p:n[x#3]"],
    "//p:n[HumanEval/*]": ["//p:n[HumanEval/1]", "//p:n[HumanEval/a/b#0]"],
    "//p:n[a%20?]": ["//p:n[a%20b]"],
    "//p:ev*": ["//p:ev", "//p:eval"],
    "//*/q:n": ["//p/q:n", "//x/q:n"],
    "builtin:*": ["builtin:nop"],
}
LEAVES = {
    "//...": ["builtin:nop"],
    "//p/...": ["//:n", "//pq:n", "//q/p:n"],
    "//p:all": ["//p/q:n", "//:n"],
    ":all": ["//p:n"],
    "//p": ["//p:n", "//p/p:p"],
    "//p:n": ["//p:nn", "//p/q:n"],
    "//p:n@a=0.70": ["//p:n", "//p:n@a=0.71", "//p:n@b=0.7"],
    "//p:n[x]": ["//p:n", "//p:n[y]"],
    "//p:n[x#3]": ["//p:n[x]", "//p:n[x#4]"],
    "//p:n[HumanEval/*]": ["//p:n[MBPP/1]", "//p:n"],
    "//p:n[a%20?]": ["//p:n[a%20]", "//p:n[ab]"],
    "//p:ev*": ["//p:x", "//q:ev"],
    "//*/q:n": ["//p/x/q:n", "//q:n"],
    "builtin:*": ["//p:nop"],
}


@pytest.mark.parametrize("text", TAKES)
def test_a_pattern_takes_what_it_says(text: str) -> None:
    pattern = parse_pattern(text, "here")
    assert [label for label in TAKES[text] if not pattern.matches(parse_label(label))] == []
    assert [label for label in LEAVES[text] if pattern.matches(parse_label(label))] == []


def test_a_pattern_without_globs_names_one_label() -> None:
    assert str(parse_pattern("//p:n@a=0.70[x]").label) == "//p:n@a=0.7[x]"
    assert str(parse_pattern("//p:all").label) == "//p:all"
    assert parse_pattern("//p:n*").label is None
    assert parse_pattern("//p/...").label is None


def test_a_pattern_of_items_names_the_tasks_that_hold_them() -> None:
    task = parse_pattern("//p:n@a=1[x*#2]").task
    assert task.matches(parse_label("//p:n@a=1"))
    assert not task.matches(parse_label("//p:n@a=2"))


def test_a_minus_leaves_out_wherever_it_stands() -> None:
    for texts in (["//p/...", "-//p:slow", "-//p/q:all"], ["-//p:slow", "-//p/q:all", "//p/..."]):
        patterns = parse_patterns(texts)
        assert patterns.matches(parse_label("//p:n"))
        assert not patterns.matches(parse_label("//p:slow"))
        assert not patterns.matches(parse_label("//p/q:n"))


def test_patterns_that_only_leave_out_are_refused() -> None:
    with pytest.raises(LabelError, match=re.escape("all patterns leave out, so that nothing is left; put `//...`")):
        parse_patterns(["-//p:n"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("...", "`...` is not a pattern; did you mean `//...`?"),
        ("p/...", "`p/...` is not a pattern; did you mean `//p/...`?"),
        ("//p/...:n", f"`//p/...:n` is not a pattern: `:` cannot stand in column 8; {USUAL}"),
        ("--//p:n", f"`--//p:n` is not a pattern: `-` cannot stand in column 2; {USUAL}"),
    ],
)
def test_what_is_no_pattern_is_told(text: str, message: str) -> None:
    with pytest.raises(LabelError) as raised:
        parse_pattern(text)
    assert str(raised.value) == message
