"""AGENTESE as the api's event sink, whatever stands behind it: the stream alone, or a spool too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kgents_api.metrics import Metrics
from kgents_api.model.receipts import Failure, PartlyStoredError, Receipt
from kgents_common.envelope import STRUCTURED, Envelope
from kgents_common.errors import PermanentError
from kgents_common.publisher import Ack, Message, PublishesAll, Spooled

_CONTENT_TYPE = {"content-type": STRUCTURED}


class StreamSink:
    """Publishes all events of a request at once, and turns what becomes of each into a receipt."""

    def __init__(self, publisher: PublishesAll, metrics: Metrics) -> None:
        self._publisher = publisher
        self._metrics = metrics

    async def publish(self, events: Sequence[Envelope], headers: Mapping[str, str]) -> list[Receipt]:
        """See `EventSink.publish`."""
        all_headers = {**_CONTENT_TYPE, **headers}
        outcomes = await self._publisher.publish_all([Message.of(event, all_headers) for event in events])
        receipts: list[Receipt] = []
        failures: list[Failure] = []
        stored = duplicates = 0
        for index, (event, outcome) in enumerate(zip(events, outcomes, strict=True)):
            if isinstance(outcome, Ack):
                stored += 1
                duplicates += outcome.duplicate
                receipts.append(
                    Receipt(
                        id=event.id,
                        source=event.source,
                        duplicate=outcome.duplicate,
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
        if failures:
            self._metrics.publish_errors.inc(len(failures))
            raise PartlyStoredError(failures, len(events))
        return receipts
