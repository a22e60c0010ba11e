"""On which nodes more has become free, so that nobody looks at all nodes twice."""

from __future__ import annotations

from collections.abc import Sequence

_KEPT = 4096


class Growth:
    """A record of nodes in the order in which they grew; a mark says how far one has read it."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._begin = 0

    @property
    def mark(self) -> int:
        """Where the record ends now."""
        return self._begin + len(self._names)

    def note(self, name: str) -> None:
        """More is free on a node, or may be used by more."""
        self._names.append(name)
        if len(self._names) > _KEPT:
            self.note_all()

    def note_all(self) -> None:
        """Every node may have grown."""
        self._begin += len(self._names) + 1
        self._names.clear()

    def since(self, mark: int, most: int) -> Sequence[str] | None:
        """Return which grew since a mark; None: too many to tell, so look at all."""
        at = mark - self._begin
        if at < 0 or len(self._names) - at > most:
            return None
        return list(dict.fromkeys(self._names[at:]))
