"""Changes of access: what is remembered or open is right again once the change is answered."""

import asyncio
from pathlib import Path
from typing import Any

from tests.server.api import Api, with_api
from updraft.model.access import Principal, Role
from updraft.server.services.accounts import NewUser

ADMIN = Principal("uid:4000000", server_admin=True)


def test_of_two_changes_at_once_the_later_one_is_remembered(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        projects = made.access.projects
        for name in ("anna", "ben"):
            await made.access.accounts.create(ADMIN, NewUser(name))
        held, go_on = asyncio.Event(), asyncio.Event()
        read = made.database.read

        async def slow_read(work: Any, *, patient: bool = False) -> Any:
            found = await read(work, patient=patient)
            if work.__qualname__.endswith("load.<locals>.read") and not held.is_set():
                held.set()
                await go_on.wait()
            return found

        made.database.read = slow_read  # type: ignore[method-assign]
        first = asyncio.create_task(projects.set_member(ADMIN, "default", "anna", Role.MEMBER))
        await held.wait()
        second = asyncio.create_task(projects.set_member(ADMIN, "default", "ben", Role.MEMBER))
        # It may not overtake the first; where it could, it would be done by then.
        await asyncio.wait({second}, timeout=0.5)
        go_on.set()
        await asyncio.gather(first, second)
        for name in ("anna", "ben"):
            assert projects.role_in(Principal(name), "default") == (Role.MEMBER, True)

    with_api(tmp_path, check)


def test_who_was_removed_is_in_no_project_at_once(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await made.access.accounts.create(ADMIN, NewUser("anna"))
        await made.access.projects.set_member(ADMIN, "default", "anna", Role.MEMBER)
        await made.access.accounts.remove(ADMIN, "anna")
        assert made.access.projects.role_in(Principal("anna"), "default") is None

    with_api(tmp_path, check)
