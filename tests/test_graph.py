"""The target graph: order, cycles and walks, compared with naive readings of the edges."""

import subprocess
import sys
from itertools import pairwise
from random import Random

import networkx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.graphs import graph_of, letters, vertex

from mrp.compiler.graph import TargetGraph

LETTERS = "abcdefg"
any_edges = st.dictionaries(st.sampled_from(LETTERS), st.text(alphabet=LETTERS, max_size=4), max_size=len(LETTERS)).map(
    lambda edges: {**dict.fromkeys("".join(edges.values()), ""), **edges}
)
dag_edges = any_edges.map(lambda edges: {a: "".join(b for b in deps if b > a) for a, deps in edges.items()})


def pairs(edges: dict[str, str]) -> set[tuple[str, str]]:
    return {(a, b) for a, deps in edges.items() for b in deps}


def test_dependencies_are_read_both_ways_sorted_and_once() -> None:
    graph = TargetGraph(
        [
            vertex("//:eval", deps=[("of", "//:b"), ("reducer", "//:a"), ("of", "//:b"), ("sandbox", "builtin:host")]),
            vertex("//:b"),
            vertex("//:a"),
        ]
    )
    assert graph.labels == ["//:a", "//:b", "//:eval"]
    assert graph.deps("//:eval") == ["//:a", "//:b"]
    assert graph.rdeps("//:b") == ["//:eval"]
    assert graph["//:eval"].deps[3] == ("sandbox", "builtin:host")
    assert "builtin:host" not in graph and graph.get("builtin:host") is None


def test_one_label_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="//:a is in the graph twice"):
        TargetGraph([vertex("//:a"), vertex("//:a")])


def test_dependencies_come_first_and_ties_go_by_label() -> None:
    assert letters(graph_of({"a": "cb", "b": "d", "c": "d", "d": "", "e": ""}).topological()) == "dbcae"


def test_a_cycle_is_shown_from_its_first_label() -> None:
    graph = graph_of({"z": "c", "c": "a", "a": "b", "b": "c"})
    assert graph.find_cycle() == ["//:a", "//:b", "//:c", "//:a"]
    with pytest.raises(ValueError, match="//:a -> //:b -> //:c -> //:a"):
        graph.topological()


def test_a_target_that_depends_on_itself_is_a_cycle() -> None:
    assert graph_of({"a": "a"}).find_cycle() == ["//:a", "//:a"]


def test_a_shorter_way_back_is_preferred() -> None:
    assert letters(graph_of({"a": "bd", "b": "c", "c": "a", "d": "a"}).find_cycle() or []) == "ada"


@given(any_edges)
def test_a_cycle_is_found_exactly_when_there_is_one(edges: dict[str, str]) -> None:
    cycle = graph_of(edges).find_cycle()
    if cycle is None:
        assert networkx.is_directed_acyclic_graph(networkx.DiGraph(pairs(edges)))
    else:
        steps = letters(cycle)
        assert steps[0] == steps[-1] == min(steps)
        assert len(set(steps)) == len(steps) - 1
        assert set(pairwise(steps)) <= pairs(edges)


@given(any_edges, st.randoms(use_true_random=False))
def test_the_answers_do_not_depend_on_the_order_of_the_vertices(edges: dict[str, str], random: Random) -> None:
    shuffled = list(edges)
    random.shuffle(shuffled)
    one, other = graph_of(edges), graph_of({name: edges[name][::-1] for name in shuffled})
    assert one.find_cycle() == other.find_cycle()
    if one.find_cycle() is None:
        assert one.topological() == other.topological()


@given(dag_edges)
def test_the_order_is_that_of_networkx(edges: dict[str, str]) -> None:
    turned = networkx.DiGraph()
    turned.add_nodes_from(edges)
    turned.add_edges_from((b, a) for a, b in pairs(edges))
    assert letters(graph_of(edges).topological()) == "".join(networkx.lexicographical_topological_sort(turned))


@given(any_edges, st.sets(st.sampled_from(LETTERS)), st.integers(0, 5) | st.none(), st.booleans())
def test_reach_takes_one_edge_a_step(edges: dict[str, str], starts: set[str], depth: int | None, reverse: bool) -> None:
    starts &= set(edges)
    expected = set(starts)
    for _ in range(len(edges) if depth is None else depth):
        steps = {(b, a) if reverse else (a, b) for a, b in pairs(edges)}
        expected |= {b for a, b in steps if a in expected}
    found = graph_of(edges).reach([f"//:{name}" for name in starts], depth=depth, reverse=reverse)
    assert set(letters(found)) == expected


def test_the_networkx_view_keeps_kinds_and_roles() -> None:
    deps = [("over", "//:data"), ("grade.operator", "//:data")]
    view = TargetGraph([vertex("//:run", "rollout", deps), vertex("//:data", "dataset")]).to_networkx()
    assert dict(view.nodes(data="kind")) == {"//:run": "rollout", "//:data": "dataset"}
    assert list(view.edges(data="roles")) == [("//:run", "//:data", ["grade.operator", "over"])]


def test_networkx_is_loaded_only_for_its_view() -> None:
    code = "import sys, mrp.compiler.graph, mrp.compiler.query; print('networkx' in sys.modules, 'lark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"


def test_a_chain_of_many_targets_needs_no_recursion() -> None:
    count = 20_000
    chain = [vertex(f"//:{n:05}", deps=[("of", f"//:{n + 1:05}")] if n + 1 < count else []) for n in range(count)]
    graph = TargetGraph(chain)
    assert graph.topological() == graph.labels[::-1]
    assert len(graph.reach(["//:00000"])) == count
    assert len(graph.shortest_path(["//:00000"], [f"//:{count - 1:05}"])) == count
