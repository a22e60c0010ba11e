"""How often an address may come without a good credential, whatever it comes by."""

from __future__ import annotations

import math

from updraft import errors
from updraft.server.auth.backoff import network_of
from updraft.server.auth.rates import Rates

_SHARE = 0.1
"""Of what one credential may ask."""


class Strangers:
    """Counts them, before anything is looked up for them."""

    def __init__(self, per_second: float) -> None:
        """``per_second``: requests of one credential."""
        self._rates = Rates(max(per_second * _SHARE, 1))

    def count(self, peer: str) -> None:
        """Count one that came.  Raises ``errors.TooManyRequests``."""
        if peer:  # on the unix socket there are none
            wait_for(self._rates.take(network_of(peer)))

    def forgive(self, peer: str) -> None:
        """It was none: take the last count back."""
        if peer:
            self._rates.put_back(network_of(peer))


def wait_for(seconds: float) -> None:
    """Raise ``errors.TooManyRequests`` unless there is nothing to wait for."""
    if seconds:
        raise errors.TooManyRequests(
            f"too many requests; try again in {math.ceil(seconds)} s", seconds
        )
