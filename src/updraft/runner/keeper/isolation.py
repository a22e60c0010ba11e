"""A task that sees nothing of its neighbours: namespaces, private folders, its owner's user id.

An isolated task's leader is the init of a PID namespace, with mounts and System V IPC of its own;
it stays root, and the command becomes its owner before it enters a directory or runs anything.
What is shared on purpose: the network, the kernel, and whatever file permissions leave open.

Linux only, and imported only by a keeper that is told to isolate (``Keeper`` with a spec that has
``isolation``): a personal runner pays nothing for it.

Sources: namespaces(7), pid_namespaces(7), mount_namespaces(7), capabilities(7), and the kernel's
Documentation/filesystems/sharedsubtree.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import stat
import struct

from updraft.runner.keeper.processes import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CLONE_NEWNS = 0x20000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWPID = 0x20000000

_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8
_REMOUNT, _BIND, _REC, _SLAVE = 32, 4096, 16384, 1 << 19
_OPTIONS = {
    "ro": _RDONLY,
    "nosuid": _NOSUID,
    "nodev": _NODEV,
    "noexec": _NOEXEC,
    "noatime": 1024,
    "nodiratime": 2048,
    "relatime": 1 << 21,
}
"""Mount options as ``mountinfo`` names them: a remount states them again, or drops them."""

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_PR_SET_NO_NEW_PRIVS = 38
_SECUREBITS = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x80
"""User id 0 means nothing, no ambient capability is raised, and none of that is set back; the
dropping of capabilities by ``setresuid`` stays."""

_KEYCTL_JOIN_SESSION_KEYRING = 1
_SYS_KEYCTL = {
    "x86_64": 250,
    "aarch64": 219,
    "riscv64": 219,
    "loongarch64": 219,
    "ppc64le": 271,
    "s390x": 280,
    "armv7l": 311,
    "i686": 288,
}

_CREDENTIALS = struct.Struct("iII")

_NODES = ("null", "zero", "full", "random", "urandom", "tty", "fuse")
"""The devices that every task has, as far as the machine has them."""

_TERMINALS = tuple(range(136, 144))
"""Major numbers of ptys' slaves (Documentation/admin-guide/devices.txt)."""

_ALWAYS_HIDDEN = (
    # Who could reach them could have a process of the same user started outside.
    *("/run/user", "/run/dbus", "/run/systemd/private"),
    *("/run/docker.sock", "/run/containerd", "/run/podman", "/run/crio"),
)


# -- what a spec may ask for


def check(isolation: dict[str, Any]) -> None:
    """Raise ``ValueError`` if ``isolation`` would make a task more than an ordinary user."""
    for name in ("uid", "gid"):
        if type(isolation[name]) is not int or not 0 < isolation[name] < 1 << 31:
            raise ValueError(f"isolation.{name} is {isolation[name]!r}; it must be above 0")
    if any(type(group) is not int or group <= 0 for group in isolation["groups"]):
        raise ValueError("isolation.groups has group 0; leave it out")
    for name in ("user", "home", "shell", "workspace"):
        if b"\0" in isolation.get(name, b""):
            raise ValueError(f"isolation.{name} is {isolation[name]!r}; it must have no NUL")
    for name in ("workspace", *(("home",) if isolation["home"] else ())):
        if not isolation[name].startswith(b"/"):
            raise ValueError(f"isolation.{name} is {isolation[name]!r}; it must begin with /")


# -- a leader's birth


def fork_init() -> int:
    """Fork as ``os.fork`` does; the child is the init of a new PID namespace.

    When it ends, the kernel ends all in it.  For processes with one thread only.
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("unshare", _CLONE_NEWPID)  # for children that are to come
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0:
                _call("setns", own, _CLONE_NEWPID)
    finally:
        os.close(own)
    return pid


class View:
    """What this process, and what it will fork, see of the machine; made in two steps.

    The first does what is the same for every task, ahead of need.  Raises ``OSError``.
    """

    def __init__(self) -> None:
        _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _call("unshare", _CLONE_NEWNS | _CLONE_NEWIPC)
        os.chdir("/")  # what it was started in may be what is to be hidden
        os.umask(0o022)  # a leader makes nothing but folders that others are to pass through
        # Nothing goes out; what the machine mounts later is seen, as it is everywhere else.
        _mount("none", "/", flags=_REC | _SLAVE)
        _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
        _make_read_only("/sys")
        self._devices = os.open("/dev", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._make_dev()
        _bound_capabilities()

    def _make_dev(self) -> None:
        """Put a folder with harmless devices only over /dev."""
        _mount("tmpfs", "/dev", "tmpfs", _NOSUID | _NOEXEC, "mode=0755,size=64k")
        for name in _NODES:
            self._add(name)
        if os.path.islink(self._outer("ptmx")):
            os.symlink(os.readlink(self._outer("ptmx")), "/dev/ptmx")
        else:
            # Made anew: the kernel looks for "pts" beside it, and does not look out of a mount.
            os.mknod("/dev/ptmx", stat.S_IFCHR | 0o666, os.makedev(5, 2))
            os.chmod("/dev/ptmx", 0o666)  # noqa: S103 - as on every machine
        # The machine's own: the task's terminal is one of it, and is opened by its name.
        self._add("pts")
        self._add("infiniband")
        os.mkdir("/dev/shm")  # noqa: S108 - this is where it is made private
        _mount("tmpfs", "/dev/shm", "tmpfs", _NOSUID | _NODEV, "mode=1777,size=50%")  # noqa: S108
        if os.path.isdir(self._outer("mqueue")):
            os.mkdir("/dev/mqueue")
            try:
                _mount("mqueue", "/dev/mqueue", "mqueue", _NOSUID | _NODEV | _NOEXEC)
            except OSError:  # a kernel without
                os.rmdir("/dev/mqueue")
        links = {"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
        for name, target in links.items():
            os.symlink(f"/proc/self/{target}", f"/dev/{name}")
        if os.path.islink(self._outer("log")):
            os.symlink(os.readlink(self._outer("log")), "/dev/log")

    def _outer(self, name: str) -> str:
        return f"/proc/self/fd/{self._devices}/{name}"

    def _add(self, name: str) -> None:
        """Show a device, or a folder of them, of the machine; what it has not is passed over."""
        try:
            found = os.stat(self._outer(name))
        except OSError:
            return
        path = os.path.join("/dev", name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if stat.S_ISDIR(found.st_mode):
            os.makedirs(path, exist_ok=True)
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        _mount(self._outer(name), path, flags=_BIND | _REC)

    def enclose(self, isolation: dict[str, Any]) -> None:
        """Take the second step: a task's own folders and devices.

        Raises ``OSError``, ``ValueError`` for a device that is none.
        """
        private = os.fsdecode(isolation["private"])
        workspace = os.fsdecode(isolation["workspace"])
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        kept = {workspace: os.open(workspace, flags | os.O_NOFOLLOW)}
        for path in map(os.fsdecode, isolation.get("shown", ())):
            try:
                kept[path] = os.open(path, flags | os.O_NOFOLLOW)
            except OSError:
                continue  # its job has ended
        folders = {
            "/tmp": os.open(os.path.join(private, "tmp"), flags),  # noqa: S108
            "/var/tmp": os.open(os.path.join(private, "var-tmp"), flags),  # noqa: S108
        }
        _name_owner(private, isolation)
        for path in (*_ALWAYS_HIDDEN, *map(os.fsdecode, isolation["hidden"])):
            _cover(path)
        real = {os.path.realpath(path): fd for path, fd in reversed(folders.items())}
        for target, fd in real.items():
            if os.path.isdir(target):
                _mount(f"/proc/self/fd/{fd}", target, flags=_BIND)
        for path, fd in kept.items():
            if not _is_at(path, fd):  # it lies in what was hidden
                os.makedirs(path, exist_ok=True)
                _mount(f"/proc/self/fd/{fd}", path, flags=_BIND | _REC)
        for device in isolation["devices"]:
            name = os.path.relpath(os.path.normpath(os.fsdecode(device)), "/dev")
            if name.split("/")[0] in (".", ".."):
                raise ValueError(f"{os.fsdecode(device)} is not in /dev")
            self._add(name)
        for fd in (*kept.values(), self._devices, *folders.values()):
            os.close(fd)


def _name_owner(private: str, isolation: dict[str, Any]) -> None:
    """Put files of users and groups that have the owner's, too, over the machine's.

    ``id``, shells and Python's ``getpass`` fail for a user id without a name.  The copies are made
    in ``private``, which is root's.  An owner with an account has a name already.
    """
    user, uid, gid = isolation["user"], isolation["uid"], isolation["gid"]
    home = isolation["home"] or isolation["workspace"]
    shell = isolation.get("shell") or b"/bin/sh"
    if not user or any(sign in field for field in (user, home, shell) for sign in (b":", b"\n")):
        return
    lines = {
        "/etc/passwd": (uid, b"%b:x:%d:%d::%b:%b\n" % (user, uid, gid, home, shell)),
        "/etc/group": (gid, b"%b:x:%d:\n" % (user, gid)),
    }
    for path, (number, line) in lines.items():
        try:
            with open(path, "rb") as file:
                there = file.read()
        except OSError:
            continue
        if any(each.split(b":")[2:3] == [b"%d" % number] for each in there.splitlines()):
            continue
        copy = os.path.join(private, os.path.basename(path))
        with open(copy, "xb") as written:  # mode 0644, by the mask
            written.write(there if there.endswith(b"\n") or not there else there + b"\n")
            written.write(line)
        _mount(copy, path, flags=_BIND)
        os.unlink(copy)  # it stays for as long as the mount


def _is_at(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return False


def _cover(path: str) -> None:
    """Hide what is at ``path``: an empty folder over a folder, an empty file over anything else."""
    try:
        found = os.stat(path)
    except OSError:
        return
    if not stat.S_ISDIR(found.st_mode):
        _mount("/dev/null", path, flags=_BIND)
        return
    # To be passed through, as the workspace may lie in it, and not to be listed or written to.
    _mount("tmpfs", path, "tmpfs", _NOSUID | _NODEV | _NOEXEC, "mode=0711,size=64k")


def _make_read_only(top: str) -> None:
    """Let nobody write below ``top``, control groups that were given to a user included."""
    with open("/proc/self/mountinfo") as file:
        for line in file:
            point, options = line.split(" ")[4:6]
            for code in ("\\040", "\\011", "\\012", "\\134"):
                point = point.replace(code, chr(int(code[1:], 8)))
            if not (point + "/").startswith(top + "/"):
                continue
            flags = 0
            for option in options.split(","):
                flags |= _OPTIONS.get(option, 0)
            try:
                _mount("none", point, flags=_REMOUNT | _BIND | _RDONLY | flags)
            except FileNotFoundError:
                continue  # another mount lies over it


# -- the command


def _bound_capabilities() -> None:
    """Let no program that is started from here on have a capability; our own stay.

    Ahead of need: it is forty calls.
    """
    capability = 0
    while libc().prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    if ctypes.get_errno() != errno.EINVAL or capability == 0:  # that is: behind the last one
        raise OSError(ctypes.get_errno(), "cannot drop capabilities")
    _call("prctl", _PR_SET_SECUREBITS, _SECUREBITS, 0, 0, 0)


def become(isolation: dict[str, Any]) -> None:
    """Become the task's owner, for good; from within a ``View``.  Raises ``OSError``."""
    os.setgroups(isolation["groups"])
    os.setresgid(isolation["gid"], isolation["gid"], isolation["gid"])
    os.setresuid(isolation["uid"], isolation["uid"], isolation["uid"])
    # The bounding set is empty by now and so are the others, but for the inheritable one.
    _call("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"keyctl of {os.uname().machine} is not known")
    # The keeper's keys are not to be possessed.  A kernel or a sandbox without keys has none.
    joined = libc().syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None)
    if joined < 0 and ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        raise OSError(ctypes.get_errno(), "cannot leave the runner's keyring")


def surroundings(block: bytes, isolation: dict[str, Any], directory: bytes | None) -> bytes:
    """Return the environment as it is to be here; ``directory``: where the command is instead.

    For the command's process: whether a home is its own depends on who asks.
    """
    environment = {}
    for entry in block.split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if equals and name:
            environment[name] = value
    home = environment.get(b"HOME", b"")
    if not (home.startswith(b"/") and os.access(home, os.R_OK | os.W_OK | os.X_OK)):
        environment[b"HOME"] = isolation["home"] or isolation["workspace"]
        environment[b"USER"] = environment[b"LOGNAME"] = isolation["user"]
        environment[b"SHELL"] = isolation.get("shell") or b"/bin/sh"
    environment[b"TMPDIR"] = b"/tmp"
    if directory is not None:
        environment[b"PWD"] = directory
    for name in (b"XDG_RUNTIME_DIR", b"DBUS_SESSION_BUS_ADDRESS"):  # they lead to what is hidden
        environment.pop(name, None)
    return b"\0".join(name + b"=" + value for name, value in environment.items())


def credentials(pid: int) -> list[tuple[int, int, bytes]]:
    """Return what to send along with a message so that its reader gets ``pid`` as it sees it."""
    return [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, _CREDENTIALS.pack(pid, 0, 0))]


# -- devices


def allowed_devices(granted: list[bytes]) -> list[tuple[str, int, int | None]]:
    """Return ``(type, major, minor or None for all)`` of each device that a task may open."""
    allowed: list[tuple[str, int, int | None]] = [("c", major, None) for major in _TERMINALS]
    paths = [f"/dev/{name}" for name in (*_NODES, "ptmx")] + ["/dev/pts/ptmx"]
    try:
        paths += [f"/dev/infiniband/{name}" for name in os.listdir("/dev/infiniband")]
    except OSError:
        pass
    for path in (*paths, *map(os.fsdecode, granted)):
        try:
            found = os.stat(path)
        except OSError:
            continue
        kind = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}.get(stat.S_IFMT(found.st_mode))
        if kind is not None:
            allowed.append((kind, os.major(found.st_rdev), os.minor(found.st_rdev)))
    return sorted(set(allowed), key=lambda each: (each[0], each[1], each[2] or 0))


def device_groups(granted: list[bytes]) -> list[int]:
    """Return the groups that these devices are open to: never root's."""
    groups = set()
    for path in granted:
        try:
            found = os.stat(path)
        except OSError:
            continue
        if stat.S_ISCHR(found.st_mode) and found.st_mode & 0o060 == 0o060:
            groups.add(found.st_gid)
    return sorted(groups - {0})


def terminal_group() -> int:
    """Return the group ``tty``, which programs that write to others' terminals run as."""
    try:
        with open("/etc/group", "rb") as file:
            for line in file:
                if line.startswith(b"tty:"):
                    return int(line.split(b":")[2])
    except (OSError, ValueError, IndexError):
        pass
    return 5


# -- the kernel


def _call(name: str, *arguments: int | bytes) -> None:
    """Call a function of the C library.  Raises ``OSError``, which names it."""
    whole = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    if getattr(libc(), name)(*whole) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    texts = [os.fsencode(text) or None for text in (source, target, kind, data)]
    if libc().mount(*texts[:3], ctypes.c_ulong(flags), texts[3]) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


# -- whether it works here


def probe() -> str:
    """Try all of it once; return why it does not work, in one sentence, empty if it does.

    For a process of its own: whoever calls it waits for a child.
    """
    if not os.path.isdir("/proc/self/ns"):
        return "this system has no namespaces; only Linux can keep owners apart"
    if os.geteuid() != 0:
        return "the runner is not root; start it as root, or let it serve one owner"
    read, write = os.pipe()
    try:
        pid = fork_init()
    except OSError as error:
        return f"no PID namespace may be made here ({error.strerror}); {_PRIVILEGES}"
    if pid == 0:
        why = f"the trial broke off; {_PRIVILEGES}"
        try:
            os.close(read)
            why = _try()
        except OSError as error:
            why = f"isolation fails here ({error.filename or ''} {error.strerror}); {_PRIVILEGES}"
        finally:
            os.write(write, why.encode())
            os._exit(0)
    os.close(write)
    with open(read, "rb") as told:
        why = told.read().decode()
    os.waitpid(pid, 0)
    return why


_PRIVILEGES = "give the runner CAP_SYS_ADMIN, or let it serve one owner"


def _try() -> str:
    View()
    _cover("/etc")
    become({"uid": 65533, "gid": 65533, "groups": []})
    if os.getpid() != 1 or [name for name in os.listdir("/proc") if name.isdigit()] != ["1"]:
        return f"another's processes show in /proc; {_PRIVILEGES}"
    if os.path.exists("/etc/passwd"):
        return f"what is hidden can be seen; {_PRIVILEGES}"
    return ""
