"""How fast the pool scheduler decides, on a made-up trace and virtual time.

`python -m benchmarks.simulate` runs small; `--tasks 1000000 --runners 10000 --load 2` is the full
size. It needs Updraft to be importable, and nothing to be installed or served.
"""

import argparse
import resource
import time

from updraft.simulation.generator import Machines, generate
from updraft.simulation.report import POLICIES, figures, simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate")
    parser.add_argument("--seed", type=int, nargs="+", default=[101])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--runners", type=int, default=20)
    parser.add_argument("--load", type=float, default=0.95)
    parser.add_argument("--policy", choices=list(POLICIES), nargs="+", default=["updraft"])
    options = parser.parse_args()
    machines = Machines(options.runners)
    for seed in options.seed:
        jobs = generate(seed, options.tasks, machines, options.load)
        for policy in options.policy:
            began = time.monotonic()
            found = figures(policy, simulate(jobs, machines, policy))
            seconds = time.monotonic() - began
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            longest = max(each["longest_seconds"] for each in found["waits"].values())
            decisions = found["decisions"]
            print(
                f"seed {seed}  {policy:8}"
                f"  slowdown {found['mean_bounded_slowdown']:8.2f}"
                f"  by job {found['mean_bounded_slowdown_by_job']:8.2f}"
                f"  fairness {found['jain_fairness']:.4f}"
                f"  CPUs {found['utilisation']['cpus']:.1%}"
                f"  GPUs {found['utilisation']['gpus']:.1%}"
                f"  longest wait {longest / 3600:.1f} h"
                f"  gap {found['longest_gap_seconds'] / 3600:.1f} h"
                f"  p99 {decisions['p99_ms']:.2f} ms  longest {decisions['longest_ms']:.0f} ms"
                f"  {decisions['events']} events  {seconds:.1f} s  {memory:.0f} MiB",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
