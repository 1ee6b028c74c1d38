"""One child process on loopback: started to readiness, stopped in order, dead when its parent is."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

# A server that ends is told at once; this only ends a wait for one that hangs.
READY_SECONDS = 240.0
PR_SET_PDEATHSIG = 1

LOWEST_PORT = 10_240
# Where the kernel takes the ports of outgoing connections from, unless it says otherwise.
FIRST_EPHEMERAL_PORT = 32_768
PORT_TRIES = 2_000

# Ports of this process, each with the lock that keeps our other processes from it while this one lives.
_reserved: dict[int, IO[bytes]] = {}


class StartError(RuntimeError):
    """A server did not come up; the message ends with the last lines of its log."""


def free_port() -> int:
    """A loopback TCP port nobody listens on now, this process's own for as long as it lives.

    A server that is stopped for a while finds its port free again: it lies below the ports that the kernel
    gives to outgoing connections, and a lock keeps other stacks and test workers from it.

    Raises:
        StartError: None was found.
    """
    locks = _locks()
    for _ in range(PORT_TRIES):
        port = random.randrange(LOWEST_PORT, _first_ephemeral())
        if port not in _reserved and _reserve(port, locks):
            return port
    raise StartError("no free loopback port was found")


def reserve_port(port: int) -> bool:
    """Whether this loopback TCP port is this process's own now, as `free_port` gives one."""
    return port in _reserved or _reserve(port, _locks(), may_linger=True)


def _locks() -> Path:
    locks = Path(tempfile.gettempdir()) / f"kgents-ports-{os.getuid()}"
    locks.mkdir(mode=0o700, exist_ok=True)
    return locks


def _reserve(port: int, locks: Path, *, may_linger: bool = False) -> bool:
    lock = (locks / str(port)).open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with socket.socket() as probe:
            if may_linger:  # connections of a server that has ended do not keep the next one from its port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except OSError:
        lock.close()
        return False
    _reserved[port] = lock
    return True


def _first_ephemeral() -> int:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return FIRST_EPHEMERAL_PORT
    return first if first > 2 * LOWEST_PORT else FIRST_EPHEMERAL_PORT


def accepts(port: int) -> bool:
    """Whether something on loopback accepts a connection on `port`."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Server:
    """A server process; subclasses say how it is started and when it is ready.

    Start it from a thread that lives as long as it should: the kernel ends the child when the thread that
    started it ends (PR_SET_PDEATHSIG), which is what cleans up after a parent that was killed.
    """

    name = "server"
    stop_signal = signal.SIGTERM
    stop_seconds = 120.0

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise StartError(f"{self.name} is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """What it ended with by itself; None while it runs, before it was started, once it was stopped."""
        return self._process.poll() if self._process is not None else None

    @property
    def log_path(self) -> Path:
        """Where it writes what it has to say."""
        return self.directory / f"{self.name}.log"

    def start(self) -> Self:
        """Start it and wait until it is ready; a second start of a running server does nothing.

        Raises:
            StartError: It ended, or was not ready in time.
        """
        if not self.is_running:
            self.begin()
            self._wait_until_ready()
        return self

    def begin(self) -> None:
        """Start it, and wait for nothing.

        Raises:
            StartError: It cannot be started.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self._prepare()
        self._spawn()

    def stop(self) -> None:
        """Ask it to end, and wait; what does not end in time is killed."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(self.stop_signal)
            try:
                self._process.wait(self.stop_seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End it as a crash would (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> Self:
        """Stop and start on the same port with the same data."""
        self.stop()
        return self.start()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, e.g. SIGSTOP to freeze it."""
        os.kill(self.pid, number)

    def wait(self, timeout_seconds: float) -> int:
        """Until it ended by itself; its exit code.

        Raises:
            subprocess.TimeoutExpired: It still runs.
        """
        if self._process is None:
            raise StartError(f"{self.name} is not running")
        return self._process.wait(timeout_seconds)

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of its log."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _prepare(self) -> None:
        """Write what the command needs; called before each start."""

    def _command(self) -> Sequence[str]:
        raise NotImplementedError

    def _environment(self) -> Mapping[str, str] | None:
        return None

    def _is_ready(self) -> bool:
        return accepts(self.port)

    def _user(self) -> int | None:
        return None

    def _spawn(self) -> None:
        user = self._user()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                cwd=self.directory,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
                # A group of its own: Ctrl-C reaches the supervisor alone, which stops its children in order.
                process_group=0,
                preexec_fn=_die_with_parent(self.stop_signal),
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if not self.is_running:
                raise StartError(f"{self.name} ended while starting:\n{self.log_tail()}")
            with contextlib.suppress(OSError):
                if self._is_ready():
                    return
            time.sleep(0.02)
        self.kill()
        raise StartError(f"{self.name} was not ready within {READY_SECONDS:.0f} s:\n{self.log_tail()}")


def _die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None, use_errno=True)

    def ask_kernel() -> None:
        library.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)

    return ask_kernel


def executable(name: str) -> str:
    """A program that a wheel put beside this Python.

    Raises:
        StartError: It is not there.
    """
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise StartError(f"{name} is not installed beside {sys.executable}: run `make setup`")
    return str(path)
