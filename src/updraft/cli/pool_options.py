"""The settings of a pool as options of ``updraft pool create`` and ``update``."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

import click

from updraft import errors, quantities

Callback = Callable[..., Any]


class Given(NamedTuple):
    """A setting on the command line; None: as it is by default."""

    value: Any


def _or(word: str, read: Callable[[str], Any]) -> Callable[[str], Given]:
    def parse(text: str) -> Given:
        if text == word:
            return Given(None)
        try:
            return Given(read(text))
        except errors.BadRequest as error:
            raise click.BadParameter(f"{error.message}, or {word}") from error

    return parse


def _cpus(text: str) -> float:
    milli = quantities.parse_cpus(text)
    if not milli:
        raise errors.BadRequest(f"{text!r} is too little for any job; write it like 2 or 0.5")
    return milli / 1000


def _memory(text: str) -> int:
    size = quantities.parse_bytes(text)
    if size < 1 << 20:
        raise errors.BadRequest(f"{text!r} is too little for any job; the least is 1M")
    return size


def _time(text: str) -> float:
    seconds = quantities.parse_duration(text)
    if not seconds:
        raise errors.BadRequest(f"{text!r} is no time that a job could run; write it like 2h")
    return seconds


def _price(text: str) -> Decimal:
    try:
        price = Decimal(text)
    except InvalidOperation:
        price = Decimal(-1)
    if not price.is_finite() or price < 0:
        raise errors.BadRequest(f"{text!r} is no price of an hour; write it like 2.50")
    return price


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= 1 << 20:
        raise errors.BadRequest(f"{text!r} is no number of runners; write it like 8")
    return int(text)


def _pairs(texts: tuple[str, ...], example: str) -> dict[str, str] | None:
    if texts in ((), ("none",)):
        return {} if texts else None
    found = {}
    for text in texts:
        key, mark, value = text.partition("=")
        if not key or not mark:
            raise click.BadParameter(f"{text!r} is no pair; write it like {example}, or none")
        found[key] = value
    return found


def _labels(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> Any:
    return _pairs(texts, "disk=fast")


def _gpus(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> Any:
    found = _pairs(texts, "a100=8")
    for kind, count in (found or {}).items():
        if not (count.isascii() and count.isdecimal()):
            raise click.BadParameter(f"{kind}={count}: a number is needed, as in a100=8")
    return None if found is None else {kind: int(count) for kind, count in found.items()}


def _projects(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> Any:
    return None if not texts else [text for text in texts if text != "none"]


_OPTIONS = (
    click.option("--cpus", metavar="N", type=_or("all", _cpus),
                 help="CPUs of each runner that jobs may have; all."),
    click.option("--memory", "memory_bytes", metavar="SIZE", type=_or("all", _memory),
                 help="Memory of each runner that jobs may have; all."),
    click.option("--gpus", metavar="KIND=N", multiple=True, callback=_gpus,
                 help="GPUs of each runner that jobs may have, by kind; without it all."),
    click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, callback=_labels,
                 help="A label of the pool."),
    click.option("--region", metavar="TEXT", help="Where its machines are."),
    click.option("--jurisdiction", metavar="TEXT",
                 help="Where what its jobs write may lie; local."),
    click.option("--peer-network", metavar="TEXT",
                 help="The network in which its machines reach each other."),
    click.option("--project", "projects", metavar="PROJECT", multiple=True, callback=_projects,
                 help="A project that may use it; without it all may."),
    click.option("--preemptible/--not-preemptible", default=None,
                 help="Whether its machines may be taken away at any time; not."),
    click.option("--price", "price_per_hour", metavar="AMOUNT", type=_or("none", _price),
                 help="The price of a runner for an hour; none."),
    click.option("--time-limit", "time_limit_seconds", metavar="TIME", type=_or("never", _time),
                 help="The longest that a job may run; never."),
    click.option("--max-runners", metavar="N", type=_or("unlimited", _count),
                 help="How many machines may join; unlimited."),
)  # fmt: skip


def settings(callback: Callback) -> Callback:
    """Give a command an option for each of a pool's settings."""
    for option in reversed(_OPTIONS):
        callback = option(callback)
    return callback


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that the command line has."""
    return {
        name: option.value if isinstance(option, Given) else option
        for name, option in options.items()
        if option is not None
    }
