"""What only the old primary holds is published to the promoted stream."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

from kgents_backup.model.faults import ProtocolError, RefusedError
from kgents_backup.model.segment import Message
from kgents_backup.operations.disaster.promoting import PROMOTED_AT
from kgents_backup.operations.disaster.regions import Region
from kgents_backup.sinks.replay import (
    with_original_time,
    without_original_time,
    without_spoken,
)
from kgents_backup.sources.messages import MessageReader
from kgents_backup.sources.stream import stream_info
from kgents_backup.sources.verbatim import VerbatimClient


@dataclass(slots=True)
class Account:
    """What an old primary holds that the promoted stream may lack.

    Attributes:
        beyond: Messages after the mirror's end.
        known: Of these, the ones that the promoted stream holds: from the archive, or from an earlier run.
        published: The others, published to the promoted stream under their own ids.
    """

    stream: str
    beyond: int = 0
    known: int = 0
    published: int = 0


async def account(region: Region, stream: str, *, dry_run: bool = False) -> Account:
    """Find what the old primary acknowledged and the promoted stream never got, and publish it there.

    Raises:
        RefusedError: The DR region's stream is not a promoted one.
        TransientError: A region does not answer.
    """
    primary, dr = await region.primary(), await region.dr()
    promoted = await stream_info(dr, stream)
    start = (promoted.config.get("metadata") or {}).get(PROMOTED_AT) if promoted else None
    if promoted is None or start is None:
        raise RefusedError(f"the DR region's {stream} was not promoted", hint="see `dr status`")
    old = await stream_info(primary, stream)
    found = Account(stream)
    if old is None or old.last_sequence <= int(start):
        return found
    theirs = MessageReader(dr, stream, start=int(start) + 1)
    have = Counter([_content(m) async for m in theirs.read(promoted.last_sequence)])
    await theirs.close()
    reader = MessageReader(primary, stream, start=int(start) + 1)
    async for message in reader.read(old.last_sequence):
        found.beyond += 1
        mark = _content(message)
        if have[mark]:
            have[mark] -= 1
            found.known += 1
            continue
        found.published += 1
        if not dry_run:
            headers = with_original_time(without_spoken(message.headers), message.time)
            await _publish(dr, message.subject, headers, message.body)
    await reader.close()
    return found


def _content(message: Message) -> bytes:
    """What tells a message, wherever it stands: put back by a restore or published by an earlier run."""
    found = hashlib.blake2b(digest_size=16)
    headers = without_original_time(without_spoken(message.headers))
    for part in (message.subject.encode(), headers, message.body):
        found.update(len(part).to_bytes(4, "big"))
        found.update(part)
    return found.digest()


async def _publish(client: VerbatimClient, subject: str, headers: bytes, body: bytes) -> None:
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox, max_msgs=1)
    await client.publish_verbatim(subject, inbox, headers, body)
    try:
        answer = await answers.next_msg(timeout=10)
    except TimeoutError as error:
        raise ProtocolError("a recovered message was not acknowledged") from error
    if not answer.data or b'"error"' in answer.data:
        raise ProtocolError("a recovered message was refused")
