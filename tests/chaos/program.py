"""One short job of the chaos test: ``program.py FOLDER NUMBER``.

Appends one line to a file of its own, then writes bytes to stdout and stderr that follow from its
number alone, so that what is expected is known without looking at any spool.
"""

import os
import sys
from collections.abc import Iterator
from hashlib import blake2b


def output_of(number: int, stream: str) -> bytes:
    """Return all that job ``number`` writes to ``stream``: 0 to 60 KB."""
    size = int.from_bytes(blake2b(b"%d" % number, digest_size=2).digest()) % 60_000
    return b"".join(_blocks(number, stream, size))[:size]


def _blocks(number: int, stream: str, size: int) -> Iterator[bytes]:
    for block in range(size // 64 + 1):
        yield blake2b(f"{number} {stream} {block}".encode(), digest_size=64).digest()


def exit_code_of(number: int) -> int:
    """Return the exit code of job ``number``."""
    return number % 7


def main() -> None:
    """Run the job."""
    folder, number = sys.argv[1], int(sys.argv[2])
    line = f"attempt {os.environ['UPDRAFT_ATTEMPT']}\n".encode()
    fd = os.open(f"{folder}/{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, line)
    for descriptor, stream in ((1, "stdout"), (2, "stderr")):
        data = output_of(number, stream)
        for start in range(0, len(data), 7000):
            os.write(descriptor, data[start : start + 7000])
    sys.exit(exit_code_of(number))


if __name__ == "__main__":
    main()
