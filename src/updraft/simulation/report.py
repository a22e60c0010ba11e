"""A run's figures as plain values, as tables, and as a page with plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from updraft.scheduling.scheduler import PoolScheduler
from updraft.simulation.baselines import Drf, Easy, Fifo
from updraft.simulation.generator import Machines
from updraft.simulation.machine import Machine, Policy, Result
from updraft.simulation.trace import TraceJob

POLICIES: dict[str, Callable[[], Policy]] = {
    "updraft": PoolScheduler,
    "fifo": Fifo,
    "easy": Easy,
    "drf": Drf,
}
"""Updraft's own policy, and what it is compared with."""

KINDS = ("single", "array", "gang")


def simulate(jobs: Sequence[TraceJob], machines: Machines, policy: str) -> Result:
    """Run a trace under a policy.  Raises ``errors.BadRequest`` for a job that never fits."""
    return Machine(jobs, machines, POLICIES[policy]()).run()


def figures(policy: str, result: Result) -> dict[str, Any]:
    """Return a run's figures.  All but ``decisions`` are the same in every run."""
    took = sorted(result.decision_seconds or [0.0])
    metrics = result.metrics
    return {
        "policy": policy,
        "jobs": result.jobs,
        "tasks": result.tasks,
        "runners": result.machines.runners,
        "preempted_tasks": result.preempted,
        "end_seconds": round(result.end_s, 3),
        "utilisation": {
            "cpus": round(result.cpu_utilisation, 4),
            "gpus": round(result.gpu_utilisation, 4),
        },
        "mean_bounded_slowdown": round(metrics.mean_bounded_slowdown, 4),
        "mean_bounded_slowdown_by_job": round(metrics.mean_bounded_slowdown_by_job, 4),
        "jain_fairness": round(metrics.fairness, 4),
        "longest_gap_seconds": round(result.longest_gap_s, 3),
        "longest_gap_bound_seconds": result.gap_bound_s if policy == "updraft" else None,
        "waits": {
            kind: {
                "tasks": waits.tasks,
                "mean_seconds": round(waits.mean_seconds, 3),
                "median_seconds": round(waits.quantile(0.5), 3),
                "p95_seconds": round(waits.quantile(0.95), 3),
                "longest_seconds": round(waits.longest_seconds, 3),
            }
            for kind in KINDS
            if (waits := metrics.waits.get(kind)) is not None
        },
        "decisions": {
            "count": len(took),
            "events": result.events,
            "mean_ms": round(1000 * sum(took) / len(took), 4),
            "p99_ms": round(1000 * took[int(len(took) * 0.99)], 4),
            "longest_ms": round(1000 * took[-1], 4),
        },
    }


_WIDTH, _HEIGHT, _MARGIN = 760, 180, 40
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
_STYLE = (
    "body{font:14px sans-serif;margin:2em;max-width:820px}svg{display:block}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:right}"
    "th:first-child,td:first-child{text-align:left}"
)


def page(results: Mapping[str, Result], table: Sequence[Sequence[str]]) -> str:
    """Return a page of HTML with plots in it, which needs nothing else; first the table's heads."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>updraft simulate</title>"
        f"<style>{_STYLE}</style><h1>updraft simulate</h1>",
        _table(table),
    ]
    parts.append(_legend(list(results)))
    for title, at, most in (("CPUs in use", 1, 1.0), ("GPUs in use", 2, 1.0), ("waiting", 3, 0.0)):
        lines = [
            [(sample[0] / 3600, float(sample[at])) for sample in result.busy or ()]
            for result in results.values()
        ]
        parts.append(_plot(title, lines, most))
    for kind in KINDS:
        lines = [_distribution(result, kind) for result in results.values()]
        if any(lines):
            parts.append(
                _plot(f"wait in hours that a share of the tasks exceeds: {kind}", lines, 1)
            )
    return "\n".join(parts) + "\n"


def _distribution(result: Result, kind: str) -> list[tuple[float, float]]:
    waits = result.metrics.waits.get(kind)
    if waits is None:
        return []
    points = [part / 100 for part in range(101)]
    return [(waits.quantile(part) / 3600, 1 - part) for part in points]


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    cells = "".join(f"<th>{escape(cell)}" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) for row in body)
    return f"<table><tr>{cells}{lines}</table>"


def _legend(names: Sequence[str]) -> str:
    items = zip(names, _COLOURS, strict=False)
    return "<p>" + " ".join(f'<b style="color:{colour}">{escape(n)}</b>' for n, colour in items)


def _plot(title: str, lines: Sequence[Sequence[tuple[float, float]]], most: float) -> str:
    right = max((x for line in lines for x, _ in line), default=1.0) or 1.0
    top = most or max((y for line in lines for _, y in line), default=1.0) or 1.0
    drawn = [
        f'<polyline fill="none" stroke="{colour}" stroke-width="1.2" points="'
        + " ".join(
            f"{_MARGIN + x / right * _WIDTH:.1f},{10 + _HEIGHT * (1 - min(y / top, 1)):.1f}"
            for x, y in line
        )
        + '"/>'
        for line, colour in zip(lines, _COLOURS, strict=False)
        if line
    ]
    axis = (
        f'<path d="M{_MARGIN} 10V{_HEIGHT + 10}H{_WIDTH + _MARGIN}" fill="none" stroke="#888"/>'
        f'<text x="0" y="20">{top:.3g}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 26}">{right:.3g} h</text>'
    )
    size = f'width="{_WIDTH + 2 * _MARGIN}" height="{_HEIGHT + 32}"'
    return f"<h2>{escape(title)}</h2><svg {size}>{axis}{''.join(drawn)}</svg>"
