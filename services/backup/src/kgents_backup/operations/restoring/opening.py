"""What is asked before a restored stream is opened: subjects, replicas."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from kgents_backup.model.faults import (
    ProtocolError,
)
from kgents_backup.model.restoration import Filled, read_lineage
from kgents_backup.sources.stream import StreamInfo, stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.errors import TransientError
from kgents_common.streams import JetStreamApiError, request

# A large stream is copied to each replica.
WIDEN_SECONDS = 900.0


async def widen(client: VerbatimClient, fenced: dict[str, Any], replicas: int) -> None:
    """Give a stream that was restored on one server its replicas, and wait until each holds everything.

    Why it is restored on one: in a 2.10 cluster each replica applies the subject transform for itself, and
    after a restore or an update some do not, so that replicas which all call themselves current hold
    different subjects (measured: two of three). Replicas made afterwards are copies of the one.

    Raises:
        ProtocolError: They are not complete in time; the stream stays closed to publishers.
    """
    if replicas == 1:
        return
    name = fenced["name"]
    await request(client, f"STREAM.UPDATE.{name}", fenced | {"num_replicas": replicas}, timeout_seconds=60)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WIDEN_SECONDS
    while loop.time() < deadline:
        with contextlib.suppress(TransientError, JetStreamApiError):  # its leader may be moving
            cluster = (await request(client, f"STREAM.INFO.{name}")).get("cluster") or {}
            others = cluster.get("replicas") or []
            if cluster.get("leader") and len(others) == replicas - 1 and all(map(_is_complete, others)):
                return
        await asyncio.sleep(0.2)
    raise ProtocolError(
        f"the replicas of {name} were not complete in {WIDEN_SECONDS:.0f} s",
        hint="look into the cluster, then run the restore again with --replace",
    )


def _is_complete(replica: dict[str, Any]) -> bool:
    return bool(replica.get("current")) and not replica.get("offline") and not replica.get("lag")


async def refuse_fenced_subjects(client: VerbatimClient, name: str, prefix: str) -> None:
    """Make sure that no message is stored under the subject it was sent to instead of its own.

    Raises:
        ProtocolError: There is one; the stream must not be opened.
    """
    answer = await request(
        client, f"STREAM.INFO.{name}", {"subjects_filter": f"{prefix}.>"}, timeout_seconds=60
    )
    wrong = answer["state"].get("subjects") or {}
    if wrong:
        raise ProtocolError(
            f"the server stored {sum(wrong.values())} messages of {name} under the restore's own subjects",
            hint="the stream stays closed to publishers: run the restore again with --replace",
        )


def filled_of(info: StreamInfo) -> Filled:
    """A filled stream, to know it by."""
    return Filled(info.created, info.first_sequence, info.last_sequence, info.messages)


async def refuse_another_filling(
    client: VerbatimClient, fenced: dict[str, Any], *, messages: int, last_sequence: int
) -> StreamInfo:
    """Make sure that what stands behind the fence is what was filled there; it, as it stands.

    Raises:
        ProtocolError: Another run made the stream anew, or wrote to it; it must not be opened.
    """
    info = await stream_info(client, fenced["name"])
    if info is None or info.config["subjects"] != fenced["subjects"]:
        raise ProtocolError(
            f"the stream {fenced['name']} is not the one that was filled: it was made anew, or is gone",
            hint="see that no other restore runs, then run it again",
        )
    if (info.messages, info.last_sequence) != (messages, last_sequence):
        raise ProtocolError(
            f"{fenced['name']} holds {info.messages} messages up to sequence {info.last_sequence}, not the"
            f" {messages} up to {last_sequence} that were filled in",
            hint="see that no other restore runs, then run it again",
        )
    return info


async def refuse_another_stream(
    client: VerbatimClient, name: str, filled: Filled, *, token: str | None = None, is_fresh: bool = True
) -> None:
    """Make sure that the stream which is open is the one that was filled; what is published follows it.

    Args:
        token: Of the restore, where its lineage carries it.
        is_fresh: Whether it was opened right now; later on messages may have been erased from it.

    Raises:
        ProtocolError: It is another, or holds less.
    """
    info = await stream_info(client, name)
    if info is not None and _is_the_one(info, filled, token, is_fresh=is_fresh):
        return
    held = f"{info.messages} messages up to sequence {info.last_sequence}" if info else "nothing: it is gone"
    raise ProtocolError(
        f"the stream {name} that is open now is not the one that was restored: it holds {held}, not the"
        f" {filled.messages} up to {filled.last_sequence} that were read back",
        hint="see that no other restore runs, then restore once more, with --replace",
    )


def _is_the_one(info: StreamInfo, filled: Filled, token: str | None, *, is_fresh: bool) -> bool:
    lineage = read_lineage(info.config)
    if token is not None and (lineage is None or lineage.token != token):
        return False
    # In a cluster the time is each leader's own.
    if info.config["num_replicas"] == 1 and info.created != filled.created:
        return False
    if info.last_sequence < filled.last_sequence:
        return False
    # Its own limits hold again: what is too old may be gone from the front, what they count from anywhere.
    may_lack = not is_fresh or info.config.get("max_msgs_per_subject", -1) > 0
    return may_lack or info.messages >= filled.messages or info.first_sequence > filled.first_sequence
