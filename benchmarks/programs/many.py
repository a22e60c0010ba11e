"""Runs `true` many times, four at once, by one tool: `many.py TOOL COUNT`.

TOOL: `bare` (a loop of `posix_spawn`, the floor), `dask`, `ray`, `hyperqueue` or
`hyperqueue-output`, of the interpreter that runs this. What a tool needs once (its server, its
workers) is up and has run something before the clock starts. Tells as JSON how many seconds went
by from the first submission until all had ended well.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

AT_ONCE = 4
_TRUE = "/usr/bin/true" if os.path.exists("/usr/bin/true") else "/bin/true"  # noqa: PTH110
_WARM = 400


def start_true() -> int:
    """Return the process's id; its output goes nowhere."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawn(_TRUE, [_TRUE], {}, file_actions=actions)


def run_true(_: int) -> int:
    """Return its wait status."""
    return os.waitpid(start_true(), 0)[1]


def bare(count: int) -> float:
    return _timed(_bare_loop, count)


def dask(count: int) -> float:
    """Four worker processes of a thread each, which hold tasks ahead of need.

    Faster here than fewer workers with more threads, and than its own default, which holds back.
    """
    os.environ["DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION"] = "inf"
    distributed: Any = importlib.import_module("distributed")
    workers = {"n_workers": AT_ONCE, "threads_per_worker": 1, "processes": True}
    with (
        distributed.LocalCluster(**workers, dashboard_address=None, silence_logs=40) as cluster,
        distributed.Client(cluster) as client,
    ):

        def run(times: int) -> None:
            ended = client.gather(client.map(run_true, range(times), pure=False))
            assert not any(ended)

        run(_WARM)
        return _timed(run, count)


def ray(count: int) -> float:
    """Without dashboard and log monitor; results return with the tasks' replies."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray_: Any = importlib.import_module("ray")
    quiet = {"include_dashboard": False, "logging_level": "error", "log_to_driver": False}
    ray_.init(num_cpus=AT_ONCE, object_store_memory=200_000_000, **quiet)
    task = ray_.remote(run_true)

    def run(times: int) -> None:
        assert not any(ray_.get([task.remote(number) for number in range(times)]))

    run(_WARM)
    taken = _timed(run, count)
    ray_.shutdown()
    return taken


def hyperqueue(count: int, **output: None) -> float:
    """Four workers of a core each: faster here than one of four. Works in the current folder."""
    hq: Any = importlib.import_module("hyperqueue")
    worker = importlib.import_module("hyperqueue.cluster").WorkerConfig(cores=1)
    with hq.LocalCluster(f"{os.getcwd()}/server", worker) as cluster:  # noqa: PTH109
        for _ in range(AT_ONCE - 1):
            cluster.start_worker(worker)
        client = cluster.client()

        def run(times: int) -> None:
            job = hq.Job()
            for _ in range(times):
                job.program([_TRUE], **output)
            client.wait_for_jobs([client.submit(job)])

        run(_WARM)
        return _timed(run, count)


def _bare_loop(count: int) -> None:
    left, running = count, 0
    while left or running:
        while left and running < AT_ONCE:
            start_true()
            left, running = left - 1, running + 1
        assert os.wait()[1] == 0
        running -= 1


def _timed(run: Callable[[int], None], count: int) -> float:
    start = time.perf_counter()
    run(count)
    return time.perf_counter() - start


TOOLS: dict[str, Callable[[int], float]] = {
    "bare": bare,
    "dask": dask,
    "ray": ray,
    "hyperqueue": lambda count: hyperqueue(count, stdout=None, stderr=None),
    "hyperqueue-output": hyperqueue,
}

if __name__ == "__main__":
    print(json.dumps({"seconds": TOOLS[sys.argv[1]](int(sys.argv[2]))}))
