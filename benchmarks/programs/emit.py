"""Writes a number of pseudo-random bytes to stdout, as fast as a pipe takes them.

    emit.py BYTES [PROGRESS_FILE]

Every block differs from every other in its first eight bytes, so that a lost, repeated or moved
one changes the digest. The bytes follow from BYTES alone. PROGRESS_FILE, eight bytes long, is kept
at the number of bytes written.
"""

import mmap
import os
import random
import struct
import sys

BLOCK_BYTES = 1 << 20
COUNTED_BYTES = 1 << 16
_NUMBER = struct.Struct("<Q")


def main() -> None:
    total = int(sys.argv[1])
    progress = _open_progress(sys.argv[2]) if len(sys.argv) > 2 else None
    # A write is counted when it returns, so that counting asks for small ones.
    most = BLOCK_BYTES if progress is None else COUNTED_BYTES
    block = bytearray(random.Random(20250101).randbytes(BLOCK_BYTES))
    view = memoryview(block)
    written = 0
    while written < total:
        _NUMBER.pack_into(block, 0, written)
        end = min(BLOCK_BYTES, total - written)
        start = 0
        while start < end:
            count = os.write(1, view[start : min(end, start + most)])
            start += count
            written += count
            if progress is not None:
                _NUMBER.pack_into(progress, 0, written)


def _open_progress(path: str) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(descriptor, _NUMBER.size)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
