"""AGENTESE as the api's event sink, whatever stands behind it: the stream alone, or a spool too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import UNSET

from kgents_api.metrics import Metrics
from kgents_api.model.receipts import Failure, PartlyStoredError, Receipt
from kgents_api.model.recent import RecentEvents
from kgents_common.envelope import STRUCTURED, Envelope
from kgents_common.errors import PermanentError
from kgents_common.publisher import Ack, Message, MessageIds, PublishesAll, Spooled

_CONTENT_TYPE = {"content-type": STRUCTURED}


class StreamSink:
    """Publishes all events of a request at once, and turns what becomes of each into a receipt."""

    def __init__(self, publisher: PublishesAll, metrics: Metrics, ids: MessageIds) -> None:
        self._publisher = publisher
        self._metrics = metrics
        self._ids = ids
        self._recent = RecentEvents()

    async def publish(self, events: Sequence[Envelope], headers: Mapping[str, str]) -> list[Receipt]:
        """See `EventSink.publish`."""
        all_headers = {**_CONTENT_TYPE, **headers}
        outcomes = await self._publisher.publish_all(
            [Message.of(event, all_headers, self._ids) for event in events]
        )
        receipts: list[Receipt] = []
        failures: list[Failure] = []
        stored = duplicates = conflicts = 0
        for index, (event, outcome) in enumerate(zip(events, outcomes, strict=True)):
            if isinstance(outcome, Ack):
                stored += 1
                duplicates += outcome.duplicate
                is_conflict = self._recent.contradicts(event, outcome.seq)
                conflicts += is_conflict
                receipts.append(
                    Receipt(
                        id=event.id,
                        source=event.source,
                        duplicate=outcome.duplicate,
                        conflict=True if is_conflict else UNSET,
                        stream=outcome.stream,
                        stream_sequence=outcome.seq,
                    )
                )
            elif isinstance(outcome, Spooled):
                receipts.append(
                    Receipt(id=event.id, source=event.source, duplicate=outcome.duplicate, stored="spool")
                )
            elif isinstance(outcome, PermanentError):
                raise outcome
            else:
                failures.append(Failure(index, str(outcome)))
        self._metrics.published.inc(stored)
        if duplicates:
            self._metrics.duplicates.inc(duplicates)
        if conflicts:
            self._metrics.conflicts.inc(conflicts)
        if failures:
            self._metrics.publish_errors.inc(len(failures))
            raise PartlyStoredError(failures, len(events))
        return receipts
