"""Which histories of a stream a restore needs: the one to start from, and those whose messages it lacks.

A stream that was lost and made anew, or restored by an interrupted command, has several lines, and the newest
may hold the least. A restore to the end starts from the oldest line that no other one contains and puts what
only the others hold after it, so that nothing acknowledged is left out because of the order of names.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from kgents_backup.model.catalogue import Catalogue, LineFiles
from kgents_backup.model.documents import Ancestor, LineRecord
from kgents_backup.model.faults import CorruptError, UnrecoverableError
from kgents_backup.model.keys import Line, SegmentName
from kgents_backup.model.moments import to_nanoseconds
from kgents_backup.model.restoration import read_lineage
from kgents_backup.model.segment import Message
from kgents_backup.sinks.replay import original_time, without_original_time
from kgents_backup.sinks.store import Vault


@dataclass(frozen=True, slots=True)
class Appended:
    """What only another line holds, put after the restored one's end at new sequences.

    Attributes:
        beside: The segments of the line that is restored, to leave out what it holds at the same sequence.
    """

    line: Line
    segments: tuple[SegmentName, ...]
    beside: tuple[SegmentName, ...]

    @property
    def segment_bytes(self) -> int:
        """The stored size."""
        return sum(s.size for s in self.segments)

    async def messages(self, vault: Vault) -> AsyncIterator[Message]:
        """Those that the restored line does not hold, in order.

        Raises:
            CorruptError: A segment is damaged.
        """
        beside = read_in_order(vault, self.beside)
        other = await anext(beside, None)
        async for message in read_in_order(vault, self.segments):
            while other is not None and other.sequence < message.sequence:
                other = await anext(beside, None)
            if other is None or other.sequence > message.sequence or not is_same(other, message):
                yield message


def in_order(files: LineFiles) -> tuple[SegmentName, ...]:
    """A line's segments without those that a longer one accounts for; there may be holes."""
    found: list[SegmentName] = []
    reach = 0
    for name in sorted(files.segments, key=lambda s: (s.first, -s.last)):
        if name.last > reach:
            found.append(name)
            reach = name.last
    return tuple(found)


async def first_missing(vault: Vault, segments: Sequence[SegmentName]) -> int | None:
    """The first sequence that the stream held before these segments begin; None where they begin with it.

    Each segment says with which sequence the stream began when it was written.

    Raises:
        CorruptError: The first segment is damaged.
    """
    if not segments:
        return None
    header, _ = await vault.read_segment(segments[0])
    began = header.stream_first or segments[0].first
    return began if began < segments[0].first else None


async def held_to(vault: Vault, files: LineFiles) -> int:
    """The sequence of a line's last message, as far as that is known; what was deleted behind it is nowhere.

    Raises:
        StoreError: The store does not answer.
    """
    known = files.head[0] if files.head else 0
    if known <= files.archived_to:
        return known
    with contextlib.suppress(CorruptError):
        manifest = await vault.manifest(files.snapshots[-1])
        if not manifest.state["messages"]:
            return files.archived_to
        if manifest.last_held is not None:
            return max(files.archived_to, manifest.last_held)
    return known


async def read_in_order(vault: Vault, segments: Sequence[SegmentName]) -> AsyncIterator[Message]:
    """Every message of a chain of segments once.

    Raises:
        CorruptError: A segment is damaged.
    """
    position = 0
    for name in segments:
        _, messages = await vault.read_segment(name)
        for message in messages:
            if message.sequence > position:
                yield message
        position = max(position, name.last)


def is_same(one: Message, other: Message) -> bool:
    """Whether two are the same message, whichever of them was put back by a restore."""
    return (one.restored_subject, one.body, without_original_time(one.headers)) == (
        other.restored_subject,
        other.body,
        without_original_time(other.headers),
    )


async def records_of(vault: Vault, catalogue: Catalogue) -> dict[Line, LineRecord]:
    """How each line began, as far as that is stored.

    Raises:
        CorruptError: A record is damaged.
    """
    found: dict[Line, LineRecord] = {}
    for line in catalogue.lines:
        record = await vault.line(catalogue.stream, line)
        if record is not None:
            found[line] = record
    return found


def ancestors_of(catalogue: Catalogue, taken: Sequence[Line]) -> list[Ancestor]:
    """What a restored stream's lineage says: every known line, and whether it was given up."""
    return [
        Ancestor(str(line), files.head[0], is_given_up=line not in taken, is_base=line == taken[0])
        for line, files in catalogue.lines.items()
        if files.head is not None
    ]


async def maximal_lines(
    vault: Vault, catalogue: Catalogue, records: dict[Line, LineRecord]
) -> list[LineFiles]:
    """The lines that no other one contains, oldest first; never none where something is stored.

    Raises:
        UnrecoverableError: Nothing is stored.
        StoreError: The store does not answer.
    """
    filled = [f for f in catalogue.lines.values() if f.head is not None]
    if not filled:
        raise UnrecoverableError(
            f"nothing is stored of {catalogue.stream}", hint="look into the other store: --store offsite"
        )
    ancestors = {f.line: await _ancestors(vault, f, records.get(f.line)) for f in filled}
    kept: list[LineFiles] = []
    for place, one in enumerate(filled):
        # Where two contain each other they end alike: the newer one stands for both.
        later, earlier = filled[place + 1 :], kept
        others = [*later, *earlier]
        if not [o for o in others if await _contains(vault, o, one, ancestors[o.line])]:
            kept.append(one)
    return kept or filled[-1:]


async def holds_end_of(vault: Vault, whole: LineFiles, part: LineFiles, record: LineRecord | None) -> bool:
    """Whether a line holds what another one ends with: it is that one's history, and may go on from there.

    Args:
        record: How `whole` began.

    Raises:
        StoreError: The store does not answer.
    """
    if part.head is None:
        return True
    return await _contains(vault, whole, part, await _ancestors(vault, whole, record))


async def _ancestors(vault: Vault, files: LineFiles, record: LineRecord | None) -> Sequence[Ancestor]:
    """Where a line comes from, as its beginning or its newest snapshot says."""
    if record is None and files.snapshots:
        with contextlib.suppress(CorruptError):
            lineage = read_lineage((await vault.manifest(files.snapshots[-1])).config)
            return lineage.ancestors if lineage else ()
    return record.ancestors if record else ()


async def _contains(vault: Vault, whole: LineFiles, part: LineFiles, ancestors: Sequence[Ancestor]) -> bool:
    assert part.head is not None  # noqa: S101 the caller left out lines without files
    sequence, time_ms = await held_to(vault, part), part.head[1]
    if sequence == 0:
        return True  # a stream that was made and never held anything: no history of its own
    for ancestor in ancestors:
        if ancestor.line == str(part.line) and sequence <= ancestor.sequence:
            return True
    if whole.head is None or whole.head[0] < sequence:
        return False
    there = await _message_at(vault, whole, sequence)
    if there is None:
        return False
    here = await _message_at(vault, part, sequence)
    if here is not None:
        return is_same(there, here)
    said = original_time(there.headers)
    times = {there.time // 1_000_000, *({to_nanoseconds(said) // 1_000_000} if said else ())}
    return time_ms in times


async def _message_at(vault: Vault, files: LineFiles, sequence: int) -> Message | None:
    for name in files.segments:
        if name.first <= sequence <= name.last:
            with contextlib.suppress(CorruptError):
                _, messages = await vault.read_segment(name)
                return next((m for m in messages if m.sequence == sequence), None)
    return None
