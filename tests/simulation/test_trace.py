"""Traces are read as they are written, and what is wrong in one is named."""

import json

import pytest

from updraft import errors
from updraft.simulation.generator import Machines, generate
from updraft.simulation.trace import COLUMNS, TraceJob, parse, write

HEAD = "submit_s,user,duration_s"


def test_what_is_written_is_read_back() -> None:
    jobs = generate(7, 500, Machines(4))
    assert parse("".join(write(jobs)), "t.csv") == jobs


def test_the_same_seed_is_the_same_trace_and_another_is_not() -> None:
    assert generate(1, 300) == generate(1, 300)
    assert generate(1, 300) != generate(2, 300)


def test_a_made_up_trace_has_as_many_tasks_as_asked_for_and_gangs_of_powers_of_two() -> None:
    jobs = generate(3, 5000, Machines(64))
    assert sum(job.tasks for job in jobs) == 5000
    sizes = {job.tasks for job in jobs if job.gang}
    assert sizes <= {2, 4, 8, 16}
    assert len(sizes) > 1
    assert any(job.tasks > 10 for job in jobs if not job.gang)
    assert [job.submit_s for job in jobs] == sorted(job.submit_s for job in jobs)


def test_json_and_csv_say_the_same() -> None:
    rows = [{"submit_s": 2, "user": "ben", "duration_s": 5.5}, {"submit_s": 1, "user": "ann",
            "duration_s": 1, "gpus": 2, "gang": True, "tasks": 4, "time_limit_s": 60}]  # fmt: skip
    text = f"{HEAD},gpus,gang,tasks,time_limit_s\n2,ben,5.5,,,,\n\n1,ann,1,2,true,4,60\n"
    found = parse(text, "t.csv")
    assert found == parse(json.dumps(rows), "t.json")
    assert found[0] == TraceJob(1, "ann", 1, gpus=2, gang=True, tasks=4, time_limit_s=60)


BAD = {
    "no jobs": (f"{HEAD}\n", "t.csv has no jobs"),
    "nothing": ("", "t.csv, line 1: column 'submit_s' is missing"),
    "a column is missing": ("submit_s,user\n", "t.csv, line 1: column 'duration_s' is missing"),
    "a column too many": (f"{HEAD},colour\n", "t.csv, line 1: there is no column 'colour'"),
    "a column twice": (f"{HEAD},user\n", "t.csv, line 1: column 'user' is there twice"),
    "a cell too few": (f"{HEAD}\n1,ann,2\n1,ann\n", "t.csv, line 3: there are 2 cells"),
    "no number": (f"{HEAD}\n1,ann,soon\n", "t.csv, line 2: duration_s: 'soon' is no number"),
    "less than nothing": (f"{HEAD}\n-1,ann,2\n", "t.csv, line 2: submit_s: '-1' is no number"),
    "not finite": (f"{HEAD}\n1,ann,nan\n", "t.csv, line 2: duration_s: 'nan' is no number"),
    "no user": (f"{HEAD}\n1,,2\n", "t.csv, line 2: user: '' is no name"),
    "no whole number": (f"{HEAD},tasks\n1,ann,2,1.5\n", "t.csv, line 2: tasks: '1.5' is no"),
    "no truth": (f"{HEAD},gang\n1,ann,2,perhaps\n", "t.csv, line 2: gang: 'perhaps' is no truth"),
    "a gang of one": (f"{HEAD},gang\n1,ann,2,true\n", "t.csv, line 2: gang: a gang has at least 2"),
    "no limit at all": (f"{HEAD},time_limit_s\n1,a,2,0\n", "t.csv, line 2: time_limit_s: '0' is"),
    "broken JSON": ('[{"submit_s": 1', "t.csv is no JSON"),
    "no list": ('{"submit_s": 1}', "t.csv: the trace is no list"),
    "no object": ("[3]", "t.csv, job 1: this is no object"),
    "a truth for a number": (
        '[{"submit_s": true, "user": "a", "duration_s": 1}]',
        "t.csv, job 1: submit_s: True is no number",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "says"), BAD.values(), ids=BAD.keys())
def test_a_bad_trace_gets_a_line_that_names_place_and_mend(text: str, says: str) -> None:
    with pytest.raises(errors.BadRequest) as caught:
        parse(text, "t.csv")
    assert caught.value.message.startswith(says)
    assert "\n" not in caught.value.message
    assert "; " in caught.value.message


def test_every_column_is_a_field() -> None:
    assert set(COLUMNS) == set(TraceJob.__dataclass_fields__)
