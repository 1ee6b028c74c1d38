"""The `Nats-Msg-Id` under which an event is published: what JetStream's duplicate window compares.

The window is the whole stream's and knows no tenants. So the id is keyed with a secret of whoever publishes,
and covers what the event says: nobody else can claim it, and only a true repeat has the same one. It is no
identity: the ledger's is `envelope.identity`, and the ledger decides about whatever has another id here.
"""

from __future__ import annotations

import hashlib
import secrets

from kgents_common.envelope import Envelope

MIN_SECRET_BYTES = 16


class MessageIds:
    """Makes ids under one secret.

    Args:
        secret: Shared by the processes that should recognise each other's repeats, at least 16 bytes of any
            text; a random one of this process's own where None.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        key = hashlib.blake2b(secret or secrets.token_bytes(32), person=b"kgents.msg-id").digest()
        self._keyed = hashlib.blake2b(digest_size=16, key=key)

    def of(self, event: Envelope) -> str:
        """32 hexadecimal digits over tenant, source, id, type, time and data as they were written.

        A time that the door stamped is left out: the same event sent again is stamped with another.
        """
        time = "" if event.time_is_received else event.time.isoformat()
        digest = self._keyed.copy()
        head = "\n".join((event.tenant, event.source, event.id, event.type, time, ""))
        digest.update(head.encode())  # no attribute holds a line feed, so the parts cannot be shifted
        digest.update(event.data)
        return digest.hexdigest()
