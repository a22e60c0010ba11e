"""Projects, their members and limits, over HTTP."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import RowMapping

from updraft.server.api import presenting_access as presenting
from updraft.server.api.requests import ProjectName, UserName, Who
from updraft.server.services.access import Access
from updraft.server.services.projects import ProjectView
from updraft.wire import access_schemas as schemas


def make_router(access: Access) -> APIRouter:
    """Return the routes of projects."""
    router = APIRouter(tags=["projects"])
    projects = access.projects

    def shown(view: ProjectView) -> schemas.Project:
        return presenting.project(view, projects.defaults)

    def shown_member(row: RowMapping) -> schemas.Member:
        return presenting.member(row, projects.defaults)

    @router.get("/projects", summary="List the projects that are yours")
    async def list_projects(who: Who) -> schemas.Projects:
        """A server admin sees all."""
        found = await projects.list(who)
        return schemas.Projects(projects=[shown(view) for view in found])

    @router.post("/projects", status_code=201, summary="Make a project")
    async def create(who: Who, body: schemas.ProjectRequest) -> schemas.Project:
        """For server admins."""
        return shown(await projects.create(who, body.name))

    @router.get("/projects/{project}", summary="Show a project")
    async def show(who: Who, project: ProjectName) -> schemas.Project:
        return shown(await projects.show(who, project))

    @router.post("/projects/{project}/archive", summary="Let a project take no more jobs")
    async def archive(who: Who, project: ProjectName) -> schemas.Project:
        """Its jobs can be looked at as before."""
        return shown(await projects.set_archived(who, project, True))

    @router.post("/projects/{project}/unarchive", summary="Let a project take jobs again")
    async def unarchive(who: Who, project: ProjectName) -> schemas.Project:
        return shown(await projects.set_archived(who, project, False))

    @router.put("/projects/{project}/limits", summary="Set a project's limits")
    async def set_limits(
        who: Who, project: ProjectName, body: schemas.LimitsRequest
    ) -> schemas.Project:
        """All of them: where one is left out, what `updraft.toml` says holds. For server admins."""
        limits = presenting.wanted_limits(body)
        return shown(await projects.set_limits(who, project, limits))

    @router.get("/projects/{project}/members", summary="List who is in a project")
    async def members(who: Who, project: ProjectName) -> schemas.Members:
        rows = await projects.members(who, project)
        return schemas.Members(members=[shown_member(row) for row in rows])

    @router.put("/projects/{project}/members/{user}", summary="Put a user into a project")
    async def set_member(
        who: Who, project: ProjectName, user: UserName, body: schemas.MemberRequest
    ) -> schemas.Member:
        """A member gets the role. For admins of the project."""
        return shown_member(await projects.set_member(who, project, user, body.role))

    @router.delete(
        "/projects/{project}/members/{user}",
        status_code=204,
        summary="Take a user out of a project",
    )
    async def remove_member(who: Who, project: ProjectName, user: UserName) -> None:
        """Their jobs stay. The last admin stays too."""
        await projects.remove_member(who, project, user)

    @router.put(
        "/projects/{project}/members/{user}/limits", summary="Set a member's limits in a project"
    )
    async def set_member_limits(
        who: Who, project: ProjectName, user: UserName, body: schemas.LimitsRequest
    ) -> schemas.Member:
        """All of them: where one is left out, what `updraft.toml` says holds."""
        limits = presenting.wanted_limits(body)
        return shown_member(await projects.set_member_limits(who, project, user, limits))

    return router
