"""A report as text for a terminal, as Markdown for the README, and as JSON for machines."""

import json
from collections.abc import Sequence

from benchmarks.report import Asked, Report, Row, Table, Unit

_HEADINGS = ("measure", "measured", "asked", "verdict")


def facts_as_text(facts: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts)


def table_as_text(table: Table) -> str:
    lines = [_HEADINGS, *(_cells(row) for row in table.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    body = (_text_line(line, widths) for line in lines)
    return "\n".join([f"{table.name}: {table.title}", *body])


def as_markdown(report: Report) -> str:
    facts = "; ".join(f"{name} {value}" for name, value in report.facts)
    return "\n\n".join(
        [*(_table_as_markdown(table) for table in report.tables), f"Measured on: {facts}."]
    )


def as_json(report: Report) -> str:
    return json.dumps(
        {
            "facts": dict(report.facts),
            "benchmarks": [
                {
                    "name": table.name,
                    "title": table.title,
                    "rows": [_row_as_dict(r) for r in table.rows],
                }
                for table in report.tables
            ],
        },
        indent=2,
        ensure_ascii=False,
    )


def figure(value: float, unit: Unit) -> str:
    """`value` with as many decimals as mean something in its unit."""
    match unit:
        case Unit.COUNT:
            return f"{value:,.0f}"
        case Unit.RATIO:
            return f"{value:.2f}×"
        case Unit.MILLISECONDS | Unit.SECONDS | Unit.PERCENT:
            return f"{value:.2f} {unit}"
        case Unit.MB_PER_SECOND | Unit.TASKS_PER_SECOND:
            return f"{value:,.0f} {unit}"
        case Unit.MB:
            return f"{value:.1f} {unit}"


def _cells(row: Row) -> tuple[str, str, str, str]:
    measured = "—" if row.value is None else figure(row.value, row.unit)
    verdict = ": ".join(part for part in (row.verdict.value, row.note) if part)
    return row.name, measured, _asked(row.asked, row.unit), verdict


def _asked(asked: Asked | None, unit: Unit) -> str:
    if asked is None:
        return ""
    sign = (
        ("> " if asked.strictly else "≥ ")
        if asked.higher_is_better
        else ("< " if asked.strictly else "≤ ")
    )
    must = f"{sign}{_limit(asked.must, unit)}"
    return must if asked.aim is None else f"{must}, aim {sign}{_limit(asked.aim, unit)}"


def _limit(value: float, unit: Unit) -> str:
    return f"{value:.1f}×" if unit is Unit.RATIO else f"{value:g} {unit}".strip()


def _text_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, measured, asked, verdict = cells
    return (
        f"  {name:<{widths[0]}}  {measured:>{widths[1]}}  {asked:<{widths[2]}}  {verdict}".rstrip()
    )


def _table_as_markdown(table: Table) -> str:
    lines = [
        f"**{table.name}**: {table.title}",
        "",
        f"| {' | '.join(_HEADINGS)} |",
        "|---|---:|---|---|",
        *(
            f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in _cells(row))} |"
            for row in table.rows
        ),
    ]
    return "\n".join(lines)


def _row_as_dict(row: Row) -> dict[str, object]:
    asked = row.asked
    return {
        "name": row.name,
        "value": row.value,
        "unit": row.unit.value,
        "asked": None
        if asked is None
        else {
            "must": asked.must,
            "aim": asked.aim,
            "better": "higher" if asked.higher_is_better else "lower",
            "strictly": asked.strictly,
        },
        "verdict": row.verdict.value or "noted",
        "note": row.note,
    }
