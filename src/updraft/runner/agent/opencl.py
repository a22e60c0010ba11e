"""Asks OpenCL for GPUs: ``python -m updraft.runner.agent.opencl LIBRARY`` writes them as JSON.

Source: the OpenCL specification, cl.h and cl_ext.h (cl_khr_pci_bus_info, cl_khr_device_uuid).
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from typing import Any

_GPU = 1 << 2
_NAME, _VENDOR, _VENDOR_ID, _MEMORY = 0x102B, 0x102C, 0x1001, 0x101F
_PCI, _UUID = 0x410F, 0x106A
_MOST = 64


class _Library:
    def __init__(self, name: str) -> None:
        self._library = ctypes.CDLL(name)

    def platforms(self) -> list[int]:
        return self._list(self._library.clGetPlatformIDs)

    def gpus(self, platform: int) -> list[int]:
        kind = ctypes.c_uint64(_GPU)
        return self._list(self._library.clGetDeviceIDs, ctypes.c_void_p(platform), kind)

    def info(self, device: int, parameter: int) -> bytes:
        """Return what a device says of itself; empty where it does not know of that."""
        size = ctypes.c_size_t()
        value = ctypes.create_string_buffer(4096)
        failed = self._library.clGetDeviceInfo(
            ctypes.c_void_p(device), ctypes.c_uint32(parameter), ctypes.c_size_t(len(value)),
            value, ctypes.byref(size),
        )  # fmt: skip
        return b"" if failed else value.raw[: size.value]

    @staticmethod
    def _list(function: Any, *arguments: Any) -> list[int]:
        """Return the handles that there are; none where there are none, which is an error to it."""
        found, count = (ctypes.c_void_p * _MOST)(), ctypes.c_uint32()
        if function(*arguments, ctypes.c_uint32(_MOST), found, ctypes.byref(count)):
            return []
        return [handle for handle in found[: count.value] if handle is not None]


def gpus(name: str) -> Iterator[dict[str, Any]]:
    """Yield the GPUs that a library knows; one maker's are one driver's, however many know them."""
    library = _Library(name)
    makers: set[int] = set()
    for platform in library.platforms():
        found = [_gpu(library, device) for device in library.gpus(platform)]
        yield from (gpu for gpu in found if gpu["vendor_id"] not in makers)
        makers |= {gpu["vendor_id"] for gpu in found}


def _gpu(library: _Library, device: int) -> dict[str, Any]:
    def text(parameter: int) -> str:
        return library.info(device, parameter).rstrip(b"\0").decode(errors="replace").strip()

    def number(parameter: int) -> int:
        return int.from_bytes(library.info(device, parameter), sys.byteorder)

    name, maker = text(_NAME), text(_VENDOR)
    where = library.info(device, _PCI)
    places = [int.from_bytes(where[at : at + 4], sys.byteorder) for at in range(0, len(where), 4)]
    return {
        "uuid": library.info(device, _UUID).hex(),
        "kind": name if maker.split(" ")[0] in name else f"{maker} {name}".strip(),
        "memory_bytes": number(_MEMORY),
        "vendor_id": number(_VENDOR_ID),
        "pci": "{:04x}:{:02x}:{:02x}.{:x}".format(*places) if len(places) == 4 else "",
    }


if __name__ == "__main__":
    json.dump(list(gpus(sys.argv[1])), sys.stdout)
