"""What a stack that stays finds again besides its servers' files: its keys and secrets; and its solitude."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from kgents_devstack.servers import StartError


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
    with (directory / "in-use").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartError(
                f"a stack runs in {directory} already: stop it, or name another directory"
            ) from None
        yield
