"""What was restored, read back message by message and compared with every file it came from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from kgents_backup.model.faults import ProtocolError
from kgents_backup.model.ports import Progress
from kgents_backup.model.segment import Message, subject_bytes
from kgents_backup.operations.restoring.filling import tail
from kgents_backup.operations.restoring.histories import is_same
from kgents_backup.operations.restoring.preparing import Prepared
from kgents_backup.sinks.replay import without_original_time
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.messages import MessageReader
from kgents_backup.sources.stream import stream_info
from kgents_backup.sources.verbatim import VerbatimClient

DIGEST_BYTES = 16


@dataclass(slots=True)
class Findings:
    """What reading it back showed.

    Attributes:
        digest: blake2b-256 over every message's sequence, subject, headers and body.
        missing: Messages of the stream as it was that are not in the restored one.
        first_missing: The first that is not at its own sequence; 0 where none is missing.
    """

    digest: str = ""
    missing: int = 0
    first_missing: int = 0


async def read_back(
    client: VerbatimClient,
    vault: Vault,
    prepared: Prepared,
    name: str,
    *,
    base_end: int,
    own_end: int,
    kept: str,
    progress: Progress,
) -> Findings:
    """Compare the restored stream with the segments it was filled from, and with the stream as it was.

    Args:
        base_end: The last sequence that the snapshot brought; after it every message is in a segment.
        own_end: The last sequence of the plan's own line; after it come other lines' messages.
        kept: The copy of the stream as it was; empty where there was none.

    Raises:
        ProtocolError: A message is not what was stored; the stream must not be opened.
        CorruptError, TransientError: A file or the server failed.
    """
    info = await stream_info(client, name)
    if info is None:
        raise ProtocolError(f"the stream {name} is gone")
    found = Findings()
    digest = hashlib.blake2b(digest_size=32)
    expected = _expected(vault, prepared, base_end)
    appended: Counter[bytes] = Counter()
    lost: Counter[bytes] = Counter()
    progress.begin(f"read {name} back", info.messages, "messages")
    try:
        async with _messages(client, name) as ours, _messages(client, kept) as before:
            live = await anext(before, None)
            async for message in ours:
                if message.sequence > base_end:
                    wanted = await anext(expected, None)
                    if wanted is None or not is_same(wanted, message):
                        raise ProtocolError(
                            f"{name} holds another message at {message.sequence} than was stored"
                        )
                while live is not None and live.sequence < message.sequence:
                    _note(live, lost, found)
                    live = await anext(before, None)
                if live is not None and live.sequence == message.sequence:
                    if not is_same(live, message):
                        _note(live, lost, found)
                    live = await anext(before, None)
                if message.sequence > own_end:
                    appended[_mark(message)] += 1
                _digest(digest, message)
                progress.advance(1)
            while live is not None:
                _note(live, lost, found)
                live = await anext(before, None)
        left = await anext(expected, None)
        if left is not None:
            raise ProtocolError(f"{name} lacks the message that was stored at {left.sequence}")
    finally:
        progress.end()
        await expected.aclose()
    found.missing = (lost - appended).total()
    found.first_missing = found.first_missing if found.missing else 0
    found.digest = digest.hexdigest()
    return found


async def _expected(vault: Vault, prepared: Prepared, base_end: int) -> AsyncGenerator[Message]:
    async for _, messages in tail(vault, prepared.plan, base_end):
        for message in messages:
            yield message
    for other in prepared.appended:
        async for message in other.messages(vault):
            yield message


@asynccontextmanager
async def _messages(client: VerbatimClient, name: str) -> AsyncIterator[AsyncIterator[Message]]:
    """Every message of a stream; none where it is not named."""
    info = await stream_info(client, name) if name else None
    if info is None or not info.messages:
        yield _nothing()
        return
    reader = MessageReader(client, name)
    try:
        yield reader.read(info.last_sequence)
    finally:
        await reader.close()


async def _nothing() -> AsyncIterator[Message]:
    return
    yield  # an empty generator


def _note(message: Message, lost: Counter[bytes], found: Findings) -> None:
    lost[_mark(message)] += 1
    found.first_missing = found.first_missing or message.sequence


def _mark(message: Message) -> bytes:
    found = hashlib.blake2b(digest_size=DIGEST_BYTES)
    subject = subject_bytes(message.restored_subject)
    for part in (subject, without_original_time(message.headers), message.body):
        found.update(len(part).to_bytes(4, "big"))
        found.update(part)
    return found.digest()


def _digest(digest: hashlib.blake2b, message: Message) -> None:
    digest.update(message.sequence.to_bytes(8, "big"))
    digest.update(_mark(message))
