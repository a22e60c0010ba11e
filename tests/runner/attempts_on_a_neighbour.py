"""What a hostile task tries: each program prints SUCCESS if its attempt on its neighbour works.

Programs run as the attacker's task, with ``KNOWN`` telling all that it could want to know: nothing
here is protected by being secret.  ``pids`` yields whatever may be the neighbour's process.
"""

PRELUDE = """
import ctypes, ctypes.util, mmap, os, resource, signal, socket, stat, struct, sys, time
KNOWN = {known!r}
libc = ctypes.CDLL(None, use_errno=True)

def pids():
    seen = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    ours = {{os.getpid(), os.getppid()}} if KNOWN["isolated"] else {{os.getpid()}}
    return [KNOWN["pid"]] + [pid for pid in seen if pid not in ours and KNOWN["isolated"]]

def read(path):
    with open(path, "rb") as file:
        return file.read()

def call(name, *arguments):
    result = getattr(libc, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{{name}}: {{os.strerror(ctypes.get_errno())}}")
    return result

def any_of(attempt):
    failure = None
    for pid in pids():
        try:
            if attempt(pid):
                return True
        except OSError as error:
            failure = failure or error
    if failure:
        raise failure
    return False

def is_secret(data):
    return KNOWN["secret"].encode() in data
"""

EPILOGUE = """
try:
    worked = attempt()
except (OSError, ValueError) as error:
    print("FAILED", type(error).__name__, error)
else:
    print("SUCCESS" if worked else "FAILED nothing found")
"""

VICTIM = """
import ctypes, os, socket, sys
secret = os.environ["SECRET"]
libc = ctypes.CDLL(None)
for path in sys.argv[1:4]:
    with open(path, "w") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(secret)
kept = open(sys.argv[1])
os.chdir(os.path.dirname(sys.argv[1]))
listener = socket.socket(socket.AF_UNIX)
listener.bind("socket")
os.chmod("socket", 0o777)
listener.listen()
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\\0" + sys.argv[1])
abstract.listen()
segment = libc.shmget(int(sys.argv[4]), 4096, 0o1666)
libc.shmat.restype = ctypes.c_void_p
ctypes.memmove(libc.shmat(segment, None, 0), secret.encode(), len(secret))
print("ready", flush=True)
if not os.isatty(0):
    sys.stdin.read()
    libc.shmctl(segment, 0, None)
else:
    while True:
        sys.stdin.readline()
"""
"""Has its secret in every place that there is, open to everybody as far as it is its own to say."""

ATTEMPTS = {
    "reads its environment": """
def attempt():
    return any_of(lambda pid: is_secret(read(f"/proc/{pid}/environ")))
""",
    "reads its memory": """
def attempt():
    def look(pid):
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
            for line in maps:
                span, mode = line.split()[:2]
                if mode.startswith("rw") and "/" not in line:
                    first, last = (int(number, 16) for number in span.split("-"))
                    memory.seek(first)
                    if is_secret(memory.read(last - first)):
                        return True
    return any_of(look)
""",
    "reads its memory by process_vm_readv": """
def attempt():
    class Span(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
    def look(pid):
        there = next(line for line in open(f"/proc/{pid}/maps") if "[stack]" in line)
        first = int(there.split("-")[0], 16)
        buffer = ctypes.create_string_buffer(64)
        ours, theirs = Span(ctypes.addressof(buffer), 64), Span(first, 64)
        call("process_vm_readv", pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
        return True
    return any_of(look)
""",
    "traces it": """
def attempt():
    def trace(pid):
        call("ptrace", 16, pid, None, None)
        os.waitpid(pid, 0x40000000)
        call("ptrace", 17, pid, None, None)
        return True
    return any_of(trace)
""",
    "signals it": """
def attempt():
    return any_of(lambda pid: os.kill(pid, 0) is None)
""",
    "stops it": """
def attempt():
    def stop(pid):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0)
        os.kill(pid, signal.SIGCONT)
        return True
    return any_of(stop)
""",
    "stops all it can": """
def attempt():
    os.kill(KNOWN["pid"], 0)
    os.kill(-1, 0)
    return True
""",
    "reads its command line": """
def attempt():
    return any_of(lambda pid: is_secret(read(f"/proc/{pid}/cmdline")))
""",
    "enters its folder through /proc/PID/cwd": """
def attempt():
    return any_of(lambda pid: is_secret(read(f"/proc/{pid}/cwd/secret")))
""",
    "enters its root through /proc/PID/root": """
def attempt():
    return any_of(lambda pid: is_secret(read(f"/proc/{pid}/root{KNOWN['workspace']}/secret")))
""",
    "opens its files through /proc/PID/fd": """
def attempt():
    def look(pid):
        for fd in range(3, 20):
            try:
                if is_secret(read(f"/proc/{pid}/fd/{fd}")):
                    return True
            except FileNotFoundError:
                if not os.path.isdir(f"/proc/{pid}/fd"):
                    raise
            except OSError as error:
                if error.errno == 13:
                    raise
    return any_of(look)
""",
    "joins its namespaces": """
def attempt():
    def join(pid):
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        call("setns", fd, 0)
        return True
    return any_of(join)
""",
    "takes a descriptor from it": """
def attempt():
    def take(pid):
        process = os.pidfd_open(pid)
        return call("syscall", 438, process, 0, 0) >= 0
    return any_of(take)
""",
    "reads its workspace": """
def attempt():
    return is_secret(read(KNOWN["workspace"] + "/secret"))
""",
    "lists workspaces": """
def attempt():
    return bool(os.listdir(os.path.dirname(KNOWN["workspace"])))
""",
    "reads its temporary files": """
def attempt():
    return is_secret(read(KNOWN["tmp"]))
""",
    "reads its shared memory": """
def attempt():
    return is_secret(read(KNOWN["shm"]))
""",
    "reads its System V shared memory": """
def attempt():
    libc.shmat.restype = ctypes.c_void_p
    segment = call("shmget", KNOWN["segment"], 0, 0)
    return is_secret(ctypes.string_at(libc.shmat(segment, None, 0), 100))
""",
    "connects to its socket": """
def attempt():
    socket.socket(socket.AF_UNIX).connect(KNOWN["workspace"] + "/socket")
    return True
""",
    "writes to its terminal": """
def attempt():
    with open(KNOWN["terminal"], "w") as terminal:
        terminal.write("boo")
    return True
""",
    "connects to the keeper": """
def attempt():
    socket.socket(socket.AF_UNIX).connect(KNOWN["runner"] + "/keeper.sock")
    return True
""",
    "reads the runner's token": """
def attempt():
    return is_secret(read(KNOWN["runner"] + "/token"))
""",
    "reads a hidden file": """
def attempt():
    return is_secret(read(KNOWN["hidden"]))
""",
    "reads its output": """
def attempt():
    return b"ready" in read(KNOWN["output"] + "/stdout")
""",
    "reads the runner's records": """
def attempt():
    return bool(os.listdir(KNOWN["runner"] + "/attempts"))
""",
    "kills its leader": """
def attempt():
    os.kill(os.getppid(), 0)
    return True
""",
    "reads its leader": """
def attempt():
    leader = os.getppid()
    for name in ("environ", "mem", "maps", "fd", "root", "cwd", "ns/mnt"):
        path = f"/proc/{leader}/{name}"
        try:
            os.listdir(path) if os.path.isdir(path) and name == "fd" else open(path, "rb").close()
            return True
        except OSError as error:
            failure = error
    raise failure
""",
    "makes a device": """
def attempt():
    path = os.path.join(os.getcwd(), "made-device")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    try:
        return read_some(path)
    finally:
        os.unlink(path)

def read_some(path):
    with open(path, "rb") as file:
        return len(file.read(1)) == 1
""",
    "opens a GPU that it was not granted": """
def attempt():
    with open(KNOWN["gpu"], "rb") as file:
        return len(file.read(1)) == 1
""",
    "opens raw devices": """
def attempt():
    for name in ("kmsg", "mem", "loop0", "tty0", "console"):
        try:
            os.close(os.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))
            return True
        except OSError as error:
            failure = error
    raise failure
""",
    "leaves by chroot": """
def attempt():
    os.chroot(os.getcwd())
    return True
""",
    "mounts": """
def attempt():
    call("mount", b"none", b"/mnt", b"tmpfs", 0, None)
    libc.umount2(b"/mnt", 2)
    return True
""",
    "sets a sysctl": """
def attempt():
    os.close(os.open("/proc/sys/vm/swappiness", os.O_WRONLY))
    return True
""",
    "writes to control groups": """
def attempt():
    for folder, _, files in os.walk("/sys/fs/cgroup"):
        for name in files:
            if name in ("cgroup.procs", "tasks"):
                try:
                    os.close(os.open(os.path.join(folder, name), os.O_WRONLY))
                    return True
                except OSError as error:
                    failure = error
    raise failure
""",
    "makes a control group": """
def attempt():
    for name in os.listdir("/sys/fs/cgroup"):
        path = f"/sys/fs/cgroup/{name}/made-by-a-task"
        try:
            os.mkdir(path)
            os.rmdir(path)
            return True
        except OSError as error:
            failure = error
    raise failure
""",
    "reads the keeper's keys": """
def attempt():
    key = call("syscall", KNOWN["keyctl"], 10, -3, b"user", KNOWN["key"].encode(), 0)
    buffer = ctypes.create_string_buffer(100)
    call("syscall", KNOWN["keyctl"], 11, key, buffer, 100)
    return is_secret(buffer.raw)
""",
    "raises its limits": """
def attempt():
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, KNOWN["files"]))
    return True
""",
    "becomes nicer to itself": """
def attempt():
    os.setpriority(os.PRIO_PROCESS, 0, -5)
    return True
""",
    "becomes another user": """
def attempt():
    os.setgid(312346)
    os.setuid(312346)
    return True
""",
}
"""Without isolation each of these works (it all runs as one user), with it none does."""

CONFINED = {
    "uncovers by unmounting in a user namespace": """
def attempt():
    unshare()
    for path in (KNOWN["runner"], "/tmp", "/dev", "/proc", "/dev/shm", KNOWN["hidden"]):
        if libc.umount2(path.encode(), 2) == 0:
            return True
    return is_secret(read(KNOWN["runner"] + "/token"))
""",
    "uncovers by binding the root elsewhere": """
def attempt():
    unshare()
    call("mount", b"/", b"/mnt", None, 4096, None)
    return is_secret(read("/mnt" + KNOWN["runner"] + "/token"))
""",
    "uncovers by binding the root elsewhere with all below and unmounting there": """
def attempt():
    unshare()
    call("mount", b"/", b"/mnt", None, 4096 | 16384, None)
    call("umount2", ("/mnt" + KNOWN["runner"]).encode(), 2)
    return is_secret(read("/mnt" + KNOWN["runner"] + "/token"))
""",
    "uncovers by moving a cover away": """
def attempt():
    unshare()
    call("mount", KNOWN["runner"].encode(), b"/mnt", None, 8192, None)
    return is_secret(read(KNOWN["runner"] + "/token"))
""",
    "uncovers by pivot_root": """
def attempt():
    unshare()
    call("mount", b"/", b"/mnt", None, 4096 | 16384, None)
    call("syscall", {"x86_64": 155}.get(os.uname().machine, 41), b"/mnt", b"/mnt")
    call("umount2", KNOWN["runner"].encode(), 2)
    return is_secret(read(KNOWN["runner"] + "/token"))
""",
    "mounts the machine's /proc": """
def attempt():
    unshare()
    call("mount", b"proc", b"/proc", b"proc", 0, None)
    return is_secret(read(f"/proc/{KNOWN['pid']}/environ"))
""",
    "mounts the machine's devices": """
def attempt():
    unshare()
    call("mount", b"devtmpfs", b"/mnt", b"devtmpfs", 0, None)
    return bool(read("/mnt/kmsg"))
""",
    "makes /sys writable": """
def attempt():
    unshare()
    call("mount", None, b"/sys/fs/cgroup", None, 32 | 4096, None)
    return True
""",
    "is root in a user namespace and reads what is root's": """
def attempt():
    unshare()
    return bool(read("/etc/shadow"))
""",
    "makes a device in a user namespace": """
def attempt():
    unshare()
    call("mount", b"tmpfs", b"/mnt", b"tmpfs", 0, None)
    os.mknod("/mnt/device", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    return bool(open("/mnt/device", "rb").read(1))
""",
}
"""By a task that makes itself root of a user namespace, where the system allows that."""

SHARED = {
    "connects to its abstract socket": """
def attempt():
    socket.socket(socket.AF_UNIX).connect("\\0" + KNOWN["workspace"] + "/secret")
    return True
""",
    "sees the names of its sockets": """
def attempt():
    return KNOWN["workspace"].encode() in read("/proc/net/unix")
""",
    "sees which terminals there are": """
def attempt():
    return os.path.basename(KNOWN["terminal"]) in os.listdir("/dev/pts")
""",
}
"""What isolation does not prevent, as docs/security.md says."""

UNSHARE = """
def unshare():
    uid, gid = os.getuid(), os.getgid()
    call("unshare", 0x10000000 | 0x20000)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
"""
