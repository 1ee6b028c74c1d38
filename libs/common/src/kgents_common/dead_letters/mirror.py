"""Telling the bus of dead letters; the table keeps them, and one that cannot be told holds up no other.

A letter that is larger than the bus takes is told of without what makes it so: its body is cut off, and its
original headers stay behind. `Kgents-Dead-Letter-Id` is what to ask the service for, which has it whole.
So that nobody fills the bus with garbage, a sender has a share of it (`share`): beyond, letters are told of
without their bodies, then not at all; the next that is told says in `Kgents-Untold` how many there were.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import structlog

from kgents_common import subjects
from kgents_common.crash import CrashPoints
from kgents_common.dead_letters.letter import DeadLetter
from kgents_common.dead_letters.share import Shares, Told
from kgents_common.dead_letters.table import DeadLetters
from kgents_common.delivery import header_text
from kgents_common.errors import PermanentError, TransientError

# Original headers beyond this are left out.
MAX_HEADER_BYTES = 16 * 1024
# What is left of a body that is too large.
CUT_BYTES = 64 * 1024
# After so many in a row nobody is there to be told.
MAX_FAILURES = 3
# What a header may be named on the wire (RFC 9110 section 5.6.2, as nats-py has it).
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

_log = structlog.get_logger()


class Publishes(Protocol):
    """The bus, as the mirror needs it."""

    async def publish(
        self, subject: str, payload: bytes, *, message_id: str, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Store one message."""


class Mirror:
    """Publishes new dead letters to `events.deadletter.<service>.<code>`.

    Args:
        note_open: Told how many letters wait for an operator, with every round.
    """

    def __init__(
        self,
        letters: DeadLetters[Any],
        publisher: Publishes,
        service: str,
        *,
        note_open: Callable[[int], object] = lambda _: None,
        crash_points: CrashPoints | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shares = Shares(clock)
        self._letters = letters
        self._publisher = publisher
        self._service = service
        self._note_open = note_open
        self._crash_points = crash_points or CrashPoints(None)

    async def run(self) -> bool:
        """One round; whether there may be more.

        Raises:
            TransientError: Postgres or the bus does not answer.
        """
        self._note_open(await self._letters.count_open())
        found = await self._letters.to_mirror()
        failures = 0
        for letter in found:
            told, untold = self._shares.take(letter.subject, len(letter.body))
            try:
                await self._tell(letter, told, untold)
            except TransientError as error:
                self._shares.give_back(letter.subject, len(letter.body), told, untold)
                await self._letters.not_mirrored(letter.id)
                failures += 1
                if failures == MAX_FAILURES:
                    raise
                _log.warning("mirror.postponed", letter=letter.id, error=str(error))
                continue
            failures = 0
            self._crash_points.reach("mirror.after_send")
            await self._letters.mirrored(letter.id)
        return bool(found) and failures == 0

    async def _tell(self, letter: DeadLetter, told: Told, untold: int) -> None:
        if told is Told.NOT:
            return
        about = {**_about(letter), **({"Kgents-Untold": str(untold)} if untold else {})}
        cut = {**about, "Kgents-Truncated": "true", "Kgents-Body-Bytes": str(len(letter.body))}
        body = bytes(letter.body)
        tries = [
            (body, {**_original(letter), **about}),
            (body, about),
            (body[:CUT_BYTES], cut),
            (b"", cut),
        ]
        for payload, headers in tries if told is Told.WHOLE else tries[-1:]:
            try:
                await self._publisher.publish(
                    subjects.dead_letter(self._service, letter.code),
                    payload,
                    message_id=self._message_id(letter),
                    headers=headers,
                )
            except PermanentError as error:
                _log.info("mirror.too_large", letter=letter.id, error=str(error))
            else:
                return
        # The bus will never take it; the letter is in Postgres, and listed there.
        _log.error("mirror.not_told", letter=letter.id)

    def _message_id(self, letter: DeadLetter) -> str:
        stored = int(letter.stored_at.timestamp() * 1_000_000)
        return f"dl:{self._service}:{letter.stream}:{letter.seq}:{stored}"


def _about(letter: DeadLetter) -> dict[str, str]:
    return {
        "Kgents-Dead-Letter-Id": str(letter.id),
        "Kgents-Original-Subject": header_text(letter.subject),
        "Kgents-Original-Stream": letter.stream,
        "Kgents-Original-Sequence": str(letter.seq),
        "Kgents-Original-Stored-At": letter.stored_at.isoformat(),
        "Kgents-Reason": letter.code,
        "Kgents-Detail": header_text(letter.detail),
    }


def _original(letter: DeadLetter) -> dict[str, str]:
    """The original headers that may be sent again: none the server would act upon."""
    kept = {
        k: v
        for k, v in letter.header_map().items()
        if _NAME.fullmatch(k) and not k.lower().startswith("nats-")
    }
    return kept if sum(len(k) + len(v.encode()) for k, v in kept.items()) <= MAX_HEADER_BYTES else {}
