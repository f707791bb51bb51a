"""Machines that are none: Docker daemons with a network, a /run and a disk of their own each, on one wire. Nothing of the host's daemon is used but
the images that are copied out of it, and all of it ends with the process that made it.

A node is one process tree in a PID, mount, UTS and network namespace: killing it is pulling the plug. The nodes' network cards end in a bridge in a
namespace of its own, so the host's network and its iptables see nothing. Needs root, overlay2 and vxlan; no IPVS.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

NODE = """
set -e
mount -t tmpfs none /run
mount -t tmpfs none /etc/docker
hostname "$NAME"
echo 1 > /proc/sys/net/ipv4/ip_forward
ip link set lo up
read -r _
exec dockerd --config-file "$DIR/daemon.json" --data-root "$DIR/data" --exec-root /run/docker --pidfile /run/docker.pid --host "unix://$DIR/sock" \
    --cgroup-parent "/$CGROUP" --bridge none --iptables=false --ip6tables=false --storage-driver overlay2
"""
PLACE, PREFIX = Path("/var/tmp"), "vllm-swarm-"
"""Where the nodes' disks are: overlay2 needs a file system that is none in memory, a socket a short path."""
CLONE_NEWNET = 0x40000000
START_S = 60


def wait_for(what: str, true: Callable[[], object], seconds: float, pause_s: float = 0.2) -> float:
    """Seconds until `true()` is; AssertionError with `what` after `seconds`."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(pause_s)
    return time.monotonic() - started


def _unshared(flags: Sequence[str], command: Sequence[str], environment: dict[str, str], log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A process in namespaces of its own, that dies with this one; and its process id seen from here."""
    with log.open("ab") as out:
        outer = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "unshare", *flags, "--pid", "--fork", "--kill-child", "--mount-proc", *command],
                                 stdin=subprocess.PIPE, stdout=out, stderr=out, env={**os.environ, **environment}, start_new_session=True)
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    wait_for(f"{command[0]} in its namespaces", lambda: outer.poll() is not None or children.read_text().split(), 10, 0.02)
    assert outer.poll() is None, log.read_text()
    return outer, int(children.read_text().split()[0])


class Node:
    """One machine with a daemon."""

    def __init__(self, cluster: "Cluster", number: int) -> None:
        self.cluster, self.number = cluster, number
        self.name, self.address = f"node{number}", f"10.99.0.{number}"
        self.folder = cluster.folder / self.name
        self.folder.mkdir()
        self.configure()
        self.cgroup = f"{cluster.folder.name}-{number}"
        self._outer: subprocess.Popen[bytes] | None = None
        self._inner = 0

    def configure(self, **lines: object) -> None:
        """Its daemon.json, read at its next start."""
        (self.folder / "daemon.json").write_text(json.dumps({"debug": False, **lines}))

    def start(self) -> None:
        """Plug it in; returns when its daemon answers."""
        about = {"DIR": str(self.folder), "NAME": self.name, "CGROUP": self.cgroup}
        self._outer, self._inner = _unshared(["--net", "--mount", "--uts"], ["sh", "-c", NODE], about, self.folder / "log")
        wire = self.cluster.wire
        _ok("nsenter", f"--net=/proc/{self._inner}/ns/net", "sh", "-c",
            f"ip link add eth0 type veth peer name port{self.number} && ip link set port{self.number} netns {wire}"
            f" && ip addr add {self.address}/24 dev eth0 && ip link set eth0 up")
        self.link(up=True)
        assert self._outer.stdin
        self._outer.stdin.write(b"go\n")
        self._outer.stdin.flush()
        wait_for(f"{self.name}'s daemon: {self.folder}/log", lambda: self.docker("info", check=False).returncode == 0, START_S)

    def link(self, *, up: bool) -> None:
        """Its network cable, at the other end."""
        _ok("nsenter", f"--net=/proc/{self.cluster.wire}/ns/net", "sh", "-c",
            f"ip link set port{self.number} master br0 && ip link set port{self.number} {'up' if up else 'down'}")

    def kill(self) -> None:
        """Pull the plug: the daemon and every container of it are gone at once."""
        if self._outer:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._inner, signal.SIGKILL)
            self._outer.wait(30)
            assert self._outer.stdin
            self._outer.stdin.close()
            self._outer = None
            # Its card may outlive it for a moment.
            wait_for("the wire's end is gone", lambda: subprocess.run(["nsenter", f"--net=/proc/{self.cluster.wire}/ns/net", "ip", "link", "show",
                                                                       f"port{self.number}"], capture_output=True, check=False).returncode, 30)

    def stop(self) -> None:
        """Shut it down."""
        if self._outer:
            os.kill(self._inner, signal.SIGTERM)  # the first process of its namespace is the daemon
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._outer.wait(60)
            self.kill()

    def docker(self, *arguments: str, check: bool = True, timeout: float = 300, stdin: int | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(["docker", "--host", f"unix://{self.folder}/sock", *arguments], stdin=stdin, capture_output=True, text=True,
                              check=False, timeout=timeout)
        assert not check or done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
        return done

    def load(self, *images: str) -> None:
        """Copy images out of the host's daemon."""
        with subprocess.Popen(["docker", "save", *images], stdout=subprocess.PIPE) as saved:
            assert saved.stdout
            self.docker("load", stdin=saved.stdout.fileno(), timeout=600)
        assert saved.returncode == 0

    def kill_process(self, container: str, title: str) -> None:
        """SIGKILL to the process of that title in a container."""
        lines = self.docker("top", container, "-eo", "pid,args").stdout.splitlines()[1:]
        (found,) = [line.split()[0] for line in lines if title in line]
        _ok("nsenter", f"--target={self._inner}", "--pid", "kill", "-KILL", found)

    def remove(self) -> None:
        self.kill()
        for controller in Path("/sys/fs/cgroup").glob(f"*/{self.cgroup}"):
            for group in sorted((controller, *filter(Path.is_dir, controller.rglob("*"))), key=lambda path: len(path.parts), reverse=True):
                with contextlib.suppress(OSError):
                    group.rmdir()


class Cluster:
    """`count` nodes on one wire, none of which is started. Use it as a context: all of it is gone at the end."""

    def __init__(self, count: int) -> None:
        _remove_stale()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=PLACE))
        self._holder, self.wire = _unshared(["--net"], ["sleep", "infinity"], {}, self.folder / "wire.log")
        with self.on_wire():  # an address of its own: else it has one of its ports', and who knew it is not heard when that port goes
            _ok("sh", "-c", "ip link set lo up && ip link add br0 address 02:00:0a:63:00:fe type bridge && ip link set br0 up"
                            " && ip addr add 10.99.0.254/24 dev br0")
        self.nodes = [Node(self, number) for number in range(1, count + 1)]

    def copy_images(self, images: Sequence[str]) -> None:
        """Give every node these images of the host's daemon. Loaded once: the layers, which nothing ever writes to, are the same files for all."""
        first, *others = self.nodes
        first.start()
        first.load(*images)
        first.stop()
        for node in others:
            (node.folder / "data").mkdir()
            for part in (first.folder / "data").iterdir():
                _ok("cp", "--archive", *(["--link"] if part.name == "overlay2" else []), str(part), str(node.folder / "data"))

    @contextlib.contextmanager
    def on_wire(self) -> Iterator[None]:
        """The network of this thread, and of the programs that it starts, is the wire: the nodes' addresses can be reached."""
        libc = ctypes.CDLL(None, use_errno=True)
        before, there = os.open("/proc/thread-self/ns/net", os.O_RDONLY), os.open(f"/proc/{self.wire}/ns/net", os.O_RDONLY)
        try:
            assert libc.setns(there, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            yield
        finally:
            libc.setns(before, CLONE_NEWNET)
            os.close(before)
            os.close(there)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.remove()
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdin
        self._holder.stdin.close()
        _ok("rm", "-rf", str(self.folder))


def _remove_stale() -> None:
    """What a run that was killed has left: its processes have ended with it, and its disks have not."""
    for folder in PLACE.glob(f"{PREFIX}*"):
        if not Path(f"/proc/{folder.name.removeprefix(PREFIX).partition('-')[0]}").exists():
            _ok("rm", "-rf", str(folder))


def _ok(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
