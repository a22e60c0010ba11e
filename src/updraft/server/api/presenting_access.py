"""Turns users, tokens, projects and the audit into what the API says."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import RowMapping

from updraft.model.access import Role, Scope
from updraft.model.limits import DefaultLimits, Limits
from updraft.server.api.presenting import instant
from updraft.server.services.projects import ProjectView, limits_in
from updraft.server.services.sign_in import SignedIn
from updraft.wire import access_schemas as schemas


def signed_in(made: SignedIn) -> schemas.SignedIn:
    """Return a new session."""
    return schemas.SignedIn(token=made.text, user=made.user, expires=_maybe(made.expires_ns))


def user(row: RowMapping) -> schemas.UserSummary:
    """Return a user as lists have them."""
    return schemas.UserSummary(
        name=row["name"],
        display=row["display"],
        email=row["email"],
        server_admin=row["server_admin"],
        disabled=row["disabled"],
        password=row["password_hash"] is not None,
        oidc=row["oidc_subject"] is not None,
        created=instant(row["created_ns"]),
    )


def whole_user(row: RowMapping, memberships: Iterable[RowMapping]) -> schemas.User:
    """Return a user with their projects."""
    projects = [
        schemas.Membership(project=each["project_name"], role=Role(each["role"]))
        for each in memberships
    ]
    return schemas.User(**user(row).model_dump(), projects=projects)


def token(row: RowMapping) -> schemas.Token:
    """Return a token or a session."""
    return schemas.Token(
        id=row["id"],
        kind=row["kind"],
        name=row["name"],
        scope=Scope(row["scope"]),
        project=row["project"],
        created=instant(row["created_ns"]),
        expires=_maybe(row["expires_ns"]),
        last_used=_maybe(row["last_used_ns"]),
    )


def project(view: ProjectView, defaults: DefaultLimits) -> schemas.Project:
    """Return a project."""
    return schemas.Project(
        name=view.row["name"],
        created=instant(view.row["created_ns"]),
        archived=_maybe(view.row["archived_ns"]),
        role=view.role,
        member=view.member,
        limits=limits(limits_in(view.row), defaults.project),
    )


def member(row: RowMapping, defaults: DefaultLimits) -> schemas.Member:
    """Return a member."""
    return schemas.Member(
        user=row["user_name"],
        role=Role(row["role"]),
        disabled=row["disabled"],
        limits=limits(limits_in(row), defaults.user),
    )


def limits(own: Limits, defaults: Limits) -> schemas.Limits:
    """Return the limits that hold."""
    found = own.over(defaults)
    return schemas.Limits(
        running_jobs=found.running_jobs,
        cpus=None if found.cpus_milli is None else found.cpus_milli / 1000,
        gpus=found.gpus,
        memory_bytes=found.memory_bytes,
        stored_bytes=found.stored_bytes,
        defaults=[
            name.removesuffix("_milli")
            for name, value in asdict(own).items()
            if value is None and getattr(defaults, name) is not None
        ],
    )


def wanted_limits(body: schemas.LimitsRequest) -> Limits:
    """Return the limits that a request asks for."""
    return Limits(
        running_jobs=body.running_jobs,
        cpus_milli=None if body.cpus is None else round(body.cpus * 1000),
        gpus=body.gpus,
        memory_bytes=body.memory_bytes,
        stored_bytes=body.stored_bytes,
    )


def audit_entry(row: RowMapping) -> schemas.AuditEntry:
    """Return an entry of the audit."""
    return schemas.AuditEntry(
        serial=row["serial"],
        at=instant(row["at_ns"]),
        who=row["who"],
        action=row["action"],
        subject=row["subject"],
        details=json.loads(row["details"]),
        peer=row["peer"],
    )


def _maybe(time_ns: int | None) -> datetime | None:
    return None if time_ns is None else instant(time_ns)
