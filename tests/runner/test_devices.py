"""Control groups as isolation uses them: devices not granted, and births into v2 groups."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import until
from updraft.runner.keeper import cgroups, devices, hierarchies

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("isolating")]


@pytest.fixture(params=["v1", "v2"])
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An empty control group in which the kernel can limit devices."""
    if request.param == "v1":
        tree = hierarchies.find_devices_tree()
        parent = None if tree is None else Path(tree.parent)
    else:
        points = [Path(point) for version, point, _, _ in hierarchies._mounts() if version == 2]
        parent = points[0] if points else None
    if parent is None:
        pytest.skip(f"no devices cgroup {request.param}")
    path = parent / f"updraft-test-{os.getpid()}"
    path.mkdir()
    yield path
    until(lambda: hierarchies.clear(str(path)), "the group to go")


def test_the_kernel_refuses_devices_that_were_not_granted_even_to_root(
    group: Path, tmp_path: Path
) -> None:
    node = tmp_path / "kmsg"
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(1, 11))

    def works(script: str) -> bool:
        command = ["/bin/sh", "-c", f"echo 0 > {group}/cgroup.procs; {script}"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def opens(path: Path) -> bool:
        return works(f"exec 3< {path}")

    def makes() -> bool:
        return works(f"mknod {tmp_path}/made c 1 3")

    v2 = (group / "cgroup.type").exists() or "unified" in str(group)
    limit = devices.DevicesV2(str(group)) if v2 else devices.DevicesV1(str(group))
    try:
        assert opens(node)
        limit.allow([("c", 1, 3), ("c", 136, None)])
        assert not opens(node)
        assert opens(Path("/dev/null"))
        assert not makes()
        limit.allow([("c", 1, None)])
        assert opens(node)
        assert not makes()
        limit.allow([("b", 1, 3), ("c", 3, 1)])
        assert not opens(Path("/dev/null"))
        limit.allow(None)
        assert opens(node)
        assert makes()
    finally:
        limit.close()


def test_a_slot_under_v2_limits_the_devices_of_one_task_after_another(tmp_path: Path) -> None:
    points = [point for version, point, _, _ in hierarchies._mounts() if version == 2]
    if not points:
        pytest.skip("no cgroup v2")
    tree = hierarchies.Tree(2, points[0], ())
    slot = cgroups.Slot([tree], f"updraft-test-slot-{os.getpid()}")
    try:
        join = f"echo 0 > {slot.folders[0]}/cgroup.procs; exec 3< /dev/zero"

        def opens() -> bool:
            command = ["/bin/sh", "-c", join]
            return subprocess.run(command, capture_output=True, check=False).returncode == 0

        assert opens()
        for _ in range(2):
            assert slot.limit_devices([("c", 1, 3)])
            assert not opens()
            assert slot.limit_devices([("c", 1, 3), ("c", 1, 5)])
            assert opens()
        assert slot.limit_devices(None)
        assert opens()
    finally:
        until(slot.remove, "the slot to go")


def test_an_isolated_leader_forks_into_a_v2_group(tmp_path: Path) -> None:
    points = [Path(point) for version, point, _, _ in hierarchies._mounts() if version == 2]
    if not points:
        pytest.skip("no cgroup v2")
    group = points[0] / f"updraft-test-{os.getpid()}"
    group.mkdir()
    program = (
        "import os\nfrom updraft.runner.keeper import isolation, processes\n"
        f"groups = [os.open(p, f) for p, f in (({str(group)!r}, os.O_RDONLY), "
        f"({str(group / 'cgroup.procs')!r}, os.O_WRONLY))]\n"
        "pid = isolation.fork_init()\n"
        "if pid == 0:\n"
        "    isolation.View()\n"
        "    pid, left = processes.fork_into(groups)\n"
        "    if pid == 0:\n"
        "        print(left, open('/proc/self/cgroup').read(), flush=True)\n"
        "        os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
    )
    try:
        command = [sys.executable, "-I", "-c", program]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        assert said.stdout.startswith("[] "), said
        assert f"0::/{group.name}\n" in said.stdout
    finally:
        until(lambda: hierarchies.clear(str(group)), "the group to go")
