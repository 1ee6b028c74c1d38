"""What a restore did, as its report."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class RestoreReport:
    """What a restore did.

    Attributes:
        physical: Messages that came back with the server's own times.
        replayed: Messages whose original time is in the header `Kgents-Original-Time`.
        fillers: Sequences published and purged, because the stream did not hold them.
        stripped: Replayed messages that lost headers to the server which it now refused.
        consumers: Durable consumers, with the sequence up to which they are done.
    """

    stream: str
    into: str
    last_sequence: int = 0
    messages: int = 0
    physical: int = 0
    replayed: int = 0
    fillers: int = 0
    stripped: int = 0
    seconds: float = 0.0
    consumers: list[tuple[str, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
