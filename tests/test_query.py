"""Queries: each function on one small workspace, the errors, the outputs, and random queries read a second time."""

import json
import re
import shutil
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import brute_query as brute
from support.graphs import vertex

from mrp.compiler.graph import BUILD_FILE, SOURCE_FILE, TargetGraph
from mrp.compiler.query import QueryError, QueryResult, from_words, run_query
from mrp.compiler.query_functions import FUNCTIONS
from mrp.compiler.query_output import OUTPUTS, render
from mrp.specs.errors import UsageError
from mrp.specs.yaml import parse_yaml, plain

GOLDEN = Path(__file__).parent / "golden" / "query"

GRAPH = TargetGraph(
    [
        vertex("//jobs:BUILD.yaml", BUILD_FILE),
        vertex("//jobs:tasks/a.jsonl", SOURCE_FILE),
        vertex("//jobs:tasks/b.jsonl", SOURCE_FILE),
        vertex(
            "//jobs:tasks",
            "dataset",
            [("srcs", "//jobs:tasks/a.jsonl"), ("srcs", "//jobs:tasks/b.jsonl")],
            line=3,
            srcs=["tasks/*.jsonl"],
            where="language == 'python'",
            split={"train": Decimal("0.8"), "test": Decimal("0.2")},
        ),
        vertex(
            "//jobs:solve",
            "rollout",
            [("over", "//jobs:tasks"), ("agent", "//lib:oracle"), ("sandbox", "//lib:box"), ("model", "//lib:qwen")],
            line=9,
            over=":tasks",
            agent="//lib:oracle",
            samples=2,
            matrix={"agent": ["//lib:oracle", "builtin:nop"], "temperature": [0, Decimal("0.7")]},
            limits={"usd": Decimal("0.10")},
            env={"LANG": "C.UTF-8", "FLAG": "yes", "EMPTY": "", "TWO": "two\nlines"},
            grade={"command": ["python3", "-m", "pytest", "-q"]},
            tags=[],
            pure=False,
        ),
        vertex(
            "//jobs:eval",
            "reduction",
            [("of", "//jobs:solve"), ("reducer", "builtin:stats")],
            line=21,
            of=[":solve"],
            reducer="stats",
            expect="reward.mean >= 0.9",
        ),
        vertex("//jobs:count", "reduction", [("of", "//jobs:tasks")], line=25, of=[":tasks"], reducer="count"),
        vertex("//jobs:all", "job", [("of", "//jobs:eval"), ("of", "//jobs:count")], line=29, of=[":eval", ":count"]),
        vertex("//lib:BUILD.yaml", BUILD_FILE),
        vertex("//lib:oracle.py", SOURCE_FILE),
        vertex("//lib:box", "sandbox", [("image", "builtin:host")], line=3, limits={"memory": "4GiB"}),
        vertex("//lib:oracle", "agent", [("srcs", "//lib:oracle.py")], line=6, version="1.0", entry="oracle:Oracle"),
        vertex("//lib:qwen", "model", [], line=10, provider="vllm"),
        vertex("//:lint", "command", [], line=3, outs=["ok"], command=["true"]),
    ]
)


class Before:
    """What a first build of //jobs:solve left behind, its data set changed since."""

    def is_cached(self, label: str) -> bool:
        return label == "//lib:oracle"

    def is_stale(self, label: str) -> bool:
        return label in ("//jobs:tasks", "//jobs:solve")

    def is_failed(self, label: str) -> bool:
        return label == "//jobs:eval"

    def cost(self, label: str) -> Decimal | None:
        return {"//jobs:solve": Decimal("1.50"), "//jobs:tasks": Decimal(0)}.get(label)


def ask(query: str) -> str:
    """The answer in one line, without the package of //jobs."""
    labels = run_query(query, GRAPH, patterns_base_package="jobs", past=Before()).labels
    return " ".join(label.removeprefix("//jobs") for label in labels)


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("//jobs:eval", ":eval"),
        (":eval", ":eval"),
        ("eval", ":eval"),
        ("'//jobs:eval'", ":eval"),
        ("//:lint", "//:lint"),
        ("//...", "//:lint :all :count :eval :solve :tasks //lib:box //lib:oracle //lib:qwen"),
        ("...", ":all :count :eval :solve :tasks"),
        ("//lib/...", "//lib:box //lib:oracle //lib:qwen"),
        ("//lib:all", "//lib:box //lib:oracle //lib:qwen"),
        ("//jobs:all", ":all"),
        ("//lib:*", "//lib:BUILD.yaml //lib:box //lib:oracle //lib:oracle.py //lib:qwen"),
        ("//*:o*", "//lib:oracle"),
        ("jobs/tasks/a.jsonl", ":tasks/a.jsonl"),
        ("deps(:count)", ":count :tasks :tasks/a.jsonl :tasks/b.jsonl"),
        ("deps(:count, 1)", ":count :tasks"),
        ("deps(:count, 0)", ":count"),
        ("rdeps(:eval, :tasks)", ":eval :solve :tasks"),
        ("rdeps(:eval, :tasks + :count, 1)", ":solve :tasks"),
        ("allrdeps(:tasks)", ":all :count :eval :solve :tasks"),
        ("allrdeps(:tasks, 1)", ":count :solve :tasks"),
        ("allpaths(:all, //lib:oracle.py)", ":all :eval :solve //lib:oracle //lib:oracle.py"),
        ("somepath(:all, :tasks)", ":all :count :tasks"),
        ("somepath(:all, //lib:qwen)", ":all :eval :solve //lib:qwen"),
        ("somepath(//lib:qwen, :all)", ""),
        ("let p = somepath(:solve, //lib:oracle) in $p", ":solve //lib:oracle"),
        ("kind('^re', //...)", ":count :eval"),
        ("kind(file, deps(:count))", ":tasks/a.jsonl :tasks/b.jsonl"),
        ("filter(oracle, deps(:solve))", "//lib:oracle //lib:oracle.py"),
        ("attr(samples, '^2$', //...)", ":solve"),
        ("attr(reducer, '', //...)", ":count :eval"),
        ("attr(limits.memory, 4GiB, //...)", "//lib:box"),
        ("attr(limits, 'usd: 0.1}', //...)", ":solve"),
        ("attr(of, '^\\[:eval, :count\\]$', //...)", ":all"),
        ("attr(pure, false, //...)", ":solve"),
        ("attr(name, '^qwen$', //...)", "//lib:qwen"),
        ("attr(split.train, '^0.8$', //...)", ":tasks"),
        ("labels(srcs, //...)", ":tasks/a.jsonl :tasks/b.jsonl //lib:oracle.py"),
        ("labels(reducer, //...)", ""),
        ("siblings(//lib:box)", "//lib:BUILD.yaml //lib:box //lib:oracle //lib:oracle.py //lib:qwen"),
        ("some(//...)", "//:lint"),
        ("some(//lib/..., 2)", "//lib:box //lib:oracle"),
        ("tests(:all)", ":eval"),
        ("tests(//...)", ":eval :solve"),
        ("buildfiles(:eval + //lib:box)", ":BUILD.yaml //lib:BUILD.yaml"),
        ("rbuildfiles(lib/oracle.py)", "//lib:BUILD.yaml"),
        ("rbuildfiles(lib/BUILD.yaml, jobs/tasks/a.jsonl)", ":BUILD.yaml //lib:BUILD.yaml"),
        ("rbuildfiles(nowhere)", ""),
        ("same_pkg_direct_rdeps(:tasks + //lib:qwen)", ":count :solve"),
        ("owner(jobs/tasks/b.jsonl)", ":tasks"),
        ("owner(./lib/oracle.py)", "//lib:oracle"),
        ("owner(lib/BUILD.yaml)", "//lib:box //lib:oracle //lib:qwen"),
        ("owner(README.md)", ""),
        ("cached(//...)", "//lib:oracle"),
        ("stale(deps(:eval))", ":solve :tasks"),
        ("failed(//...)", ":eval"),
        ("cost(deps(:eval))", ":solve :tasks"),
        ("set()", ""),
        ("set(:eval //lib:qwen)", ":eval //lib:qwen"),
        ("deps(:count) - deps(:tasks)", ":count"),
        ("deps(:count) except deps(:tasks) union :eval", ":count :eval"),
        (":eval + :count ^ :count", ":count"),
        (":eval + (:count intersect :count)", ":count :eval"),
        ("//lib:all -//lib:qwen", "//lib:box //lib:oracle"),
        ("let x = :eval in let y = $x + :all in $y - $x", ":all"),
        (":all + let x = :eval in $x + :count", ":all :count :eval"),
    ],
)
def test_what_queries_answer(query: str, answer: str) -> None:
    assert ask(query) == answer


@pytest.mark.parametrize(
    ("query", "column", "message"),
    [
        ("", 1, "the query is empty"),
        ("deps(:eval", 11, "the query ends too early"),
        (":eval :all", 7, "`:all` does not fit here"),
        ("deps(:evla)", 6, "`:evla` is no target or file of this workspace (did you mean `//jobs:eval`?)"),
        ("//jbos:eval", 1, "`//jbos:eval` is no target or file of this workspace (did you mean `//jobs:eval`?)"),
        ("//jobs/sub", 1, "`//jobs/sub` is no target or file of this workspace (there is no package `//jobs/sub`)"),
        ("jobs:eval", 1, "`jobs:eval` is no label, pattern or file of this workspace (did you mean `//jobs:eval`?)"),
        ("//job/...", 1, "`//job/...` matches no package of this workspace (did you mean `//jobs/...`?)"),
        ("//jobs:x*", 1, "`//jobs:x*` matches no target (`mrp query //jobs:all` shows what is there)"),
        ("'-//jobs:eval'", 1, "`-//jobs:eval` is no label, pattern or file of this workspace (to leave something out"),
        ("set(:eval -:all)", 11, "`-` does not fit here (a word that begins with `-` needs quotes"),
        ("//jobs:solve@agent=nop", 19, "`=` does not fit here (quote a label with `@axis=value`)"),
        ("'//jobs:solve@agent=nop'", 1, "`//jobs:solve@agent=nop` is a part of a target, and queries see whole ones"),
        (":solve[task-1]", 1, "`:solve[task-1]` is a part of a target, and queries see whole ones"),
        ("deps(builtin:host)", 6, "`builtin:host` is brought by mrp and no part of the graph"),
        ("dep(:eval)", 1, "`dep` is not a function (did you mean `deps`?)"),
        ("deps(:eval, 1, 2)", 1, "`deps` does not take 3 arguments (write `deps(targets[, count])`)"),
        ("rdeps(:eval)", 1, "`rdeps` does not take 1 argument (write `rdeps(targets, targets[, count])`)"),
        ("deps(:eval, -1)", 13, "`-` does not fit here"),
        ("deps(:eval, one)", 13, "`one` is not a number from 0 (write `deps(targets[, count])`)"),
        ("deps(:eval, (:all + :all))", 14, "a count is expected here, as one word"),
        ("kind('(a', :eval)", 6, "the pattern `(a` is wrong: missing ): (a (patterns are RE2)"),
        ("$x", 1, "the variable `$x` is not bound here (bind it: `let x = e in $x`)"),
        ("let all = :all in $al", 19, "the variable `$al` is not bound here (did you mean `$all`?)"),
        ("(let x = :all in $x) + $x", 24, "the variable `$x` is not bound here"),
        ("let $x = :all in $x", 5, "`$x` cannot be a variable"),
        ("some(set())", 1, "`some` found nothing to choose from"),
        (":eval & :all", 7, "`&` does not fit here (write `^` or `intersect`)"),
        ("(" * 101, 101, "more than 100 brackets are open here"),
        ("let x = " * 101 + ":all" + " in :all" * 101, 825, "the query nests more than 100 levels"),
    ],
)
def test_what_is_refused_and_where(query: str, column: int, message: str) -> None:
    with pytest.raises(QueryError) as caught:
        ask(query)
    assert caught.value.column == column
    assert str(caught.value).startswith(f"query, column {column}: {message}")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("function", ["cached", "stale", "failed", "cost"])
def test_the_past_is_missed_clearly(function: str) -> None:
    with pytest.raises(QueryError, match=f"`{function}` needs the record of earlier builds"):
        run_query(f"{function}(//...)", GRAPH)


@pytest.mark.parametrize(
    ("words", "query"),
    [
        (["//..."], "//..."),
        (["deps(//jobs:eval)"], "deps(//jobs:eval)"),
        (["deps", "//jobs:eval"], "deps(//jobs:eval)"),
        (["deps", "//jobs:eval", "1"], "deps(//jobs:eval, 1)"),
        (["deps", "//jobs:eval + //jobs:all"], "deps(//jobs:eval + //jobs:all)"),
        (["kind", "^(a|b) c$", "//..."], "kind('^(a|b) c$', //...)"),
        (["attr", "name", "it's", "//..."], 'attr(name, "it\'s", //...)'),
        (["owner", "jobs/my file.txt", "in"], "owner('jobs/my file.txt', 'in')"),
        (["set", "//a:b", "//a:c d"], "set(//a:b '//a:c d')"),
        (["deps", "//a:b@x=1,y=2"], "deps('//a:b@x=1,y=2')"),
        (["//a:b", "+", "//a:c"], "//a:b + //a:c"),
        (["cost", "//jobs:eval"], "cost(//jobs:eval)"),
    ],
)
def test_words_of_a_command_line_are_a_query(words: list[str], query: str) -> None:
    assert from_words(words) == query


def test_words_with_both_quotes_are_refused() -> None:
    with pytest.raises(QueryError, match="both kinds of quotes"):
        from_words(["filter", "'\"", "//..."])


# -- outputs -----------------------------------------------------------------------------------------------------

EVERYTHING = "cost(:solve) + deps(:all) + //lib:* + //:lint"


@pytest.mark.parametrize("output", OUTPUTS)
def test_outputs_are_as_printed_before(output: str) -> None:
    result = run_query(EVERYTHING, GRAPH, patterns_base_package="jobs", past=Before())
    assert render(result, GRAPH, output) == (GOLDEN / f"{output}.txt").read_text()


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_empty_answer_can_be_printed(output: str) -> None:
    printed = render(QueryResult(()), GRAPH, output)
    frames = {"json": "[\n]\n", "graph": "digraph mrp {\n  node [shape=box];\n}\n", "mermaid": "flowchart TD\n"}
    assert printed == frames.get(output, "")


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(UsageError, match=r"`jsn` is no output of a query \(did you mean `json`\?\)"):
        render(QueryResult(()), GRAPH, "jsn")


def test_the_build_output_reads_back_as_the_same_targets() -> None:
    result = run_query("//jobs/... + //lib:all", GRAPH)
    documents = render(result, GRAPH, "build").split("---\n")
    assert len(documents) == 2
    for document, package in zip(documents, ("jobs", "lib"), strict=True):
        read = plain(parse_yaml(document.encode(), f"{package}/BUILD.yaml"))
        assert read["mrp"] == 1
        members = [v for v in GRAPH if v.package == package and not v.is_file]
        assert read["targets"] == {v.name: {"kind": v.kind, **v.attributes} for v in members}


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.decimals(-1000, 1000, places=3) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.from_regex(r"[a-z]{2,5}\Z"), yaml_values, max_size=3))
def test_any_attributes_read_back(attributes: dict[str, object]) -> None:
    attributes.pop("kind", None)
    graph = TargetGraph([vertex("//:x", "command", **attributes)])
    document = render(QueryResult(("//:x",)), graph, "build")
    assert plain(parse_yaml(document.encode(), "BUILD.yaml"))["targets"]["x"] == {"kind": "command", **attributes}


def test_json_is_json() -> None:
    result = run_query("//...", GRAPH)
    listed = json.loads(render(result, GRAPH, "json"))
    assert [entry["label"] for entry in listed] == list(result.labels)
    assert listed == [json.loads(line) for line in render(result, GRAPH, "jsonl").splitlines()]


HOSTILE = TargetGraph(
    [
        vertex('//a:say "hi"', SOURCE_FILE),
        vertex("//a:back\\slash\\", SOURCE_FILE),
        vertex("//a:<b>&`#;\nnew]", SOURCE_FILE),
        vertex("//a:end", "command", [("srcs", '//a:say "hi"'), ("srcs", "//a:back\\slash\\")]),
    ]
)


@pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")
@pytest.mark.parametrize("graph", [GRAPH, HOSTILE], ids=["plain", "hostile"])
def test_dot_draws_the_graph(graph: TargetGraph) -> None:
    drawing = render(QueryResult(tuple(graph.labels)), graph, "graph")
    drawn = subprocess.run(["dot", "-Tplain"], input=drawing, capture_output=True, text=True, check=True)
    kinds = [line.split(" ", 1)[0] for line in drawn.stdout.splitlines()]
    assert kinds.count("node") == len(graph)
    assert kinds.count("edge") == sum(len(graph.deps(label)) for label in graph.labels)
    assert drawn.stderr == ""
    assert "<svg" in subprocess.run(["dot", "-Tsvg"], input=drawing, capture_output=True, text=True, check=True).stdout


def test_mermaid_holds_nothing_that_ends_a_label() -> None:
    lines = render(QueryResult(tuple(HOSTILE.labels)), HOSTILE, "mermaid").splitlines()
    assert lines == [
        "flowchart TD",
        '  n0["//a:#60;b#62;#38;#96;#35;;#10;new]"]',
        '  n1["//a:back#92;slash#92;"]',
        '  n2["//a:end"]',
        '  n3["//a:say #34;hi#34;"]',
        "  n2 --> n1",
        "  n2 --> n3",
    ]


REFERENCE = (Path(__file__).parents[1] / "docs" / "query.md").read_text()


@pytest.mark.parametrize("query", re.findall(r"^\| `.* \| `([^`]*\))` \|$", REFERENCE, re.MULTILINE))
def test_the_examples_of_the_reference_have_an_answer(query: str) -> None:
    assert ask(query)


def test_every_function_is_in_the_reference() -> None:
    missing = [name for name in FUNCTIONS if f"`{name}(" not in REFERENCE]
    missing += [output for output in OUTPUTS if f"`{output}`" not in REFERENCE]
    assert missing == []


# -- read a second time ------------------------------------------------------------------------------------------

KINDS = ["rollout", "reduction", "evaluation", "dataset", "job", SOURCE_FILE]


@st.composite
def pictures(draw: st.DrawFn) -> brute.Picture:
    count = draw(st.integers(1, 7))
    packages = {f"//p{draw(st.integers(0, 2))}:t{number}": "" for number in range(count)}
    labels = draw(st.permutations(sorted(packages)))
    kinds = {label: draw(st.sampled_from(KINDS)) for label in labels}
    attributes = {
        label: {"samples": draw(st.sampled_from(["1", "2", "12"])), **draw(st.sampled_from([{}, {"expect": "x"}]))}
        if kinds[label] != SOURCE_FILE
        else {}
        for label in labels
    }
    possible = [(a, role, b) for i, a in enumerate(labels) for b in labels[i + 1 :] for role in ("of", "over")]
    edges = draw(st.frozensets(st.sampled_from(possible), max_size=12)) if possible else frozenset()
    for package in {label.split(":")[0] for label in labels}:
        kinds[f"{package}:BUILD.yaml"] = BUILD_FILE
        attributes[f"{package}:BUILD.yaml"] = {}
    return brute.Picture(kinds, {label: label.split(":")[0] for label in kinds}, attributes, edges)


def drawn_from(picture: brute.Picture) -> TargetGraph:
    return TargetGraph(
        vertex(
            label,
            kind,
            sorted((role, b) for a, role, b in picture.edges if a == label),
            **picture.attributes[label],
        )
        for label, kind in picture.kinds.items()
    )


def queries(labels: list[str], variables: tuple[str, ...] = ()) -> st.SearchStrategy[brute.Query]:
    """Random queries; a variable is used only inside the `let` that binds it."""
    label = st.sampled_from(labels)
    atoms = st.tuples(st.just("label"), label | st.just("//..."))
    if variables:
        atoms |= st.tuples(st.just("variable"), st.sampled_from(variables))
    depth = st.integers(0, 4)

    def call(*names: str) -> st.SearchStrategy[str]:
        return st.sampled_from(names)

    def bigger(inner: st.SearchStrategy[brute.Query]) -> st.SearchStrategy[brute.Query]:
        operator = st.sampled_from(["+", "-", "^", "union", "except", "intersect"])
        rest = st.lists(st.tuples(operator, inner), min_size=1, max_size=3)
        return st.one_of(
            st.tuples(call("deps", "allrdeps", "tests", "siblings", "buildfiles", "same_pkg_direct_rdeps"), inner),
            st.tuples(call("deps", "allrdeps", "some"), inner, depth),
            st.tuples(call("rdeps", "allpaths", "somepath"), inner, inner),
            st.tuples(call("rdeps"), inner, inner, depth),
            st.tuples(call("kind"), st.sampled_from(["^re", "file", "job|dataset", "x"]), inner),
            st.tuples(call("filter"), st.sampled_from(["p0:", "t[0-3]$", "BUILD"]), inner),
            st.tuples(call("attr"), st.just("samples"), st.sampled_from(["^1$", "2", ""]), inner),
            st.tuples(call("labels"), st.sampled_from(["of", "over"]), inner),
            st.tuples(inner, rest).map(lambda found: ("chain", found[0], *found[1])),
            st.lists(label, max_size=3).map(lambda words: ("set", *words)),
        )

    plain_queries = st.recursive(atoms, bigger, max_leaves=6)
    if len(variables) == 2:
        return plain_queries
    name = "xy"[len(variables)]
    body = st.deferred(lambda: queries(labels, (*variables, name)))
    lets = st.tuples(st.just("let"), st.just(name), plain_queries, body)
    return plain_queries | lets | lets.map(lambda let: ("chain", ("label", labels[0]), ("+", let)))


@given(st.data(), pictures())
def test_queries_read_naively_have_the_same_answer(data: st.DataObject, picture: brute.Picture) -> None:
    query = data.draw(queries(sorted(picture.kinds)))
    text = brute.write(query)
    try:
        expected = brute.read(query, picture, {})
    except brute.NothingToChoose:
        with pytest.raises(QueryError, match="nothing to choose"):
            run_query(text, drawn_from(picture))
        return
    found = run_query(text, drawn_from(picture)).labels
    assert set(found) == expected
    while query[0] == "let":
        query = query[-1]
    if query[0] not in ("somepath", "variable"):
        assert list(found) == sorted(found)


@given(pictures(), st.data())
def test_a_path_is_the_first_of_the_shortest(picture: brute.Picture, data: st.DataObject) -> None:
    labels = st.frozensets(st.sampled_from(sorted(picture.kinds)), min_size=1, max_size=3)
    starts, ends = data.draw(labels), data.draw(labels)
    found = run_query(f"somepath(set({' '.join(starts)}), set({' '.join(ends)}))", drawn_from(picture)).labels
    assert list(found) == brute.best_path(picture, starts, ends)


@given(pictures(), st.data(), st.booleans())
def test_ranks_read_naively_are_the_same(picture: brute.Picture, data: st.DataObject, longest: bool) -> None:
    labels = data.draw(st.frozensets(st.sampled_from(sorted(picture.kinds))))
    printed = render(QueryResult(tuple(sorted(labels))), drawn_from(picture), "maxrank" if longest else "minrank")
    expected = sorted(brute.ranks(picture, labels, longest))
    assert printed.splitlines() == [f"{rank} {label}" for rank, label in expected]


@given(st.text("()+-^$/:,='\" .*xl", max_size=25) | st.text(max_size=10))
def test_any_text_is_answered_or_refused_with_a_place(text: str) -> None:
    try:
        run_query(text, GRAPH)
    except QueryError as error:
        assert 1 <= error.column <= len(text) + 1
