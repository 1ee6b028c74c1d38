"""AGENTESE as the api's event sink: all events of a request are sent, then all acknowledgements awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from kgents_api.metrics import Metrics
from kgents_api.model.receipts import Failure, PartlyStoredError, Receipt
from kgents_common.envelope import STRUCTURED, Envelope
from kgents_common.errors import KgentsError, TransientError
from kgents_common.publisher import Ack, Publisher

_CONTENT_TYPE = {"content-type": STRUCTURED}


class StreamSink:
    """Publishes through one pipelined publisher."""

    def __init__(self, publisher: Publisher, metrics: Metrics) -> None:
        self._publisher = publisher
        self._metrics = metrics

    async def publish(self, events: Sequence[Envelope], headers: Mapping[str, str]) -> list[Receipt]:
        """See `EventSink.publish`."""
        all_headers = {**_CONTENT_TYPE, **headers}
        if len(events) == 1:
            try:
                acks: list[Ack | BaseException] = [
                    await self._publisher.publish_event(events[0], all_headers)
                ]
            except TransientError as error:
                acks = [error]
        else:
            acks = await self._publish_all(events, all_headers)
        failures = [
            Failure(index, str(ack)) for index, ack in enumerate(acks) if isinstance(ack, BaseException)
        ]
        receipts = [
            Receipt(
                id=event.id,
                source=event.source,
                duplicate=ack.duplicate,
                stream=ack.stream,
                stream_sequence=ack.seq,
            )
            for event, ack in zip(events, acks, strict=True)
            if isinstance(ack, Ack)
        ]
        self._metrics.published.inc(len(receipts))
        duplicates = sum(receipt.duplicate for receipt in receipts)
        if duplicates:
            self._metrics.duplicates.inc(duplicates)
        if failures:
            self._metrics.publish_errors.inc(len(failures))
            raise PartlyStoredError(failures, len(events))
        return receipts

    async def _publish_all(
        self, events: Sequence[Envelope], headers: Mapping[str, str]
    ) -> list[Ack | BaseException]:
        futures: list[asyncio.Future[Ack]] = []
        stopped: KgentsError | None = None
        for event in events:
            try:
                futures.append(
                    await self._publisher.send(
                        event.subject, event.body, message_id=event.key.hex(), headers=headers
                    )
                )
            except TransientError as error:  # the rest would meet the same
                stopped = error
                break
        acks: list[Ack | BaseException] = list(await asyncio.gather(*futures, return_exceptions=True))
        if stopped is not None:
            acks += [stopped] * (len(events) - len(acks))
        for ack in acks:
            if isinstance(ack, BaseException) and not isinstance(ack, TransientError):
                raise ack
        return acks
