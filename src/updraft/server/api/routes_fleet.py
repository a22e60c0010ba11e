"""Pools and runners over HTTP."""

from __future__ import annotations

import time

from fastapi import APIRouter, Header

from updraft import errors
from updraft.model.pool import Pool, Shape
from updraft.server.api.requests import Who
from updraft.server.services.fleet import Fleet, JoinRequest, RunnerView
from updraft.wire import fleet_schemas as wire
from updraft.wire.schemas import Device


def make_router(fleet: Fleet) -> APIRouter:
    """Return the routes of pools and runners."""
    router = APIRouter(tags=["fleet"])

    @router.post("/runners/join", status_code=201, summary="Become a runner, with a join token")
    async def join(body: wire.JoinRequest, authorization: str = Header()) -> wire.JoinAnswer:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise errors.NotSignedIn("a join token is needed: Authorization: Bearer TOKEN")
        request = JoinRequest(
            body.name, body.capacity.host, body.capacity.model_dump(), body.shared, body.serves
        )
        place = await fleet.join(token, request)
        runner = place.runner
        return wire.JoinAnswer(
            name=runner.name, pool=runner.pool, serves=runner.serves, token=place.token
        )

    @router.get("/runners", summary="List runners")
    async def list_runners(who: Who) -> list[wire.RunnerInfo]:
        return [_runner(view) for view in fleet.runners(who)]

    @router.get("/runners/{runner}", summary="Show a runner")
    async def show_runner(who: Who, runner: str) -> wire.RunnerInfo:
        return _runner(fleet.runner(who, runner))

    @router.post("/runners/{runner}/drain", summary="Give a runner no new tasks")
    async def drain(who: Who, runner: str, undo: bool = False) -> wire.RunnerInfo:
        return _runner(await fleet.drain(who, runner, draining=not undo))

    @router.delete("/runners/{runner}", status_code=204, summary="Forget a runner")
    async def remove(who: Who, runner: str, force: bool = False) -> None:
        await fleet.remove(who, runner, force=force)

    @router.post("/runner-tokens", status_code=201, summary="Make a token that machines join with")
    async def make_token(who: Who, body: wire.TokenRequest) -> wire.TokenAnswer:
        token = await fleet.make_join_token(who, body.pool, body.expires_seconds, body.uses)
        return wire.TokenAnswer(token=token)

    @router.post("/pools", status_code=201, summary="Make a pool")
    async def create_pool(who: Who, body: wire.PoolRequest) -> None:
        await fleet.create_pool(who, _pool(body))

    return router


def _runner(view: RunnerView) -> wire.RunnerInfo:
    live = view.live
    silent = time.monotonic() - live.seen
    if live.lost:
        state = "lost"
    elif live.control is None:
        state = "away"
    elif live.known.draining:
        state = "draining"
    else:
        state = "ready"
    return wire.RunnerInfo(
        name=live.name,
        pool=live.pool,
        state=state,
        seen_seconds=round(silent, 1),
        serves=live.known.serves,
        release=live.release or None,
        cpus=live.total.cpus_milli / 1000,
        cpus_free=live.free.cpus_milli / 1000,
        memory_bytes=live.total.memory_bytes,
        memory_free_bytes=live.free.memory_bytes,
        gpus=[Device.model_validate(device) for device in live.devices],
        gpus_free=len(live.free.gpus),
        tasks=view.tasks,
    )


def _pool(body: wire.PoolRequest) -> Pool:
    limit = body.time_limit_seconds
    return Pool(
        name=body.name,
        shape=Shape(
            None if body.cpus is None else round(body.cpus * 1000),
            body.memory_bytes,
            tuple(sorted(body.gpus.items())),
        ),
        labels=body.labels,
        region=body.region,
        jurisdiction=body.jurisdiction,
        peer_network=body.peer_network,
        projects=frozenset(body.projects),
        preemptible=body.preemptible,
        price_per_hour=body.price_per_hour,
        time_limit_ms=None if limit is None else round(limit * 1000),
    )
