"""Sets of task indices as ranges: what an array of a million tasks needs is what its gaps need."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from updraft import errors

_BEYOND = 1 << 62


class Ranges:
    """A set of non-negative integers, kept as sorted disjoint ranges.

    Looking for one is a binary search; what changes one costs up to the number of ranges.
    """

    __slots__ = ("_count", "_starts", "_stops")

    def __init__(self, members: Iterable[int] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self._count = 0
        for each in members:
            self.add(each)

    @classmethod
    def span(cls, start: int, stop: int) -> Ranges:
        """Return all from ``start`` up to, but without, ``stop``."""
        found = cls()
        if start < stop:
            found._starts, found._stops, found._count = [start], [stop], stop - start
        return found

    @classmethod
    def parse(cls, text: str) -> Ranges:
        """Return what ``str`` wrote: ``0-16,18``.  Raises ``errors.BadRequest``."""
        found = cls()
        for part in filter(None, text.split(",")):
            first, dash, last = part.partition("-")
            numbers = (first, last if dash else first)
            if not all(n.isascii() and n.isdecimal() and len(n) < 10 for n in numbers):
                raise errors.BadRequest(f"{part!r} is no index or range; write it as 7 or 3-9")
            low, high = int(numbers[0]), int(numbers[1])
            if low > high:
                raise errors.BadRequest(f"{part!r} is empty; write a range as LOW-HIGH")
            found.update(low, high + 1)
        return found

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        return self._count > 0

    def __contains__(self, member: int) -> bool:
        at = bisect_right(self._starts, member) - 1
        return at >= 0 and member < self._stops[at]

    def __iter__(self) -> Iterator[int]:
        for start, stop in self.spans():
            yield from range(start, stop)

    def __str__(self) -> str:
        return ",".join(
            str(start) if stop - start == 1 else f"{start}-{stop - 1}"
            for start, stop in self.spans()
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and list(self.spans()) == list(other.spans())

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield each range as (start, stop)."""
        return zip(self._starts, self._stops, strict=True)

    def first(self) -> int:
        """Return the lowest.  Raises ``IndexError`` when there is none."""
        return self._starts[0]

    def add(self, member: int) -> None:
        """Put one in."""
        if member not in self:
            self.update(member, member + 1)

    def update(self, start: int, stop: int) -> None:
        """Put all from ``start`` up to, but without, ``stop`` in."""
        if start >= stop:
            return
        low = bisect_right(self._stops, start - 1)  # the first that touches it, or lies behind
        high = bisect_right(self._starts, stop)
        if low < high:
            start = min(start, self._starts[low])
            stop = max(stop, self._stops[high - 1])
        gone = sum(self._stops[at] - self._starts[at] for at in range(low, high))
        self._starts[low:high] = [start]
        self._stops[low:high] = [stop]
        self._count += stop - start - gone

    def discard(self, member: int) -> None:
        """Take one out, if it is there."""
        at = bisect_right(self._starts, member) - 1
        if at < 0 or member >= self._stops[at]:
            return
        start, stop = self._starts[at], self._stops[at]
        left = [(low, high) for low, high in ((start, member), (member + 1, stop)) if low < high]
        self._starts[at : at + 1] = [low for low, _ in left]
        self._stops[at : at + 1] = [high for _, high in left]
        self._count -= 1

    def cut(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Take out all from ``start`` up to, but without, ``stop``; return what was there."""
        low = bisect_right(self._stops, start)  # the first that reaches into it
        high = bisect_left(self._starts, stop)
        if low >= high or start >= stop:
            return []
        spans = list(zip(self._starts[low:high], self._stops[low:high], strict=True))
        gone = [(max(first, start), min(last, stop)) for first, last in spans]
        edges = [(spans[0][0], start), (stop, spans[-1][1])]
        left = [(first, last) for first, last in edges if first < last]
        self._starts[low:high] = [first for first, _ in left]
        self._stops[low:high] = [last for _, last in left]
        self._count -= sum(last - first for first, last in gone)
        return gone

    def without(self, other: Ranges) -> Ranges:
        """Return those that are not in ``other``."""
        left = Ranges()
        gaps = [*other.spans(), (_BEYOND, _BEYOND)]
        at = 0
        for start, stop in self.spans():
            while gaps[at][1] <= start:
                at += 1
            low, gap = start, at
            while low < stop:
                if low < gaps[gap][0]:
                    left.update(low, min(stop, gaps[gap][0]))
                low = max(gaps[gap][1], low)
                gap += 1
        return left

    def take(self, most: int) -> list[int]:
        """Take out up to ``most`` of the lowest, and return them."""
        taken: list[int] = []
        gone = 0
        while len(taken) < most and gone < len(self._starts):
            start, stop = self._starts[gone], self._stops[gone]
            end = min(stop, start + most - len(taken))
            taken.extend(range(start, end))
            if end == stop:
                gone += 1
            else:
                self._starts[gone] = end
        del self._starts[:gone]
        del self._stops[:gone]
        self._count -= len(taken)
        return taken
