"""Memory that has been used before.

In a virtual machine the first touch of a page is served by the host, at a few hundred MB/s here, so
on a freshly booted one whatever writes a gigabyte into the page cache measures the host's memory
allocation. A machine that has been in use for a day has no such pages left.
"""

import mmap
import subprocess
import sys


def touch(count: int) -> None:
    """Use `count` bytes of memory once, in a process that ends: the kernel gives them out again."""
    subprocess.run([sys.executable, "-I", __file__, str(count)], check=True)


if __name__ == "__main__":
    area = mmap.mmap(-1, int(sys.argv[1]))
    for at in range(0, len(area), mmap.PAGESIZE):
        area[at] = 1
