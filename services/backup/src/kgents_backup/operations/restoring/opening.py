"""What is asked before a restored stream is opened: subjects, replicas."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from kgents_backup.model.faults import (
    ProtocolError,
)
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
