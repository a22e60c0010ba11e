"""Pools and runners as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from updraft.cli.output import text

if TYPE_CHECKING:
    from updraft.wire.fleet_schemas import PoolInfo, RunnerInfo

RUNNER_HEADERS = (
    "NAME",
    "POOL",
    "STATE",
    "SEEN",
    "CPUS",
    "MEMORY",
    "GPUS",
    "TASKS",
    "SERVES",
    "RELEASE",
)
POOL_HEADERS = ("NAME", "RUNNERS", "CPUS", "MEMORY", "GPUS", "RUNNING", "QUEUED", "REASON")


def runner_row(runner: RunnerInfo) -> tuple[str, ...]:
    """Return a runner's row; amounts are what is free of what it has."""
    return (
        runner.name,
        runner.pool,
        runner.state,
        _seen(runner),
        _of(f"{runner.cpus_free:g}", f"{runner.cpus:g}"),
        _of(text.size(max(runner.memory_free_bytes, 0)), text.size(runner.memory_bytes)),
        _of(str(runner.gpus_free), str(len(runner.gpus))),
        str(runner.tasks),
        "everybody" if runner.serves is None else text.printable(runner.serves),
        _release(runner),
    )


def runner_pairs(runner: RunnerInfo) -> list[tuple[str, str]]:
    """Return what there is to say about a runner."""
    labels = [header.lower() for header in RUNNER_HEADERS]
    pairs = list(zip(labels, runner_row(runner), strict=True))
    pairs += [("gpu", f"{gpu.index}: {text.printable(gpu.kind)}") for gpu in runner.gpus]
    if runner.upgrading:
        pairs.append(("upgrade", "running"))
    elif runner.upgrade_problem is not None:
        pairs.append(("upgrade", f"failed: {text.printable(runner.upgrade_problem)}"))
    return pairs


def pool_row(pool: PoolInfo) -> tuple[str, ...]:
    """Return a pool's row; amounts are what is free of what its ready runners have."""
    return (
        pool.name,
        _of(str(pool.runners_ready), str(pool.runners)),
        _of(f"{pool.cpus_free:g}", f"{pool.cpus:g}"),
        _of(text.size(pool.memory_free_bytes), text.size(pool.memory_bytes)),
        _of(str(pool.gpus_free), str(pool.gpus)),
        str(pool.running),
        str(pool.queued) if not pool.ahead else f"{pool.queued} ({pool.ahead} ahead)",
        _reason(pool),
    )


def pool_pairs(pool: PoolInfo) -> list[tuple[str, str]]:
    """Return what there is to say about a pool; below are its settings."""
    labels = ("name", "ready", "free cpus", "free memory", "free gpus", "running", "queued")
    settings = pool.settings
    limit, price = settings.time_limit_seconds, settings.price_per_hour
    memory = settings.memory_bytes
    return [
        *zip(labels, pool_row(pool)[:-1], strict=True),
        ("reason", _reason(pool)),
        ("draining", text.yes_no(pool.draining)),
        ("from", "updraft.toml" if pool.configured else "updraft pool create"),
        ("cpus each", "all" if settings.cpus is None else f"{settings.cpus:g}"),
        ("memory each", "all" if memory is None else text.size(memory)),
        ("gpus each", _pairs(settings.gpus) or "all"),
        ("labels", _pairs(settings.labels) or "-"),
        ("region", settings.region or "-"),
        ("jurisdiction", settings.jurisdiction or "-"),
        ("peer network", settings.peer_network or "-"),
        ("projects", ", ".join(settings.projects) or "all"),
        ("preemptible", text.yes_no(settings.preemptible)),
        ("price", "-" if price is None else f"{price} an hour"),
        ("time limit", "never" if limit is None else text.duration(limit)),
        ("max runners", str(settings.max_runners or "unlimited")),
    ]


def _reason(pool: PoolInfo) -> str:
    if pool.reason:
        return text.printable(pool.reason)
    return "draining" if pool.draining else "-"


def _seen(runner: RunnerInfo) -> str:
    if runner.seen_seconds is None:
        return "-"
    # What is connected is heard of all the time; exact figures would only make lists differ.
    return "now" if runner.state in ("ready", "draining") else text.duration(runner.seen_seconds)


def _release(runner: RunnerInfo) -> str:
    if runner.release is None:
        return "-"
    return text.printable(runner.release) + (" (old)" if runner.outdated else "")


def _of(free: str, total: str) -> str:
    return f"{free} of {total}"


def _pairs(values: dict[str, str] | dict[str, int]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(values.items()))
