"""What a keeper does for isolated tasks; what that needs is imported with the first of them."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from updraft.runner.keeper.cgroups import Slot, Slots
    from updraft.runner.keeper.leaders import IdleLeaders


class Isolating:
    """Adds to tasks what isolates them, and removes it after them.

    ``folder`` is the runner's.
    """

    def __init__(self, folder: str, leaders: IdleLeaders, slots: Slots) -> None:
        self._folder = folder
        self._leaders = leaders
        self._slots = slots
        self._module: ModuleType | None = None
        self.sweepers: set[int] = set()
        """Processes that remove what tasks left in their temporary folders."""

    def prepare(self) -> ModuleType:
        """Be ready for isolated tasks from now on."""
        if self._module is None:
            from updraft.runner.keeper import isolation  # noqa: PLC0415 - most keepers need none

            self._module = isolation
            self._leaders.isolated = True
            self._slots.limit_devices()
        return self._module

    def isolate(self, attempt: int, spec: dict[str, Any]) -> dict[str, Any]:
        """Return the spec with what this keeper adds to it.  Raises ``ValueError``, ``OSError``."""
        from updraft.runner.keeper import temporary  # noqa: PLC0415 - most keepers need none

        isolation = self.prepare()
        isolation.check(spec["isolation"])
        added = {
            "private": temporary.make(self._folder, attempt),
            "hidden": [os.fsencode(self._folder), *spec["isolation"]["hidden"]],
        }
        return {**spec, "isolation": {**spec["isolation"], **added}}

    def limit_devices(self, slot: Slot, spec: dict[str, Any]) -> None:
        """Let a slot's next task open its own devices only, once there are isolated tasks."""
        if self._module is not None:
            own = spec.get("isolation")
            slot.limit_devices(own and self._module.allowed_devices(own["devices"]))

    def remove(self, attempt: int) -> None:
        """Remove a task's temporary folders, if it had any."""
        if self._module is None:
            return
        from updraft.runner.keeper import temporary  # noqa: PLC0415 - most keepers need none

        path = temporary.folder_of(self._folder, attempt)
        if not temporary.remove_if_empty(path):
            # That takes a while, which is not to be the other tasks'.
            self.sweepers |= temporary.remove_aside([path])

    def remove_left_over(self) -> None:
        """Remove what tasks of a killed keeper left."""
        if os.path.isdir(os.path.join(self._folder, "private")):
            from updraft.runner.keeper import temporary  # noqa: PLC0415 - most keepers need none

            self.sweepers |= temporary.remove_aside(temporary.left_over(self._folder))
