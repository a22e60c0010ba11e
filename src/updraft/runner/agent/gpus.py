"""This machine's GPUs: which there are, and how a task is given some of them and no others.

NVIDIA's are found through NVML, AMD's (ROCm) in what the kernel driver ``amdkfd`` tells in /sys,
and others (Intel's, say) through OpenCL, which every maker's driver joins.  A GPU is a dict:
``index``, ``uuid``, ``kind``, ``memory_bytes``, ``vendor``, and which device node is its own:
NVIDIA's ``minor``, others' ``render`` (of /dev/dri/renderD*), where that is known.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

Gpu = dict[str, Any]

NVIDIA, AMD, OPENCL = "nvidia", "amd", "opencl"

_VENDOR_IDS = {NVIDIA: 0x10DE, AMD: 0x1002}
_OPENCL_SECONDS = 10.0
_NVIDIA_CONTROL = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
_FRAMEBUFFER_HEAPS = ("1", "2")
"""Public and private memory of the GPU itself (uapi/linux/kfd_sysfs.h)."""


def find_gpus(root: Path = Path("/"), opencl: str = "libOpenCL.so.1") -> list[Gpu]:
    """Return the GPUs of this machine; one that several ways lead to is there once.

    ``root``: where /dev, /sys and /etc are; ``opencl``: the library of the ICD loader.
    """
    found = [*_nvidia(root), *_amd(root)]
    known = {_VENDOR_IDS[gpu["vendor"]] for gpu in found}
    found += [gpu for gpu in _opencl(root, opencl) if gpu.pop("vendor_id") not in known]
    return [{"index": index, **gpu} for index, gpu in enumerate(found)]


def device_nodes(granted: Iterable[Gpu]) -> list[str]:
    """Return the device nodes of these GPUs, and what their drivers need beside them.

    Empty without any: who has no GPU gets no way to the driver either.
    """
    nodes: list[str] = []
    for gpu in granted:
        if "minor" in gpu:
            nodes += [f"/dev/nvidia{gpu['minor']}", *(f"/dev/{name}" for name in _NVIDIA_CONTROL)]
        if "render" in gpu:
            nodes.append(f"/dev/dri/renderD{gpu['render']}")
        if gpu["vendor"] == AMD:
            nodes.append("/dev/kfd")
    return list(dict.fromkeys(nodes))


def environment(gpus: Sequence[Gpu], granted: Sequence[str], *, isolated: bool) -> list[bytes]:
    """Return the variables by which programs use the granted GPUs of these and no others.

    ``isolated``: whether the task sees the nodes of the granted GPUs only.  OpenCL has no variable.
    """
    told = []
    nvidia, amd = ([gpu["uuid"] for gpu in gpus if gpu["vendor"] == v] for v in (NVIDIA, AMD))
    if nvidia:
        told.append("CUDA_VISIBLE_DEVICES=" + ",".join(u for u in nvidia if u in granted))
    if amd:
        mine = [uuid for uuid in amd if uuid in granted]
        seen = mine if isolated else amd
        # ROCm knows a GPU without a serial number of its own by its place only.
        names = [uuid if uuid.startswith("GPU-") else str(seen.index(uuid)) for uuid in mine]
        told.append("ROCR_VISIBLE_DEVICES=" + ",".join(names))
        # HIP counts what ROCr lets it see.
        told.append("HIP_VISIBLE_DEVICES=" + ",".join(map(str, range(len(mine)))))
    return [variable.encode() for variable in told]


# -- NVIDIA


def _nvidia(root: Path) -> list[Gpu]:
    if not (root / "dev/nvidiactl").exists():
        return []
    import pynvml  # noqa: PLC0415 - most machines have no GPU to ask about

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [
            _nvidia_gpu(pynvml.nvmlDeviceGetHandleByIndex(index))
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _nvidia_gpu(device: Any) -> Gpu:
    import pynvml  # noqa: PLC0415 - most machines have no GPU to ask about

    return {
        "uuid": str(pynvml.nvmlDeviceGetUUID(device)),
        "kind": str(pynvml.nvmlDeviceGetName(device)),
        "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(device).total),
        "vendor": NVIDIA,
        "minor": int(pynvml.nvmlDeviceGetMinorNumber(device)),
    }


# -- AMD (source: Linux, drivers/gpu/drm/amd/amdkfd/kfd_topology.c)


def _amd(root: Path) -> list[Gpu]:
    found = list(_amd_gpus(root)) if (root / "dev/kfd").exists() else []
    serials = Counter(gpu["serial"] for gpu in found)
    for gpu in found:
        serial = gpu.pop("serial")
        # Most of consumers' have none, and the partitions of a large one have the same.
        if serial and serials[serial] == 1:
            gpu["uuid"] = f"GPU-{serial:016x}"
    return found


def _amd_gpus(root: Path) -> Iterator[Gpu]:
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    # In the order of their numbers: that is ROCr's.
    for node in sorted(nodes.glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(
            OSError, ValueError, KeyError
        ):  # what is not to be read is not ours
            properties = _properties(node / "properties")
            if properties["simd_count"] == "0" or properties["vendor_id"] == "0":
                continue  # a CPU
            render = int(properties["drm_render_minor"])
            if (root / f"dev/dri/renderD{render}").exists():
                yield _amd_gpu(root, node, properties, render)


def _amd_gpu(root: Path, node: Path, properties: dict[str, str], render: int) -> Gpu:
    device = root / f"sys/class/drm/renderD{render}/device"
    kind = _text(device / "product_name") or _text(node / "name") or "GPU"
    return {
        "uuid": f"AMD-renderD{render}",
        "serial": int(properties.get("unique_id", "0")),
        "kind": kind if kind.startswith("AMD") else f"AMD {kind}",
        "memory_bytes": int(_text(device / "mem_info_vram_total") or _amd_memory(node)),
        "vendor": AMD,
        "render": render,
    }


def _amd_memory(node: Path) -> int:
    banks = [_properties(path / "properties") for path in node.glob("mem_banks/*")]
    return sum(
        int(bank["size_in_bytes"]) for bank in banks if bank["heap_type"] in _FRAMEBUFFER_HEAPS
    )


def _properties(file: Path) -> dict[str, str]:
    pairs = (line.split() for line in file.read_text().splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


# -- OpenCL


def _opencl(root: Path, library: str) -> list[Gpu]:
    """Ask the registered drivers, in a process of its own: they may crash or hang."""
    drivers = [path.name for path in (root / "etc/OpenCL/vendors").glob("*.icd")]
    if all(name.startswith("nvidia") for name in drivers):
        return []  # NVML knows those better, and asking costs time
    command = [sys.executable, "-I", "-m", "updraft.runner.agent.opencl", library]
    try:
        said = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_OPENCL_SECONDS,
            check=True,
        ).stdout
        devices = json.loads(said)
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    found = []
    for number, device in enumerate(devices):
        address = device.pop("pci")
        device["uuid"] = device["uuid"] or f"OPENCL-{address or number}"
        nodes = root.glob(f"sys/bus/pci/devices/{address}/drm/renderD*") if address else ()
        found.append({**device, "vendor": OPENCL})
        for node in nodes:
            found[-1]["render"] = int(node.name.removeprefix("renderD"))
    return found
