"""Pools, runners and the tokens that machines join with: a part of the client."""

from __future__ import annotations

from urllib.parse import quote

from updraft.sdk.access import Ask, Params
from updraft.sdk.answers import read
from updraft.wire import fleet_schemas


class Fleet:
    """Requests about pools and runners.  Every method raises ``errors.UpdraftError``."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    # -- pools

    def pools(self) -> list[fleet_schemas.PoolInfo]:
        """Return the pools that the caller may use, by name; a server admin gets all."""
        return read(fleet_schemas.PoolInfos, self._ask("GET", "/pools")).pools

    def pool(self, name: str) -> fleet_schemas.PoolInfo:
        """Return a pool."""
        return read(fleet_schemas.PoolInfo, self._ask("GET", _path("pools", name)))

    def create_pool(self, request: fleet_schemas.PoolRequest) -> fleet_schemas.PoolInfo:
        """Make a pool."""
        answer = self._ask("POST", "/pools", body=request, again=False)
        return read(fleet_schemas.PoolInfo, answer)

    def update_pool(
        self, name: str, settings: fleet_schemas.PoolSettings
    ) -> fleet_schemas.PoolInfo:
        """Replace all settings of a pool."""
        answer = self._ask("PUT", _path("pools", name), body=settings)
        return read(fleet_schemas.PoolInfo, answer)

    def drain_pool(self, name: str, *, undo: bool = False) -> fleet_schemas.PoolInfo:
        """Take no new jobs into a pool, or some again."""
        params: Params = {"undo": undo}
        answer = self._ask("POST", _path("pools", name, "drain"), params=params)
        return read(fleet_schemas.PoolInfo, answer)

    def delete_pool(self, name: str) -> None:
        """Forget a pool that has neither runners nor jobs."""
        self._ask("DELETE", _path("pools", name), again=False)

    # -- runners

    def runners(self) -> list[fleet_schemas.RunnerInfo]:
        """Return all runners, by name."""
        return read(fleet_schemas.RunnerInfos, self._ask("GET", "/runners")).runners

    def runner(self, name: str) -> fleet_schemas.RunnerInfo:
        """Return a runner."""
        return read(fleet_schemas.RunnerInfo, self._ask("GET", _path("runners", name)))

    def drain_runner(self, name: str, *, undo: bool = False) -> fleet_schemas.RunnerInfo:
        """Give a runner no new tasks, or some again."""
        params: Params = {"undo": undo}
        answer = self._ask("POST", _path("runners", name, "drain"), params=params)
        return read(fleet_schemas.RunnerInfo, answer)

    def upgrade_runner(self, name: str) -> fleet_schemas.RunnerInfo:
        """Let a runner take the server's release; ``runner`` tells what comes of it."""
        answer = self._ask("POST", _path("runners", name, "upgrade"))
        return read(fleet_schemas.RunnerInfo, answer)

    def remove_runner(self, name: str, *, force: bool = False) -> None:
        """Forget a runner; with ``force`` its tasks are given up."""
        params: Params = {"force": force}
        self._ask("DELETE", _path("runners", name), params=params, again=False)

    # -- join tokens

    def make_join_token(
        self, pool: str, lives_seconds: float, uses: int | None = None
    ) -> fleet_schemas.TokenAnswer:
        """Return a new token with which machines join a pool."""
        body = fleet_schemas.TokenRequest(pool=pool, expires_seconds=lives_seconds, uses=uses)
        answer = self._ask("POST", "/runner-tokens", body=body, again=False)
        return read(fleet_schemas.TokenAnswer, answer)

    def join_tokens(self) -> list[fleet_schemas.TokenInfo]:
        """Return the join tokens that are of use, newest first."""
        return read(fleet_schemas.TokenInfos, self._ask("GET", "/runner-tokens")).tokens

    def revoke_join_token(self, token_id: str) -> None:
        """Let nothing join with a token any more."""
        self._ask("DELETE", _path("runner-tokens", token_id), again=False)


def _path(*parts: str) -> str:
    return "/" + "/".join(quote(part, safe="") or "%20" for part in parts)
