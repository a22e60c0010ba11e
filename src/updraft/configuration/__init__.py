"""What can be configured: every key of ``updraft.toml``, described once, and its reading.

``schema`` is the description; reading, checking, ``updraft config`` and the reference in the
documentation all follow it.  Not on the launch path: ``urun`` needs folders only (``settings``).
"""

from updraft.configuration.reading import check, load
from updraft.configuration.schema import Configuration

__all__ = ["Configuration", "check", "load"]
