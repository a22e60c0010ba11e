"""GPUs as the kernel and OpenCL tell of them, and as tasks are given them.

The tree of files is made as amdkfd makes it, and the OpenCL library by a C compiler: there is no
such GPU here.
"""

import asyncio
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.runner.keeper_process import KeeperProcess
from tests.runner.test_agent import ATTEMPT, start_agent, welcome
from updraft.runner.agent.gpus import AMD, device_nodes, environment, find_gpus
from updraft.runner.keeper import isolation
from updraft.wire import frames
from updraft.wire.transport import body_of

GIB = 1 << 30


def amd_node(
    root: Path, number: int, *, serial: int, render: int, memory: int, product: str = ""
) -> None:
    """Add a GPU; without a product its driver tells neither that nor the memory's size."""
    node = root / f"sys/class/kfd/kfd/topology/nodes/{number}"
    (node / "mem_banks/0").mkdir(parents=True)
    (node / "properties").write_text(
        f"cpu_cores_count 0\nsimd_count 440\nvendor_id 4098\ndrm_render_minor {render}\n"
        f"unique_id {serial}\n"
    )
    (node / "name").write_text("aldebaran\n")
    (node / "mem_banks/0/properties").write_text(f"heap_type 1\nsize_in_bytes {memory}\n")
    (root / "dev/dri").mkdir(parents=True, exist_ok=True)
    (root / f"dev/dri/renderD{render}").touch()
    device = root / f"sys/class/drm/renderD{render}/device"
    device.mkdir(parents=True)
    if product:
        (device / "product_name").write_text(f"{product}\n")
        (device / "mem_info_vram_total").write_text(f"{memory}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The files of a machine with one CPU and no GPU, whose kernel has amdkfd."""
    cpu = tmp_path / "sys/class/kfd/kfd/topology/nodes/0"
    cpu.mkdir(parents=True)
    (cpu / "properties").write_text("cpu_cores_count 64\nsimd_count 0\nvendor_id 0\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()
    return tmp_path


def test_amd_gpus_are_found_in_the_order_in_which_rocm_counts_them(root: Path) -> None:
    product = "AMD Instinct MI210"
    amd_node(root, 10, serial=0xAB, render=129, memory=64 * GIB, product=product)
    amd_node(root, 2, serial=0, render=128, memory=16 * GIB)
    assert find_gpus(root) == [
        {
            "index": 0, "uuid": "AMD-renderD128", "kind": "AMD aldebaran",
            "memory_bytes": 16 * GIB, "vendor": AMD, "render": 128,
        },
        {
            "index": 1, "uuid": "GPU-00000000000000ab", "kind": product,
            "memory_bytes": 64 * GIB, "vendor": AMD, "render": 129,
        },
    ]  # fmt: skip


def test_partitions_of_one_gpu_are_told_apart(root: Path) -> None:
    for number, render in ((1, 128), (2, 129)):
        amd_node(root, number, serial=7, render=render, memory=GIB)
    assert [gpu["uuid"] for gpu in find_gpus(root)] == ["AMD-renderD128", "AMD-renderD129"]


def test_a_gpu_that_cannot_be_used_is_none(root: Path) -> None:
    amd_node(root, 1, serial=1, render=128, memory=GIB)
    amd_node(root, 2, serial=2, render=129, memory=GIB)
    amd_node(root, 3, serial=3, render=130, memory=GIB)
    (root / "dev/dri/renderD128").unlink()  # another container's
    (root / "sys/class/kfd/kfd/topology/nodes/2/properties").write_text("garbage\n")
    assert [gpu["render"] for gpu in find_gpus(root)] == [130]
    (root / "dev/kfd").unlink()
    assert find_gpus(root) == []


def test_a_task_gets_the_nodes_of_its_gpus_and_what_the_driver_needs(root: Path) -> None:
    assert device_nodes([]) == []
    amd_node(root, 1, serial=1, render=128, memory=GIB)
    amd_node(root, 2, serial=2, render=129, memory=GIB)
    both = find_gpus(root)
    assert device_nodes(both[:1]) == ["/dev/dri/renderD128", "/dev/kfd"]
    assert device_nodes(both) == ["/dev/dri/renderD128", "/dev/kfd", "/dev/dri/renderD129"]
    nvidia = {"vendor": "nvidia", "minor": 3}
    assert device_nodes([nvidia])[:2] == ["/dev/nvidia3", "/dev/nvidiactl"]


def test_programs_are_told_of_the_granted_gpus_only(root: Path) -> None:
    amd_node(root, 1, serial=0xA, render=128, memory=GIB)
    for number, render in ((2, 129), (3, 130)):
        amd_node(root, number, serial=0, render=render, memory=GIB)
    amd = find_gpus(root)
    nvidia = [{"uuid": "GPU-n0", "vendor": "nvidia"}, {"uuid": "GPU-n1", "vendor": "nvidia"}]
    assert environment(nvidia, ["GPU-n1"], isolated=False) == [b"CUDA_VISIBLE_DEVICES=GPU-n1"]
    assert environment(nvidia, ["GPU-n0"], isolated=True) == [b"CUDA_VISIBLE_DEVICES=GPU-n0"]
    last = [amd[2]["uuid"]]
    # Without a serial number ROCm goes by the place: among all, or among those that it can open.
    assert environment(amd, last, isolated=False) == [
        b"ROCR_VISIBLE_DEVICES=2",
        b"HIP_VISIBLE_DEVICES=0",
    ]
    assert environment(amd, last, isolated=True)[0] == b"ROCR_VISIBLE_DEVICES=0"
    # On a mixed machine those of the other maker are hidden.
    assert environment([*nvidia, *amd], ["GPU-000000000000000a", *last], isolated=True) == [
        b"CUDA_VISIBLE_DEVICES=",
        b"ROCR_VISIBLE_DEVICES=GPU-000000000000000a,1",
        b"HIP_VISIBLE_DEVICES=0,1",
    ]
    opencl = [{"uuid": "00ff", "vendor": "opencl"}]
    assert environment(opencl, ["00ff"], isolated=True) == []


def test_a_task_finds_the_variables_whatever_came_with_it(
    keeper: KeeperProcess, root: Path
) -> None:
    amd_node(root, 1, serial=0xA, render=128, memory=GIB)
    amd_node(root, 2, serial=0xB, render=129, memory=GIB)
    capacity = {"gpus": find_gpus(root)}

    async def check() -> None:
        played, running = start_agent(keeper, capacity)
        control, data = await welcome(played, ships=True)
        script = "echo $ROCR_VISIBLE_DEVICES $HIP_VISIBLE_DEVICES"
        spec = keeper.shell(script, attached=False, gpus=["GPU-000000000000000b"])
        spec["environment"] += b"\0ROCR_VISIBLE_DEVICES=9\0HIP_VISIBLE_DEVICES=9"
        control.connection.send_message(frames.SPAWN, spec, ATTEMPT << 2)
        expected = b"GPU-000000000000000b 0\n"
        await control.until(lambda: control.of(frames.EXITED))
        assert body_of(control.of(frames.EXITED)[0][2])["stdout"] == len(expected)
        await data.until(lambda: data.of(frames.DATA))
        assert data.of(frames.DATA)[0][2] == expected
        keeper.connect()
        await running
        for end in (control, data):
            end.connection.close()

    asyncio.run(check())


# -- OpenCL

LIBRARY = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef void *handle;
static char first, second, third, gpu, twin, other;

int32_t clGetPlatformIDs(uint32_t room, handle *found, uint32_t *count) {
    handle all[] = {&first, &second, &third};
    if (getenv("CRASH") || room < 3) abort();
    memcpy(found, all, sizeof all);
    *count = 3;
    return 0;
}

int32_t clGetDeviceIDs(handle platform, uint64_t kind, uint32_t room, handle *found,
                       uint32_t *count) {
    if (kind != 4 || room < 2 || platform == &second) return -1;  /* CL_DEVICE_NOT_FOUND */
    found[0] = platform == &first ? &gpu : &twin;
    *count = 1;
    if (platform == &third) return 0;
    found[1] = &other;
    *count = 2;
    return 0;
}

static int32_t tell(const void *said, size_t size, size_t room, void *value, size_t *told) {
    if (room < size) return -30;
    memcpy(value, said, size);
    *told = size;
    return 0;
}

int32_t clGetDeviceInfo(handle device, uint32_t about, size_t room, void *value, size_t *told) {
    uint32_t maker = device == &other ? OTHER : 0x8086, place[] = {0, 3, 0, 1};
    uint64_t memory = (uint64_t)16 << 30;
    const char *name = device == &other ? "Radeon" : "Intel(R) Arc(TM) A770";
    const char *vendor = device == &other ? "Advanced" : "Intel(R) Corporation";
    switch (about) {
    case 0x102B: return tell(name, strlen(name) + 1, room, value, told);
    case 0x102C: return tell(vendor, strlen(vendor) + 1, room, value, told);
    case 0x1001: return tell(&maker, sizeof maker, room, value, told);
    case 0x101F: return tell(&memory, sizeof memory, room, value, told);
    case 0x410F: return device == &other ? -30 : tell(place, sizeof place, room, value, told);
    }
    return -30;  /* CL_INVALID_VALUE */
}
"""


def library(folder: Path, other: int) -> str:
    """Compile a loader that knows an Intel GPU twice, by two drivers, and one of another maker."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang", "tcc"))), None)
    if compiler is None:
        pytest.skip("there is no C compiler, to make an OpenCL library with")
    source, made = folder / "opencl.c", folder / "libOpenCL.so.1"
    source.write_text(LIBRARY)
    words = [compiler, "-shared", "-fPIC", f"-DOTHER={other}", "-o", str(made), str(source)]
    subprocess.run(words, check=True, capture_output=True)
    return str(made)


def register(root: Path, name: str) -> None:
    vendors = root / "etc/OpenCL/vendors"
    vendors.mkdir(parents=True, exist_ok=True)
    (vendors / f"{name}.icd").write_text(f"lib{name}.so\n")


def test_other_gpus_are_found_through_opencl_each_once(root: Path) -> None:
    loader = library(root, 0x1002)
    assert find_gpus(root, loader) == []  # no driver has registered itself
    register(root, "nvidia")
    assert find_gpus(root, loader) == []  # NVML knows those
    register(root, "intel")
    (root / "sys/bus/pci/devices/0000:03:00.1/drm/renderD131").mkdir(parents=True)
    intel = {
        "index": 0, "uuid": "OPENCL-0000:03:00.1", "kind": "Intel(R) Arc(TM) A770",
        "memory_bytes": 16 * GIB, "vendor": "opencl", "render": 131,
    }  # fmt: skip
    other = {
        "index": 1, "uuid": "OPENCL-1", "kind": "Advanced Radeon", "memory_bytes": 16 * GIB,
        "vendor": "opencl",
    }  # fmt: skip
    assert find_gpus(root, loader) == [intel, other]
    assert device_nodes([intel]) == ["/dev/dri/renderD131"]
    # What ROCm tells of is not counted again.
    amd_node(root, 1, serial=1, render=128, memory=GIB)
    assert [(gpu["index"], gpu["vendor"]) for gpu in find_gpus(root, loader)] == [
        (0, "amd"),
        (1, "opencl"),
    ]


def test_a_driver_that_crashes_costs_its_gpus_only(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = library(root, 0x1002)
    register(root, "intel")
    amd_node(root, 1, serial=1, render=128, memory=GIB)
    assert len(find_gpus(root, str(root / "none.so"))) == 1
    monkeypatch.setenv("CRASH", "1")
    assert [gpu["vendor"] for gpu in find_gpus(root, loader)] == ["amd"]


@pytest.mark.root
def test_the_keeper_limits_a_task_to_the_nodes_of_its_gpus(tmp_path: Path) -> None:
    """As for NVIDIA's: ``/dev/kfd`` and the render nodes are looked at when a task is granted."""
    kfd, render = tmp_path / "kfd", tmp_path / "renderD128"
    for number, node in enumerate((kfd, render)):
        os.mknod(node, stat.S_IFCHR, os.makedev(226, 128 + number))
        node.chmod(0o660)
    os.chown(render, 0, 44)
    granted = [os.fsencode(kfd), os.fsencode(render), b"/dev/nonexistent"]
    allowed = isolation.allowed_devices(granted)
    assert {("c", 226, 128), ("c", 226, 129)} <= set(allowed)
    assert isolation.device_groups(granted) == [44]
