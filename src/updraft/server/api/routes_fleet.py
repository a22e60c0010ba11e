"""Pools and runners over HTTP."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Header, Path, Request
from sqlalchemy import RowMapping

import updraft
from updraft import errors
from updraft.model.pool import Pool, Shape
from updraft.server.api.requests import Who
from updraft.server.services.fleet import Fleet, JoinRequest, RunnerView
from updraft.server.services.installing import Installing
from updraft.server.services.pools import PoolView
from updraft.wire import fleet_schemas as wire
from updraft.wire.schemas import Device

RunnerName = Annotated[str, Path(description="a runner's name")]
PoolName = Annotated[str, Path(description="a pool's name")]
TokenId = Annotated[str, Path(description="a join token's id")]


def make_router(fleet: Fleet, installing: Installing) -> APIRouter:
    """Return the routes of pools and runners."""
    router = APIRouter(tags=["fleet"])
    pools = fleet.pools

    @router.post("/runners/join", status_code=201, summary="Become a runner, with a join token")
    async def join(
        http: Request, body: wire.JoinRequest, authorization: str = Header()
    ) -> wire.JoinAnswer:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise errors.NotSignedIn("a join token is needed: Authorization: Bearer TOKEN")
        request = JoinRequest(
            body.name,
            body.capacity.host,
            body.capacity.model_dump(),
            body.shared,
            body.serves,
            tuple(body.joined_as),
            "" if http.client is None else http.client.host,
        )
        place = await fleet.join(token, request)
        runner = place.runner
        return wire.JoinAnswer(
            name=runner.name, pool=runner.pool, serves=runner.serves, token=place.token
        )

    @router.get("/runners", summary="List runners")
    async def list_runners(who: Who) -> wire.RunnerInfos:
        """For server admins."""
        return wire.RunnerInfos(runners=[_runner(view) for view in fleet.runners(who)])

    @router.get("/runners/{runner}", summary="Show a runner")
    async def show_runner(who: Who, runner: RunnerName) -> wire.RunnerInfo:
        return _runner(fleet.runner(who, runner))

    @router.post("/runners/{runner}/drain", summary="Give a runner no new tasks")
    async def drain_runner(who: Who, runner: RunnerName, undo: bool = False) -> wire.RunnerInfo:
        return _runner(await fleet.drain(who, runner, draining=not undo))

    @router.post("/runners/{runner}/upgrade", summary="Let a runner take the server's release")
    async def upgrade_runner(who: Who, runner: RunnerName) -> wire.RunnerInfo:
        """Its tasks go on. Look at it to see what comes of that."""
        if fleet.runner(who, runner).outdated:
            installing.need_release(updraft.__version__)
        return _runner(await fleet.upgrade(who, runner))

    @router.delete("/runners/{runner}", status_code=204, summary="Forget a runner")
    async def remove_runner(who: Who, runner: RunnerName, force: bool = False) -> None:
        """Refused while it has tasks, unless they are to be given up."""
        await fleet.remove(who, runner, force=force)

    @router.post("/runner-tokens", status_code=201, summary="Make a token that machines join with")
    async def make_token(who: Who, body: wire.TokenRequest) -> wire.TokenAnswer:
        token = await fleet.make_join_token(who, body.pool, body.expires_seconds, body.uses)
        return wire.TokenAnswer(token=token, line=installing.line(token))

    @router.get("/runner-tokens", summary="List the tokens that machines join with")
    async def list_tokens(who: Who) -> wire.TokenInfos:
        """Those that are of use. For server admins."""
        return wire.TokenInfos(tokens=[_token(row) for row in await fleet.join_tokens(who)])

    @router.delete("/runner-tokens/{token}", status_code=204, summary="Revoke such a token")
    async def revoke_token(who: Who, token: TokenId) -> None:
        """What has joined with it stays."""
        await fleet.revoke_join_token(who, token)

    @router.get("/pools", summary="List the pools that are yours to use")
    async def list_pools(who: Who) -> wire.PoolInfos:
        """A server admin sees all."""
        return wire.PoolInfos(pools=[_shown(view) for view in pools.list(who)])

    @router.post("/pools", status_code=201, summary="Make a pool")
    async def create_pool(who: Who, body: wire.PoolRequest) -> wire.PoolInfo:
        """For server admins."""
        return _shown(await pools.create(who, _pool(body.name, body)))

    @router.get("/pools/{pool}", summary="Show a pool")
    async def show_pool(who: Who, pool: PoolName) -> wire.PoolInfo:
        return _shown(pools.show(who, pool))

    @router.put("/pools/{pool}", summary="Set a pool's settings")
    async def update_pool(who: Who, pool: PoolName, body: wire.PoolSettings) -> wire.PoolInfo:
        """All of them: what is left out is as it is by default."""
        return _shown(await pools.update(who, _pool(pool, body)))

    @router.post("/pools/{pool}/drain", summary="Take no new jobs into a pool")
    async def drain_pool(who: Who, pool: PoolName, undo: bool = False) -> wire.PoolInfo:
        return _shown(await pools.drain(who, pool, draining=not undo))

    @router.delete("/pools/{pool}", status_code=204, summary="Forget a pool")
    async def delete_pool(who: Who, pool: PoolName) -> None:
        """Refused while it has runners or jobs."""
        await pools.delete(who, pool)

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
        outdated=view.outdated,
        upgrading=live.upgrade is not None and live.upgrade.running,
        upgrade_problem=None if live.upgrade is None else live.upgrade.problem or None,
        cpus=live.total.cpus_milli / 1000,
        cpus_free=live.free.cpus_milli / 1000,
        memory_bytes=live.total.memory_bytes,
        memory_free_bytes=live.free.memory_bytes,
        gpus=[Device.model_validate(device) for device in live.devices],
        gpus_free=len(live.free.gpus),
        tasks=view.tasks,
    )


def _token(row: RowMapping) -> wire.TokenInfo:
    return wire.TokenInfo(
        id=row["credential"],
        pool=row["pool"],
        created_by=row["created_by"],
        created=_time(row["created_ns"]),
        expires=_time(row["expires_ns"]),
        used=row["used"],
        uses=row["most_uses"],
    )


def _time(ns: int) -> datetime:
    return datetime.fromtimestamp(ns / 1e9, UTC)


def _pool(name: str, body: wire.PoolSettings) -> Pool:
    limit = body.time_limit_seconds
    return Pool(
        name=name,
        shape=Shape(
            None if body.cpus is None else max(round(body.cpus * 1000), 1),
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
        time_limit_ms=None if limit is None else max(round(limit * 1000), 1),
        most_runners=body.max_runners,
    )


def _shown(view: PoolView) -> wire.PoolInfo:
    pool, total, free = view.pool, view.total, view.free
    cpus, limit_ms = pool.shape.cpus_milli, pool.time_limit_ms
    return wire.PoolInfo(
        name=pool.name,
        configured=view.configured,
        draining=pool.draining,
        runners=view.runners,
        runners_ready=view.ready,
        cpus=total.cpus_milli / 1000,
        cpus_free=free.cpus_milli / 1000,
        memory_bytes=total.memory_bytes,
        memory_free_bytes=free.memory_bytes,
        gpus=len(total.gpus),
        gpus_free=len(free.gpus),
        running=view.running,
        queued=view.queued,
        ahead=view.ahead,
        reason=view.reason,
        # As it was decided, and checked then.
        settings=wire.ShownSettings.model_construct(
            cpus=None if cpus is None else cpus / 1000,
            memory_bytes=pool.shape.memory_bytes,
            gpus=dict(pool.shape.gpus),
            labels=pool.labels,
            region=pool.region,
            jurisdiction=pool.jurisdiction,
            peer_network=pool.peer_network,
            projects=sorted(pool.projects),
            preemptible=pool.preemptible,
            price_per_hour=pool.price_per_hour,
            time_limit_seconds=None if limit_ms is None else limit_ms / 1000,
            max_runners=pool.most_runners,
        ),
    )
