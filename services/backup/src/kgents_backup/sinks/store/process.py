"""Which process this is, so that another one on the same machine can tell whether it still lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec


class Process(msgspec.Struct, frozen=True):
    """A process: where it runs, its number there, and when it started, in the kernel's ticks.

    Attributes:
        boot: Which start of the machine; empty where that is not known.
        space: Whose numbers these are (the container); empty where that is not known.
        started: Numbers are given again: the same number with another start is another process.
    """

    host: str
    boot: str
    space: str
    number: int
    started: str

    @classmethod
    def own(cls) -> Process:
        """This process."""
        return cls(socket.gethostname(), _boot(), _space(), os.getpid(), _started(os.getpid()))

    def is_surely_dead(self) -> bool:
        """Whether it ran on this machine and does not any more; False where that cannot be told.

        A container that was started again has the host's name and the number of the one before: two that
        run at once as the same number under one name (two containers of a pod) would take each other for it.
        """
        if self.host != socket.gethostname():
            return False
        if self.boot != _boot():
            return True
        if not self.started:
            return False
        if self.space != _space():
            return self.number == os.getpid()
        return _started(self.number) != self.started


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _started(number: int) -> str:
    try:
        # The name in parentheses may hold anything; the start is the twentieth field after it (proc(5)).
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
