"""Mirroring dead letters to the bus; the ledger keeps them, the bus tells of them."""

from __future__ import annotations

from kgents_common import subjects
from kgents_common.delivery import header_text
from kgents_common.publisher import Publisher
from kgents_common.upkeep import Work
from kgents_metering.metrics import Metrics
from kgents_metering.sinks.ledger.dead_letters import DeadLetter, DeadLetters


def mirror_round(letters: DeadLetters, publisher: Publisher, metrics: Metrics) -> Work:
    """Publish new dead letters to `events.deadletter.metering.<code>`, then note that they are there."""

    async def mirror() -> bool:
        metrics.dead_letters.set(await letters.count_open())
        batch = await letters.to_mirror()
        for letter in batch:
            await publisher.publish(
                subjects.dead_letter("metering", letter.code),
                letter.body,
                message_id=f"dl:metering:{letter.epoch.timestamp()}:{letter.seq}",
                headers=_headers(letter),
            )
        if batch:
            await letters.mirrored([letter.id for letter in batch])
        return bool(batch)

    return mirror


def _headers(letter: DeadLetter) -> dict[str, str]:
    kept = {k: v for k, v in letter.header_map().items() if not k.lower().startswith("nats-")}
    return {
        **kept,
        "Kgents-Dead-Letter-Id": str(letter.id),
        "Kgents-Original-Subject": letter.subject,
        "Kgents-Original-Sequence": str(letter.seq),
        "Kgents-Reason": letter.code,
        "Kgents-Detail": header_text(letter.detail),
    }
