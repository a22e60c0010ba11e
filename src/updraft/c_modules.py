"""``socket`` and ``signal`` without their Python halves, for the launch path.

The standard modules wrap the interpreter's own C modules and turn every constant into an enum
member; importing them costs `urun true` a fifth of its time.  The C modules have the same functions
and constants.  An interpreter without them gets the standard ones.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    import socket
else:
    try:
        import _signal as signal
        import _socket as socket
    except ImportError:
        import signal
        import socket

__all__ = ["signal", "socket"]
