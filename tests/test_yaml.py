"""YAML is read exactly, with the place of everything, and what would have to be guessed is refused."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.diagnostics import syntax_errors

from mrp.specs.errors import Diagnostic, Span, SpecError
from mrp.specs.yaml import Sources, key_span_at, node_from_json, node_to_json, parse_yaml, plain, span_at


def read(text: str) -> object:
    return plain(parse_yaml(text.encode(), "f.yaml"))


def test_scalars_mean_what_yaml_1_2_says() -> None:
    text = """
    nulls: [null, ~, Null, NULL]
    truth: [true, True, TRUE, false, False, FALSE]
    texts: [yes, no, on, off, y, 2024-01-01, 12:30, 1_000, nulL, "1", 'true', "", +, -x]
    whole: [0, -0, +7, 42, -42, 0x1F, 0o17]
    fractions: [0.70, 1., .5, -1e3, 1.5E-7]
    """
    assert read(text) == {
        "nulls": [None] * 4,
        "truth": [True] * 3 + [False] * 3,
        "texts": ["yes", "no", "on", "off", "y", "2024-01-01", "12:30", "1_000", "nulL", "1", "true", "", "+", "-x"],
        "whole": [0, 0, 7, 42, -42, 31, 15],
        "fractions": [Decimal(t) for t in ("0.70", "1", "0.5", "-1e3", "1.5E-7")],
    }


def test_numbers_are_exact() -> None:
    value = read("x: 0.1000000000000000000000000000000000000000001")
    assert value == {"x": Decimal("0.1000000000000000000000000000000000000000001")}
    assert read("x: 123456789012345678901234567890") == {"x": 123456789012345678901234567890}


def test_an_empty_document_is_null() -> None:
    for text in ("", "\n", "# nothing\n", "---\n"):
        assert read(text) is None


def test_a_byte_order_mark_is_passed_over() -> None:
    node = parse_yaml(b"\xef\xbb\xbfa: 1", "f.yaml")
    assert plain(node) == {"a": 1}
    assert node.key_spans["a"] == Span("f.yaml", 1, 1, 2)


def test_every_key_and_value_has_its_place() -> None:
    node = parse_yaml("mrp: 1\nä: {list: [a, 'b c'], 日: x}\nlong: |\n  text\n".encode(), "p/BUILD.yaml")
    assert key_span_at(node, ["ä"]) == Span("p/BUILD.yaml", 2, 1, 2)
    assert span_at(node, ["mrp"]) == Span("p/BUILD.yaml", 1, 6, 7)
    assert span_at(node, ["ä", "list", 1]) == Span("p/BUILD.yaml", 2, 15, 20)
    assert key_span_at(node, ["ä", "日"]) == Span("p/BUILD.yaml", 2, 23, 24)
    assert span_at(node, ["long"]) == Span("p/BUILD.yaml", 3, 7, 0)


def test_a_place_that_does_not_exist_is_the_nearest_one_around_it() -> None:
    node = parse_yaml(b"a: {b: [1]}", "f.yaml")
    assert span_at(node, ["a", "b", 5]) == span_at(node, ["a", "b"])
    assert key_span_at(node, ["a", "c"]) is None
    assert key_span_at(node, ["a", "b", 0]) is None


REFUSED = {
    "a: &x 1": ["1:4 the anchor `&x` is not part of the language | delete it"],
    "a: *x": ["1:4 the alias `*x` is not part of the language | write the value out"],
    "<<: {a: 1}": ["1:1 the merge key `<<` is not part of the language | write the fields out"],
    "a: !!str 1": ["1:4 the tag `!!str` is not part of the language | delete it; write a text in quotes"],
    "a: !x {b: 1}": ["1:4 the tag `!x` is not part of the language | delete it; write a text in quotes"],
    "a: !e!x y": ["1:4 the tag `!e!x` is not part of the language | delete it; write a text in quotes"],
    "a: 1\nb: 2\na: 3": ["3:1 `a` is written twice here; the first is in line 1 | remove one of the two"],
    "1: x": ['1:1 the key `1` is not text | write "1" with quotes'],
    "true: x": ['1:1 the key `true` is not text | write "true" with quotes'],
    "{[a]: b}": ["1:2 a list or mapping cannot be a key | write the key as text"],
    "?\n: b": ['1:2 a key is missing before `:` | write a key; write "" for the empty text'],
    "a: 1\n---\nb: 2": [
        "2:1 a second document starts here; a file holds one | move it to a file of its own, or delete the `---`"
    ],
    "%YAML 1.1\n---\na: 1": ["1:1 `%` directives are not part of the language | delete the line"],
    "%FOO\n---\na: 1": ["1:5 `%` directives are not part of the language | delete the line"],
    "a: 007": ['1:4 a number cannot start with 0: write "007" with quotes, or without the zeros'],
    "a: .nan": ["1:4 `.nan` is not a number that a result can depend on; write a finite one, or null"],
    "a: -.inf": ["1:4 `-.inf` is not a number that a result can depend on; write a finite one, or null"],
    "a: 1e1001": ["1:4 the exponent of `1e1001` is beyond 1000; write the number as text in quotes"],
    "a: " + "1" * 401: ["1:4 a number of 401 digits; at most 400 are read, so write it as text in quotes"],
    'a: "x\\0y"': ['1:4 the character "\\0" is not allowed in a text | leave it out'],
    "a: {b:c}": ["1:5 `b:c` is one word to YAML, with nothing after it | write `b: c` with a space, or quote it"],
    "of: [:a, :b]": ['1:6 YAML forbids a bare `:a` inside [ ] and { } | write it with quotes: ":a"'],
    "t: {over: :tasks}": ['1:11 YAML forbids a bare `:tasks` inside [ ] and { } | write it with quotes: ":tasks"'],
    "[" * 101: ["1:101 values are nested more than 100 levels deep | flatten them"],
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:20])
def test_what_would_have_to_be_guessed_is_refused(text: str) -> None:
    assert syntax_errors(text) == REFUSED[text]


INDENT = "check the indentation of this line and of the one before"
BROKEN = {
    "a: b: c": "1:5 a second `:` in one value | put the text in quotes, or start the mapping on a line of its own",
    "a: 1\n  b: 2": f"2:4 a key cannot stand here | {INDENT}; a `:` needs a space after it",
    "a:\n\tb: 1": "2:1 a tab cannot indent | use spaces",
    "a:\n  b: 1\n\tc: 2": "3:1 a tab cannot indent | use spaces",
    "a: |\n\tx": "2:1 a tab cannot indent | use spaces",
    "a: [1, 2": "1:4 `[` is opened here, but `]` or `,` does not follow in line 2 | "
    "close it, or quote what stands inside",
    "a: {x: 1\nb: 2": "1:4 `{` is opened here, but `}` or `,` does not follow in line 2 | "
    "close it, or quote what stands inside",
    "a: 'x": "1:4 a quote is opened here and never closed | close it",
    "a: 'it's'": "1:8 nothing may follow the value before this | put the whole value in one pair of quotes",
    "a: @x": "1:4 `@` cannot start a value | put the text in quotes",
    "a: `x`": "1:4 a backquote cannot start a value | put the text in quotes",
    "a: ]": "1:4 a value is missing before `]` | put the text in quotes",
    'a: "\\d"': "1:5 `\\d` is no escape in a double-quoted text | use single quotes, or double the backslash",
    'a: "\\ud800"': "1:7 the escape names no character | write `\\\\` for a backslash",
    "l:\n- a\n-b": "3:1 `-b` starts a line here, but no `:` follows it | an item of a list needs a space: `- b`",
    "a: 1\nword": "2:1 `word` starts a line here, but no `:` follows it | "
    "write `key: value`, or indent the line if it continues the one before",
    "a:\n  - x\n b: 1": f"3:2 this line does not fit the mapping around it | {INDENT}",
    "- a\nb: 1": f"2:1 this line is neither an item of the list around it nor its end | {INDENT}",
    "a: - b": "1:4 a list cannot start here | start it on a line of its own, or write it as [a, b]",
}


@pytest.mark.parametrize("text", BROKEN)
def test_an_error_of_syntax_is_one_plain_sentence_and_a_next_step(text: str) -> None:
    assert syntax_errors(text) == [BROKEN[text]]


def test_all_that_is_refused_in_a_file_is_reported_up_to_its_error_of_syntax() -> None:
    text = "a: &x 1\nb: *x\na: 2\n<<: {}\n1: one\nc: [d\n"
    assert [line.split()[0] for line in syntax_errors(text)] == ["1:4", "2:4", "3:1", "4:1", "5:1", "6:4"]


def test_billion_laughs_die_at_their_aliases() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    errors = syntax_errors("\n".join(lines))
    assert errors[:2] == [
        "1:4 the anchor `&a` is not part of the language | delete it",
        "2:4 the anchor `&b` is not part of the language | delete it",
    ]
    assert len(errors) == 9 + 8, "each anchor and each alias is named once"


def test_a_file_full_of_errors_gives_a_hundred_and_stops() -> None:
    assert len(syntax_errors("a: 1\n" * 5000)) == 100


BYTES = {
    b"a: 1\nb: \xff": "2:4 the byte 0xff is not UTF-8 | save the file as UTF-8",
    b"\xef\xbb\xbfa: \xe9": "1:4 the byte 0xe9 is not UTF-8 | save the file as UTF-8",
    "a: 1".encode("utf-16"): "1:1 the byte 0xff is not UTF-8 | save the file as UTF-8",
    b"a: x\0": "1:5 the control character U+0000 is not allowed | is this a text file?",
    b"a: 1\nb: \x1b[0m": '2:4 the control character U+001B is not allowed | write it as "\\u001b" in double quotes',
    "a: \x85b".encode(): '1:4 the control character U+0085 is not allowed | write it as "\\u0085" in double quotes',
    "a: b\u2028c".encode(): '1:5 the control character U+2028 is not allowed | write it as "\\u2028" in double quotes',
    b"x" * 1_000_000: "1:1 a line of 1000000 characters; at most 100000 are read | keep data in data files",
    b"a: 1\n" * 4_000_000: "1:1 the file has 20000000 bytes; at most 16777216 are read | "
    "split the package, or keep data in data files",
}


@pytest.mark.parametrize("data", BYTES, ids=lambda data: repr(data[:12]))
def test_bytes_that_are_no_text_are_refused_with_their_place(data: bytes) -> None:
    assert syntax_errors(data) == [BYTES[data]]


def test_an_error_shows_its_line_with_a_caret() -> None:
    with pytest.raises(SpecError) as raised:
        parse_yaml("x: 日本\ny: {名: &anchor 1}".encode(), "p/BUILD.yaml")
    assert str(raised.value) == (
        "p/BUILD.yaml:2:8: error: the anchor `&anchor` is not part of the language\n"
        "  y: {名: &anchor 1}\n"
        "          ^^^^^^^\n"
        "  delete it"
    )


def test_a_shown_line_cannot_drive_the_terminal() -> None:
    sources = Sources({"f": b"a: \x1b[31mred"})
    assert "\x1b" not in sources.diagnostic(Span("f", 1, 1, 2), "no").render()


def test_a_long_line_is_shown_around_the_word() -> None:
    line = "x" * 500 + "WORD" + "y" * 500
    shown = Diagnostic(Span("f", 1, 501, 505), "no", source=line).render().splitlines()
    start = shown[2].index("^")
    assert shown[1][start : start + 4] == "WORD"
    assert shown[2].strip() == "^^^^"
    assert len(shown[1]) < 200


def test_line_ends_of_every_kind_count_the_same() -> None:
    for end in ("\n", "\r\n", "\r"):
        node = parse_yaml(f"a: 1{end}b: 2{end}c: 3".encode(), "f.yaml")
        assert [node.key_spans[key].line for key in "abc"] == [1, 2, 3]
        assert Sources({"f.yaml": f"a: 1{end}b: 2".encode()}).line(node.key_spans["b"]) == "b: 2"


scalars = st.none() | st.booleans() | st.integers() | st.text("ab:#-'\"{}[],é日 \n\t", max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab :1-", max_size=4), inner, max_size=4),
)


@given(values)
def test_json_is_read_as_what_it_means(value: object) -> None:
    """JSON is a subset of the language, so that every value has a spelling, and it survives the memo's form."""
    node = parse_yaml(json.dumps(value, indent=1).encode(), "f.yaml")
    assert plain(node) == value
    assert node_from_json(json.loads(json.dumps(node_to_json(node)))) == node


def test_the_memo_keeps_fractions_apart_from_whole_numbers() -> None:
    node = parse_yaml(b"{a: 1.0, b: 1, d: {d: 2.50}, k: [], v: {}}", "f.yaml")
    again = node_from_json(json.loads(json.dumps(node_to_json(node))))
    assert again == node
    assert isinstance(plain(again)["a"], Decimal)
    assert not isinstance(plain(again)["b"], Decimal)


@given(st.text("ab:-?[]{},&*!|>'\"%@`#. \n\t1", max_size=30))
def test_any_text_is_read_or_refused_at_a_place_inside_it(text: str) -> None:
    try:
        parse_yaml(text.encode(), "f.yaml")
    except SpecError as error:
        for item in error.diagnostics:
            assert 1 <= item.span.line <= text.count("\n") + 2
            assert item.span.column >= 1
            assert item.message


def test_the_yaml_of_this_repository_is_read() -> None:
    """Files that people wrote for other programs: the subset is no obstacle to ordinary YAML."""
    found = sorted(Path(__file__).parents[1].glob(".pre-commit-config.yaml"))
    for path in found:
        assert read(path.read_text())
    assert found
