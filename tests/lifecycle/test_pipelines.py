"""Stages of a pipeline are jobs that need each other: no queue may hold one back for another."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from updraft.testing.instance import Instance, instance


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with instance(tmp_path_factory.mktemp("pipelines")) as made:
        assert made.run("urun", "true").returncode == 0
        yield made


def test_more_stages_than_cpus_end(own: Instance) -> None:
    stages = ["urun seq 300000", *["urun cat"] * (2 * (os.cpu_count() or 1)), "urun tail -n 1"]
    result = subprocess.run(
        ["sh", "-c", " | ".join(stages)],
        env={**own.environment, "PATH": f"{own.commands}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.stdout == b"300000\n", result.stderr


def test_jobs_that_only_share_an_output_still_wait_for_cpus(own: Instance, tmp_path: Path) -> None:
    """``(urun a; urun b) | tee`` is one pipe for many jobs, and no pipeline of them."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    read, write = os.pipe()

    def start(*command: str) -> subprocess.Popen[bytes]:
        cpus = str(os.cpu_count() or 1)
        return subprocess.Popen(
            own.command("urun", "--cpus", cpus, *command),
            env=own.environment,
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=subprocess.PIPE,
        )

    with start("sh", "-c", f"echo held; cat {gate}; echo released") as holder:
        assert os.read(read, 100) == b"held\n"
        with start("echo", "next") as waiting:
            assert waiting.stderr is not None
            assert b"waits" in waiting.stderr.readline()
            with gate.open("w") as release:
                release.write("go\n")
            assert holder.wait(timeout=30) == waiting.wait(timeout=30) == 0
    os.close(write)
    with os.fdopen(read, "rb") as output:
        assert output.read() == b"go\nreleased\nnext\n"
