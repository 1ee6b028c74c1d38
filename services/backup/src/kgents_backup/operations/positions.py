"""How far the databases had applied the streams, and the streams delivered again from there.

A dump says where the durable consumers stood when it began. What is acknowledged was committed before, so a
ledger loaded from it holds at least that; everything after comes again, and permanent keys make it harmless.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from nats.aio.client import Client

from kgents_backup.model.documents import ConsumerRecord, PositionRecord
from kgents_backup.model.restoration import read_lineage
from kgents_backup.operations.lines import current_line
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.stream import StreamInfo, durable_consumers, stream_info
from kgents_common.errors import TransientError
from kgents_common.streams import JetStreamApiError, request

ATTEMPTS = 20
_EXISTS = (10013, 10148)  # under another configuration; already there

_log = structlog.get_logger()


async def positions(client: Client, vault: Vault, names: Sequence[str]) -> list[PositionRecord]:
    """Where every durable consumer of the streams stands, and on which line.

    Raises:
        TransientError: The server does not answer.
    """
    found: list[PositionRecord] = []
    for name in names:
        info = await stream_info(client, name)
        if info is None:
            continue
        line = str(await current_line(client, await vault.catalogue(name), info))
        found += [
            PositionRecord(name, line, consumer.name, consumer.ack_floor)
            for consumer in await durable_consumers(client, name)
        ]
    return found


async def redeliver(
    client: Client, vault: Vault, names: Sequence[str], known: Sequence[PositionRecord]
) -> list[str]:
    """Have each durable consumer begin again right after its known position; what was done, in words.

    A position of another history than the stream's own says nothing: such a consumer begins at the first.

    Raises:
        TransientError: The server does not answer, or somebody puts a consumer back all the time.
    """
    done: list[str] = []
    for name in names:
        info = await stream_info(client, name)
        if info is None:
            continue
        lines = await _own_lines(client, vault, info)
        for consumer in await durable_consumers(client, name):
            at = next((p for p in known if (p.stream, p.consumer) == (name, consumer.name)), None)
            # What it had acknowledged beyond that is lost: at those sequences come others now.
            start = min(at.ack_floor, lines[at.line]) + 1 if at is not None and at.line in lines else 1
            await _begin_again(client, name, consumer, start)
            done.append(f"{name}/{consumer.name}: delivered again from sequence {start}")
            _log.warning("consumer.redelivers", stream=name, consumer=consumer.name, start_sequence=start)
    return done


async def _own_lines(client: Client, vault: Vault, info: StreamInfo) -> dict[str, int]:
    """The lines whose sequences are the stream's own, its current one and the one it was restored from, and
    up to which."""
    lineage = read_lineage(info.config)
    bases = [a for a in lineage.ancestors if a.is_base] if lineage is not None else []
    current = str(await current_line(client, await vault.catalogue(info.name), info))
    return {a.line: min(a.sequence, info.last_sequence) for a in bases} | {current: info.last_sequence}


async def _begin_again(client: Client, stream: str, consumer: ConsumerRecord, start: int) -> None:
    dropped = ("opt_start_time", "opt_start_seq", "metadata")
    config = {k: v for k, v in consumer.config.items() if k not in dropped}
    config["deliver_policy"] = "all"
    if start > 1:
        config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": start}
    for _ in range(ATTEMPTS):
        try:
            await request(client, f"CONSUMER.DELETE.{stream}.{consumer.name}")
        except JetStreamApiError as error:
            if error.code != 404:
                raise
        try:
            await request(
                client,
                f"CONSUMER.DURABLE.CREATE.{stream}.{consumer.name}",
                {"stream_name": stream, "config": config, "action": "create"},
            )
        except JetStreamApiError as error:  # a watchdog was faster, and put it where it stood
            if error.err_code not in _EXISTS:
                raise
            continue
        return
    raise TransientError(f"{stream}/{consumer.name} is put back by somebody all the time; stop its service")
