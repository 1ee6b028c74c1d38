"""The live stream as values: frames, filters, positions, and the shared tail of a tenant; it reads nothing.

A position is a sequence of AGENTESE up to which a client has seen everything that is its tenant's. What a
client is told, and says when it comes back, is that and when the message there was stored: a stream that is
made anew counts from 1 again. The wire format is the HTML standard's, section "Server-sent events".
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import msgspec

from kgents_common import subjects
from kgents_common.errors import EnvelopeError, PermanentError, Violation

MAX_TYPES = 32
# JetStream counts in 64 bits, unsigned.
MAX_SEQUENCE = 2**64 - 1
TYPE_FILTER_PATTERN = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(\.\*)?$"
TYPE_FILTER_RULE = "must be an event type, or the start of one followed by '.*'"

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENCODER = msgspec.json.Encoder()
# A line end of JSON stands between tokens only: inside a string it is escaped.
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


class PositionLostError(PermanentError):
    """The stream no longer continues at the position: it was cut, restored or made anew."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One event, ready for every client that wants its type.

    Attributes:
        time: When its message was stored, Unix microseconds; 0 where clients are not told.
        text: The whole server-sent event, with its blank line.
    """

    sequence: int
    time: int
    type: str
    text: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """A position as clients are told it.

    Attributes:
        time: When the message there was stored, Unix microseconds; where none is, any time since its stream
            was created; 0 where not known or not told.
    """

    sequence: int
    time: int = 0

    @property
    def id(self) -> bytes:
        """The id of a server-sent event: `<sequence>-<time>`, or the sequence alone."""
        return b"%d-%d" % (self.sequence, self.time) if self.time else b"%d" % self.sequence


def frame(place: Place, event_type: str, body: bytes) -> Frame | None:
    """The frame of a stored message; None where the message is no JSON object and so no CloudEvent."""
    try:
        if not body.isascii():
            body.decode()
        _OBJECT.decode(body)
    except (ValueError, RecursionError):  # msgspec's and Unicode's errors are ValueErrors
        return None
    line = body.translate(_ONE_LINE) if b"\n" in body or b"\r" in body else body
    text = b"id: %b\nevent: %b\ndata: %b\n\n" % (place.id, event_type.encode(), line)
    return Frame(place.sequence, place.time, event_type, text)


def opening(place: Place, retry_seconds: float) -> bytes:
    """What a stream begins with: when to come back, and from where if nothing follows."""
    return b"retry: %d\nid: %b\n\n" % (int(retry_seconds * 1000), place.id)


def heartbeat(place: Place | None) -> bytes:
    """A comment, with the position where it moved on although nothing was sent."""
    return b": heartbeat\n\n" if place is None else b": heartbeat\nid: %b\n\n" % place.id


def gap(requested: int, place: Place, reason: str) -> bytes:
    """The event that says: between `requested` and `place` there is nothing to be had; or, `made_anew`, that
    the stream is another now and all it holds follows.

    It is no CloudEvent: it has no `specversion`.
    """
    data = _ENCODER.encode({"reason": reason, "requested": requested, "continues_after": place.sequence})
    return b"id: %b\nevent: gap\ndata: %b\n\n" % (place.id, data)


def parse_position(text: str) -> Place:
    """A `Last-Event-ID`: one of ours, or a stream sequence alone, as versions before told it.

    Raises:
        EnvelopeError: It is neither.
    """
    sequence, dash, time = text.partition("-")
    for number in (sequence, *([time] if dash else [])):
        if not (number.isascii() and number.isdecimal() and len(number) <= 20) or int(number) > MAX_SEQUENCE:
            raise EnvelopeError([Violation("Last-Event-ID", "must be the id of an event of this stream")])
    return Place(int(sequence), int(time) if dash else 0)


@dataclass(frozen=True, slots=True)
class TypeFilter:
    """Which types a client wants; all where it names none."""

    exact: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, values: Sequence[str]) -> Self:
        """From `?type=`, once for each: a type, or `llm.*` for every type that starts with `llm.`.

        Raises:
            EnvelopeError: One is neither, or there are too many.
        """
        if len(values) > MAX_TYPES:
            raise EnvelopeError([Violation("type", f"must be given at most {MAX_TYPES} times")])
        exact: set[str] = set()
        prefixes: list[str] = []
        for value in values:
            stem = value.removesuffix(".*")
            if not subjects.is_type(stem):
                raise EnvelopeError([Violation("type", TYPE_FILTER_RULE)])
            if stem == value:
                exact.add(value)
            else:
                prefixes.append(stem + ".")
        return cls(frozenset(exact), tuple(prefixes))

    @property
    def wants_all(self) -> bool:
        """Whether nothing is left out."""
        return not self.exact and not self.prefixes

    def wants(self, event_type: str) -> bool:
        """Whether events of this type are sent."""
        return self.wants_all or event_type in self.exact or event_type.startswith(self.prefixes)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the stream holds at one moment.

    Attributes:
        first: The first sequence it holds; `last + 1` where it is empty.
        last: The last sequence it ever gave.
        newest: The tenant's newest event's sequence; 0 for none. Up to `last`, the tenant has no event
            beyond it.
        last_time: When the message at `last` was stored, or where there is none a time since the stream was
            created; Unix microseconds, 0 where clients are not told.
        created: When the stream was, Unix microseconds; 0 where clients are not told.
        stream: Which of those that ever had its name it is.
    """

    first: int
    last: int
    newest: int
    stream: str
    last_time: int = 0
    created: int = 0

    @property
    def end(self) -> Place:
        """The last sequence as a place."""
        return Place(self.last, self.last_time)

    @property
    def before_all(self) -> Place:
        """The place before the first."""
        return Place(self.first - 1, self.created)


class EventReader(Protocol):
    """Reads one tenant's events from a position on, without a hole and without a repeat."""

    async def next(self) -> list[Frame]:
        """At least one frame, in order; waits, also through outages.

        Raises:
            PositionLostError: The stream no longer continues where this reader is.
        """

    async def close(self) -> None:
        """Let go of what it holds at the server."""


class EventLog(Protocol):
    """AGENTESE, as the live stream needs it."""

    async def bounds(self, tenant: str) -> Bounds:
        """What it holds now.

        Raises:
            TransientError: It does not answer.
        """

    async def knows(self, place: Place) -> bool:
        """Whether the place is of the stream as it is now, and not of one before it.

        Raises:
            TransientError: It does not answer.
        """

    def reader(self, tenant: str, after: int, stream: str) -> EventReader:
        """A reader of what comes after a sequence of this very stream, see `Bounds.stream`."""


class Tail:
    """The newest events of one tenant, in order, bounded; all of the tenant's clients read them here.

    A client that falls behind `floor` no longer finds everything here and reads for itself.

    Attributes:
        floor: Everything the tenant has beyond this sequence, up to `head`, is held.
        head: The position of the reader that feeds this; `head_time` is when its message was stored.
        stream: Which stream its positions are of, see `Bounds.stream`.
        changed: Done with the next change; replaced then.
        ended: Why it ended, once it did.
    """

    def __init__(self, after: Place, stream: str, *, max_events: int, max_bytes: int) -> None:
        self.stream = stream
        self.floor = after.sequence
        self.head = after.sequence
        self.head_time = after.time
        self.ended: str | None = None
        self.changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._bytes = 0
        self._frames: list[Frame] = []

    def covers(self, position: int) -> bool:
        """Whether everything after `position` is to be had here, now or later."""
        return position >= self.floor

    def holds(self, place: Place) -> bool:
        """Whether the place is one that this saw for itself."""
        if place.sequence == self.head:
            return place.time == self.head_time
        at = bisect_right(self._frames, place.sequence, key=_sequence) - 1
        return at >= 0 and (self._frames[at].sequence, self._frames[at].time) == (place.sequence, place.time)

    def since(self, position: int) -> list[Frame]:
        """What is held beyond a position that is covered."""
        if not self._frames or position >= self.head:
            return []
        return self._frames[bisect_right(self._frames, position, key=_sequence) :]

    def append(self, frames: Sequence[Frame]) -> None:
        """Add what was read, drop the oldest beyond the bounds, wake the clients."""
        self._frames.extend(frames)
        self._bytes += sum(len(f.text) for f in frames)
        self.head, self.head_time = frames[-1].sequence, frames[-1].time
        dropped = max(0, len(self._frames) - self._max_events)
        freed = sum(len(f.text) for f in self._frames[:dropped])
        while self._bytes - freed > self._max_bytes and dropped < len(self._frames) - 1:
            freed += len(self._frames[dropped].text)
            dropped += 1
        if dropped:
            self.floor = self._frames[dropped - 1].sequence
            self._bytes -= freed
            del self._frames[:dropped]
        self._change()

    def end(self, reason: str) -> None:
        """No more will come: every client's stream ends."""
        self.ended = reason
        self._change()

    def _change(self) -> None:
        changed, self.changed = self.changed, asyncio.get_running_loop().create_future()
        if not changed.done():
            changed.set_result(None)


def _sequence(item: Frame) -> int:
    return item.sequence
