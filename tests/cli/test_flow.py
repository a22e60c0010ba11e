"""``updraft flow``: graphs of steps from a file to their end, and ``--after`` of single jobs."""

import json
from pathlib import Path

import pytest

from tests.cli.calling import Gate, ask, call, submit, updraft, wait_state
from updraft.testing.instance import Instance

FLOW = """
name: digits
steps:
  - name: report
    needs: [train, {1}]
    command: [cat, {0}/model]
  - name: prepare
    command: echo data > {0}/data
  - name: train
    needs: [prepare]
    command: read line < {0}/data && echo "$line $SEED" > {0}/model && exit $(cat {0}/code)
    env: {{SEED: 7}}
  - name: many
    needs: [prepare]
    array: 3
    command: test $UPDRAFT_TASK_INDEX -ge $(cat {0}/low)
  - name: alarm
    needs: {{train: fail}}
    command: touch {0}/alarm
"""


@pytest.fixture
def own(updraft_home: Instance) -> Instance:
    return updraft_home


def jobs(own: Instance) -> set[str]:
    return {job["id"] for job in ask(own, "job", "list", "--all", "--limit", "1000")}


def written(folder: Path, text: str) -> str:
    file = folder / "flow.yaml"
    file.write_text(text)
    return str(file)


def flow_file(folder: Path, code: int = 0, low: int = 0) -> str:
    (folder / "code").write_text(str(code))
    (folder / "low").write_text(str(low))
    return written(folder, FLOW.format(folder, "many"))


def states(own: Instance, flow: str) -> dict[str, str]:
    shown = ask(own, "flow", "show", flow)
    return {
        step["name"]: "skipped" if step["skipped"] else step["job"]["state"]
        for step in shown["steps"]
    }


def test_a_job_runs_after_another_and_says_for_what_it_waits(own: Instance, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    first = submit(own, "--shell", gate.read())
    second = submit(own, "--after-ok", first[:6], "true")
    never = submit(own, "--after-fail", first, "--name", "never", "true")
    shown = ask(own, "job", "show", second)
    assert (shown["state"], shown["reason"]) == ("IN_QUEUE", f"waiting for job {first}")
    assert f"{first} is ok, which it waits for" in updraft(own, "job", "show", second).out
    gate.open()
    assert updraft(own, "job", "wait", second).code == 0
    assert wait_state(own, never, "CANCELLED")["reason"].startswith(f"job {first} is ok")
    assert call(own, "urun", "--after", second, "echo", "late").out == "late\n"


def test_arrays_are_paired_task_by_task(own: Instance) -> None:
    first = submit(own, "-N", "3", "--shell", "exit $((UPDRAFT_TASK_INDEX == 1))")
    second = submit(own, "-N", "3", "--after-ok", f"{first}/*", "true")
    assert wait_state(own, second, "CANCELLED")["tasks"]["failed"] == "1"
    said = call(own, "ubatch", "-N", "4", "--after", f"{first}/*", "true")
    assert said.code == 1 or said.code > 1
    assert "which need the same count" in said.error


def test_an_upstream_that_is_not_there_is_refused_and_leaves_no_job(own: Instance) -> None:
    before = jobs(own)
    said = call(own, "ubatch", "--after", "nosuchjob1", "true")
    assert said.error.startswith("ubatch: there is no job 'nosuchjob1' to run after")
    assert call(own, "ubatch", "--after", "a/b", "true").error.startswith("ubatch: --after:")
    assert jobs(own) == before


def test_a_flow_runs_its_steps_in_order_and_skips_what_is_there_for_failures(
    own: Instance, tmp_path: Path
) -> None:
    said = updraft(own, "flow", "run", "-f", flow_file(tmp_path))
    assert said.code == 0, said
    flow = said.out.splitlines()[0]
    assert said.out.splitlines()[-1] == f"flow {flow} (digits): 4 of 5 steps ok, 1 skipped"
    assert (tmp_path / "model").read_text() == "data 7\n"
    assert states(own, flow)["alarm"] == "skipped"
    assert not (tmp_path / "alarm").exists()
    lines = updraft(own, "flow", "show", flow).out.splitlines()
    width = lines[1].index("STATE")
    assert [line[:width].rstrip() for line in lines[2:]] == [
        "prepare",
        "├─ train",
        "│  ├─ alarm",
        "│  └─ report (and after many)",
        "└─ many",
    ]
    listed = ask(own, "flow", "list")
    assert (listed[0]["id"], listed[0]["ok"]) == (flow, True)
    assert updraft(own, "flow", "restore", flow).error.endswith("nothing is to be run again")


def test_a_flow_that_failed_is_restored_where_it_failed(own: Instance, tmp_path: Path) -> None:
    said = updraft(own, "flow", "run", "-f", flow_file(tmp_path, code=3, low=2))
    assert said.code == 1
    flow = said.out.splitlines()[0]
    assert states(own, flow) == {
        "prepare": "SUCCESS",
        "train": "SUCCESS",
        "many": "SUCCESS",
        "alarm": "SUCCESS",
        "report": "CANCELLED",
    }
    (tmp_path / "data").write_text("kept\n")
    flow_file(tmp_path)
    said = updraft(own, "flow", "restore", "-f", flow)
    assert said.code == 0, said
    new = said.out.splitlines()[0]
    assert states(own, new) == {
        "train": "SUCCESS",
        "many": "SUCCESS",
        "alarm": "skipped",
        "report": "SUCCESS",
    }
    assert (tmp_path / "model").read_text() == "kept 7\n", "prepare ran again"
    shown = ask(own, "flow", "show", new)
    assert shown["restores"] == flow
    many = next(step["job"] for step in shown["steps"] if step["name"] == "many")
    assert ask(own, "job", "show", many["id"])["tasks"]["total"] == 2, "only those not ok"


def test_a_flow_is_cancelled_as_one(own: Instance, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    file = written(
        tmp_path,
        f"steps: [{{name: a, command: '{gate.read()}'}},"
        " {name: b, command: 'true', needs: [a]}, {name: c, command: 'true', needs: {a: fail}}]",
    )
    flow = updraft(own, "flow", "run", file).out.strip()
    assert states(own, flow)["b"] == "IN_QUEUE"
    assert updraft(own, "flow", "restore", flow).error.startswith(f"updraft: flow {flow} has not")
    said = updraft(own, "flow", "cancel", flow)
    assert (said.out, said.err) == ("", "updraft: 3 steps are being cancelled\n")
    assert updraft(own, "flow", "show", "-f", flow).code == 1
    assert set(states(own, flow).values()) == {"CANCELLED"}


def test_the_same_id_is_the_same_flow(own: Instance, tmp_path: Path) -> None:
    file = written(tmp_path, "steps: [{name: a, command: 'true'}]")
    first = updraft(own, "flow", "run", file).out
    before = jobs(own)
    assert updraft(own, "flow", "run", "--id", first.strip(), file).out == first
    assert jobs(own) == before


def test_a_step_that_the_server_refuses_takes_the_flow_back(own: Instance, tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "steps: [{name: a, command: 'sleep 100'}, {name: b, command: 'true', cpus: 99999}]",
    )
    before = jobs(own)
    said = updraft(own, "flow", "run", file)
    assert said.code == 1
    assert said.error.startswith("updraft: step b: ")
    assert said.error.endswith("; the flow was given up")
    (job,) = jobs(own) - before
    wait_state(own, job, "CANCELLED")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "steps: [{name: a, command: x, pool: mars}]",
            "step a: there is no pool 'mars'; the pools",
        ),
        ("steps: [{name: a, name: b, command: x}]", "line 1: the key 'name' stands twice"),
        ("steps: [", "line 1:"),
        ("- a", "a flow is a mapping with a list of steps"),
    ],
)
def test_a_file_that_is_wrong_submits_nothing(
    own: Instance, tmp_path: Path, text: str, says: str
) -> None:
    before = jobs(own)
    said = updraft(own, "flow", "run", written(tmp_path, text))
    assert said.code in (1, 2)
    assert says in said.error
    assert jobs(own) == before


def test_every_mistake_of_a_file_is_told_at_once(own: Instance, tmp_path: Path) -> None:
    file = written(tmp_path, "steps: [{name: a, comand: x}, {name: b, command: y, needs: [c]}]")
    said = updraft(own, "flow", "run", file)
    assert (said.out, said.code) == ("", 2)
    assert [line.removeprefix(f"updraft: {file}: ") for line in said.err.splitlines()] == [
        "step a: unknown key 'comand'; did you mean command?",
        'step a: command: write it as a text for the shell, or as a list: ["echo", "1"]',
        "step b: it needs 'c', which is none; there are: a, b",
    ]


def test_following_a_flow_as_json_says_one_document(own: Instance, tmp_path: Path) -> None:
    said = updraft(own, "flow", "run", "-f", "--json", flow_file(tmp_path))
    assert json.loads(said.out)["ok"] is True
