"""``updraft simulate``."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from updraft.cli import commands


def simulate(*arguments: str) -> Result:
    return CliRunner().invoke(commands.ROOT, ["simulate", *arguments])


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that a wrong call gets."""
    assert commands.main(["simulate", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def made(folder: Path) -> str:
    trace = str(folder / "trace.csv")
    found = simulate("--generate", "3", "--tasks", "200", "--runners", "4", "-o", trace)
    assert (found.exit_code, found.output) == (0, "")
    return trace


def test_a_made_up_trace_is_run_under_each_policy(tmp_path: Path) -> None:
    trace = made(tmp_path)
    every = ("updraft", "fifo", "easy", "drf")
    found = simulate(trace, "--runners", "4", "--json", *(f"--policy={name}" for name in every))
    figures = json.loads(found.stdout)
    assert tuple(each["policy"] for each in figures) == every
    for each in figures:
        assert each["tasks"] == 200
        assert each["mean_bounded_slowdown"] >= 1
        assert 0 < each["jain_fairness"] <= 1
        assert set(each["waits"]) <= {"single", "array", "gang"}


def test_tables_have_a_row_for_each_policy_and_class_and_a_page_has_plots(tmp_path: Path) -> None:
    trace, plot = made(tmp_path), tmp_path / "page.html"
    found = simulate(trace, "--runners", "4", "--plot", str(plot))
    lines = found.stdout.splitlines()
    assert lines[0].split()[:2] == ["POLICY", "SLOWDOWN"]
    assert lines[1].startswith("updraft ")
    assert any(line.split()[:2] == ["updraft", "single"] for line in lines)
    assert "<svg" in plot.read_text()


def test_a_made_up_trace_goes_to_stdout_without_a_file() -> None:
    found = simulate("--generate", "3", "--tasks", "20")
    assert found.stdout.startswith("submit_s,user,project,cpus,")


def test_a_bad_trace_is_one_line_and_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("submit_s,user,duration_s\n0,ann,soon\n")
    assert f"{bad}, line 2: duration_s: 'soon' is no number of seconds" in fails(capsys, str(bad))
    bad.write_bytes(b"\xff\xfe")
    assert "is no text" in fails(capsys, str(bad))
    assert "No such file" in fails(capsys, str(tmp_path / "nothing.csv"))
    assert "is a directory" in fails(capsys, str(tmp_path))


def test_a_wrong_call_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give a TRACE" in fails(capsys)
    trace = made(tmp_path)
    assert "give a TRACE" in fails(capsys, trace, "--generate", "1")
    assert "--plot" in fails(capsys, trace, "-o", "x")
    assert "'lottery' is not one of" in fails(capsys, trace, "--policy", "lottery")
    assert "raise --runners" in fails(capsys, trace, "--runners", "1", "--cpus", "1")
    assert "--memory" in fails(capsys, trace, "--memory", "much")
    missing = str(tmp_path / "no" / "page.html")
    assert "--plot" in fails(capsys, trace, "--runners", "4", "--plot", missing)
    assert "choose another file" in fails(capsys, "--generate", "1", "--tasks", "9", "-o", missing)
