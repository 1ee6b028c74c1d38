"""What a stack that stays finds again besides its servers' files: its keys and secrets; and its solitude."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from kgents_devstack import held
from kgents_devstack.servers import StartError

# Who only asks whether a directory is held (`held.is_held`) holds it for less than a moment.
ASKED_SECONDS = 0.5
# What a disk answers that takes no more, whatever is written.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True, slots=True)
class Identity:
    """Secrets of a stack on loopback; they open nothing else.

    Attributes:
        keys: By tenant, an API key.
        webhook_secret: What Stripe's webhooks are signed with here.
        message_id_secret: What the door keys the ids of its messages with.
    """

    keys: dict[str, str]
    webhook_secret: str
    message_id_secret: str


def load(directory: Path) -> Identity | None:
    """What an earlier run of this directory kept; None where there was none."""
    try:
        found = json.loads((directory / "identity.json").read_text())
        return Identity(**found)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise StartError(f"{directory / 'identity.json'} cannot be read: start with FRESH=1") from error


def save(directory: Path, identity: Identity) -> None:
    """Keep it, for its owner only."""
    path = directory / "identity.json"
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(identity), file)
    temporary.replace(path)


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold a directory while a stack runs in it.

    Raises:
        StartError: Another stack runs there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / held.FILE).open("ab") as lock:
        deadline = time.monotonic() + ASKED_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StartError(
                        f"a stack runs in {directory} already: stop it, or name another directory"
                    ) from None
                time.sleep(0.05)
        yield


@contextmanager
def faults_told(directory: Path) -> Iterator[None]:
    """What a directory, its disk or a file below it refuses is told in a line.

    Raises:
        StartError: Instead of such an OSError; others pass.
    """
    try:
        yield
    except OSError as error:
        names = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if name is not None]
        concerned = any(name.is_relative_to(directory) or directory.is_relative_to(name) for name in names)
        if not concerned and error.errno not in DISK_ERRORS:
            raise
        # What is there is in the way of a folder: nothing else is made where something may be.
        why = "is not a directory" if isinstance(error, FileExistsError) else error.strerror
        raise StartError(f"{names[0] if names else directory}: {why}") from error
