"""How much of the bus one sender's dead letters may fill; what is beyond is counted, and is in the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

HOUR_SECONDS = 3600.0
# An hour's, for each sender and process: twenty senders at their worst take a day to fill 2 GiB.
BODY_BYTES = 4 * 1024 * 1024
LETTERS = 1000
# Senders beyond so many in an hour are one.
MAX_SENDERS = 1000
OTHERS = "*"


class Told(Enum):
    """How a letter is told of."""

    WHOLE = "whole"
    WITHOUT_BODY = "without its body"
    NOT = "not"


@dataclass(slots=True)
class _Sender:
    began: float
    body_bytes: int = 0
    letters: int = 0
    untold: int = 0


def sender(subject: str) -> str:
    """Whose a message is, as far as a subject says: `agentese.<tenant>`, `events.stripe`."""
    return ".".join(subject.split(".")[:2])


class Shares:
    """Each sender's share of an hour.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._senders: dict[str, _Sender] = {}

    def take(self, subject: str, body_bytes: int) -> tuple[Told, int]:
        """How a letter is told of, and of how many of its sender nobody was told since the last that was."""
        one = self._of(sender(subject))
        if one.letters >= LETTERS:
            one.untold += 1
            return Told.NOT, 0
        one.letters += 1
        untold, one.untold = one.untold, 0
        if one.body_bytes + body_bytes > BODY_BYTES:
            return Told.WITHOUT_BODY, untold
        one.body_bytes += body_bytes
        return Told.WHOLE, untold

    def give_back(self, subject: str, body_bytes: int, told: Told, untold: int) -> None:
        """Undo a `take` of a letter that could not be told of now and is tried again."""
        one = self._of(sender(subject))
        one.letters = max(0, one.letters - 1)
        one.body_bytes = max(0, one.body_bytes - (body_bytes if told is Told.WHOLE else 0))
        one.untold += untold

    def _of(self, name: str) -> _Sender:
        now = self._clock()
        if name not in self._senders and len(self._senders) >= MAX_SENDERS:
            self._senders = {
                k: v for k, v in self._senders.items() if now - v.began < HOUR_SECONDS or v.untold
            }
            name = name if len(self._senders) < MAX_SENDERS else OTHERS
        one = self._senders.setdefault(name, _Sender(now))
        if now - one.began >= HOUR_SECONDS:
            one.began, one.body_bytes, one.letters = now, 0, 0
        return one
