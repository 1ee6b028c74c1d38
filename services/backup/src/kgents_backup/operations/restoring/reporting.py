"""What a restore did, as its report."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class RestoreReport:
    """What a restore did.

    Attributes:
        physical: Messages that came back with the server's own times.
        replayed: Messages whose original time is in the header `Kgents-Original-Time`.
        appended: Of the replayed ones, those that only another line held, put after the end.
        own_end: The last sequence of the line it was restored from.
        fillers: Sequences published and purged, because the stream did not hold them.
        stripped: Replayed messages that lost headers to the server which it now refused.
        live_before: Messages of the stream as it was; None where there was none.
        missing: Of these, the ones that are not in the restored stream.
        kept: The name of the copy of the stream as it was; empty for none.
        digest: blake2b-256 over every restored message.
        consumers: Durable consumers, with the sequence up to which they are done.
    """

    stream: str
    into: str
    last_sequence: int = 0
    messages: int = 0
    physical: int = 0
    replayed: int = 0
    appended: int = 0
    own_end: int = 0
    fillers: int = 0
    stripped: int = 0
    live_before: int | None = None
    live_last: int = 0
    missing: int = 0
    first_missing: int = 0
    kept: str = ""
    digest: str = ""
    seconds: float = 0.0
    consumers: list[tuple[str, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
