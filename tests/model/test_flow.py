"""Flows as they are read: in order, with every mistake named, and what of them is run again."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updraft.model.dependencies import On
from updraft.model.flow import (
    Fate,
    Step,
    cycle_of,
    in_order,
    not_needed,
    read_flow,
    to_restore,
    tree,
)

NAMES = [f"s{number}" for number in range(9)]
OK, BAD, NEVER = Fate(ok=True, started=True), Fate(ok=False, started=True), Fate(False, False)

Graph = dict[str, dict[str, On]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Steps, each of which needs some of those before it, in whatever order they are written."""
    found: Graph = {}
    for number, name in enumerate(NAMES[: draw(st.integers(1, len(NAMES)))]):
        needed = st.dictionaries(st.sampled_from(NAMES[:number] or NAMES[:1]), st.sampled_from(On))
        found[name] = draw(needed) if number else {}
    return {name: found[name] for name in draw(st.permutations(list(found)))}


def sorted_graph(graph: Graph) -> Graph:
    return {name: graph[name] for name in in_order(graph)}


def fates_of(graph: Graph, statuses: Mapping[str, bool]) -> dict[str, Fate]:
    """Return what comes of the steps when those that run end so."""
    fates: dict[str, Fate] = {}
    for name, needed in sorted_graph(graph).items():
        runs = all(
            on is On.ANY or bool(fates[each].ok) is (on is On.OK) for each, on in needed.items()
        )
        fates[name] = Fate(runs and statuses[name], runs)
    return fates


@given(graphs())
def test_each_step_comes_after_those_that_it_needs(graph: Graph) -> None:
    order = in_order(graph)
    assert sorted(order) == sorted(graph)
    for name, needed in graph.items():
        assert all(order.index(each) < order.index(name) for each in needed)
    assert cycle_of(graph) == []


@given(graphs())
def test_a_tree_has_every_step_once_below_the_first_that_it_needs(graph: Graph) -> None:
    shown = list(tree(graph))
    assert sorted(name for _, name, _ in shown) == sorted(graph)
    depth = {name: len(branch) // 3 for branch, name, _ in shown}
    for _, name, others in shown:
        first, *rest = [*graph[name], None] if not graph[name] else [*graph[name]]
        assert others == [each for each in rest if each is not None]
        assert first is None or depth[name] >= depth[first]


@given(graphs(), st.data())
def test_a_cycle_is_found_and_is_one(graph: Graph, data: st.DataObject) -> None:
    first = data.draw(st.sampled_from(list(graph)))
    behind = data.draw(st.sampled_from([n for n in graph if _reaches(graph, n, first)]))
    graph[first] = {**graph[first], behind: On.OK}
    cycle = cycle_of(graph)
    assert cycle
    for name, needed in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
        assert needed in graph[name]


def _reaches(graph: Graph, start: str, end: str) -> bool:
    return start == end or any(_reaches(graph, each, end) for each in graph[start])


@given(graphs(), st.lists(st.booleans(), min_size=9, max_size=9))
def test_what_is_restored_is_what_was_not_ok_and_all_behind_it(
    graph: Graph, booleans: list[bool]
) -> None:
    graph = sorted_graph(graph)
    fates = fates_of(graph, dict(zip(NAMES, booleans, strict=True)))
    passed, again = not_needed(graph, fates), to_restore(graph, fates)
    assert all(not fates[name].started for name in passed)
    for name, needed in graph.items():
        behind = any(each in again for each in needed)
        bad = not fates[name].ok and name not in passed
        assert (name in again) is (bad or behind)


def test_what_is_there_for_failures_is_not_needed_where_there_was_none() -> None:
    graph = {"a": {}, "b": {"a": On.FAIL}, "c": {"b": On.OK}, "d": {"b": On.ANY}, "e": {"a": On.OK}}
    fates = {"a": OK, "b": NEVER, "c": NEVER, "d": OK, "e": OK}
    assert not_needed(graph, fates) == {"b", "c"}
    assert to_restore(graph, fates) == []
    fates["a"], fates["b"], fates["e"] = BAD, OK, NEVER
    assert not_needed(graph, fates) == set()


def step(**values: Any) -> dict[str, Any]:
    return {"name": "a", "command": "true", **values}


def test_a_step_is_read_with_its_units() -> None:
    values = step(
        command=["python", "train.py", 3],
        cpus=0.5, memory="2G", gpus=1, time="1h", array=7, retries=0, env={"SEED": 7},
        directory="work", pool="local", needs=["b"],
    )  # fmt: skip
    flow, problems = read_flow({"name": "f", "steps": [values, step(name="b")]}, ["local"])
    assert problems == []
    assert flow is not None
    assert flow.steps[1] == Step(
        name="a", command=("python", "train.py", "3"), needs={"b": On.OK}, pool="local",
        cpus_milli=500, memory_bytes=2 << 30, gpus=1, time_seconds=3600, array=7, retries=0,
        env={"SEED": "7"}, directory="work",
    )  # fmt: skip
    assert flow.steps[0] == Step(name="b", command=("/bin/sh", "-c", "true"))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (step(cpu=1), "step a: unknown key 'cpu'; did you mean cpus?"),
        (step(cpus="many"), "step a: cpus: 'many' is not a number of CPUs; write it like 2 or 0.5"),
        (step(cpus=True), "step a: cpus: True is no amount; write it like 2 or"),
        (step(memory=[1]), "step a: memory: [1] is no amount"),
        (step(time=0), "step a: time: a time limit is more than nothing"),
        (step(array=0), "step a: array: 0 is no count; write a number from 1"),
        (step(retries=True), "step a: retries: True is no count"),
        (step(gpus="1"), "step a: gpus: '1' is no count"),
        (step(command=[]), "step a: command: write it as a text for the shell"),
        (step(command=["x", None]), "step a: command: each word must be a text"),
        (step(env={"A=": "1"}), "step a: env: 'A=' cannot be a variable's name"),
        (step(env={"A": True}), "step a: env: A: a text is needed; put it in quotes"),
        (step(env=["A=1"]), "step a: env: a mapping is needed"),
        (step(pool="mars"), "step a: there is no pool 'mars'; the pools are: local"),
        (step(directory=7), "step a: directory: a text is needed"),
        (step(needs=["b"]), "step a: it needs 'b', which is none; there are: a"),
        (step(needs={"a": "well"}), "step a: needs: a: 'well' is none of any, ok, fail"),
        (step(needs=7), "step a: needs: a list of steps is needed"),
        (step(needs=["a"]), "step a: a needs a; take one of these needs away"),
        (step(name="no name"), "step 1: name: one of letters"),
        ("true", "step 1: a mapping is needed"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_step_and_the_mend(values: Any, says: str) -> None:
    flow, problems = read_flow({"steps": [values]}, ["local"])
    assert flow is None
    assert len(problems) == 1, problems
    assert problems[0].startswith(says)
    assert problems[0].isprintable()


@pytest.mark.parametrize("document", [None, [], {}, {"steps": {}}, "steps", {"steps": None}])
def test_what_is_no_flow_is_told(document: Any) -> None:
    assert read_flow(document)[1][0].startswith("a flow is a mapping with a list of steps")


def test_two_steps_of_one_name_are_told() -> None:
    _, problems = read_flow({"steps": [step(), step()]})
    assert problems == ["step a: there are two of that name; rename one"]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["name", *Step.__slots__, "time", "memory"]), _JSON))
def test_whatever_a_step_says_is_read_or_told(values: dict[str, Any]) -> None:
    flow, problems = read_flow({"steps": [{**values, "name": "a"}]}, ["local"])
    assert (flow is None) is bool(problems)
