"""What JetStream answers to a publish; it sends nothing."""

from __future__ import annotations

import msgspec

from kgents_common.errors import KgentsError, NotDurableError, PermanentError

# JetStream's err_code for "wrong last sequence" (nats-server server/errors.json).
WRONG_LAST_SEQUENCE = 10071
# Those for a message, or its headers (64 KiB), larger than the stream ever takes.
TOO_LARGE = (10054, 10097)


class AlreadyThereError(PermanentError):
    """The subject already holds a message although none was expected."""


class Ack(msgspec.Struct, frozen=True, gc=False):
    """JetStream's word that a message is stored.

    Attributes:
        duplicate: The stream already held this `Nats-Msg-Id`; `seq` is the first one's.
    """

    stream: str
    seq: int
    duplicate: bool


class _Reply(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


_REPLY = msgspec.json.Decoder(_Reply)


def read(data: bytes) -> Ack | KgentsError:
    """What JetStream said."""
    if not data:  # a bare 503 status: nobody listens on this subject
        return NotDurableError("nats: no stream takes this subject")
    try:
        reply = _REPLY.decode(data)
    except msgspec.DecodeError:
        return NotDurableError("nats: an acknowledgement could not be read", may_be_stored=True)
    if reply.error is None:
        return Ack(reply.stream, reply.seq, reply.duplicate)
    if reply.error.err_code == WRONG_LAST_SEQUENCE:
        return AlreadyThereError("the subject already holds a message")
    if reply.error.err_code in TOO_LARGE:
        return PermanentError(f"jetstream: {reply.error.description} ({reply.error.err_code})")
    return NotDurableError(f"jetstream: {reply.error.description} ({reply.error.err_code})")
