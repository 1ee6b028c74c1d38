"""OpenMeter over HTTP: one request in, one answer out; what the answer means is the model's to say.

Speaks v1 (`/api/v1/events`, 204) and v3 (`/openmeter/events`, 202). The content type is sent without
parameters: v1 compares it whole. OpenMeter's own SDK takes neither 429 nor time-outs for retryable, so it is
not used here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx

from kgents_common.clock import Clock
from kgents_common.errors import TransientError
from kgents_metering.model.delivery import Answer, retry_after
from kgents_metering.model.wire import Owed, encode

BATCH_TYPE = "application/cloudevents-batch+json"
VERIFY_IDS = 50


class OpenMeter:
    """A client of one OpenMeter.

    Args:
        base_url: Up to and without `/api/v1` (v1), or up to and without `/openmeter` (v3).
        version: `v1` or `v3`.
    """

    def __init__(
        self, *, base_url: str, token: str | None, version: str, clock: Clock, timeout: timedelta
    ) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._clock = clock
        self._ingest = "/api/v1/events" if version == "v1" else "/openmeter/events"
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers={**headers, "user-agent": "kgents-metering"},
            timeout=httpx.Timeout(timeout.total_seconds(), connect=3),
            limits=httpx.Limits(max_connections=32),
            follow_redirects=False,
        )

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def send(self, events: Sequence[Owed], traceparent: str | None = None) -> Answer:
        """Ingest a batch; a time-out or a broken connection is an answer too (status 0)."""
        body = b"[" + b",".join(encode(event) for event in events) + b"]"
        headers = {"content-type": BATCH_TYPE}
        if traceparent is not None:
            headers["traceparent"] = traceparent
        try:
            response = await self._client.post(self._ingest, content=body, headers=headers)
        except httpx.HTTPError as error:
            return Answer(0, type(error).__name__)
        wait = retry_after(response.headers.get("retry-after"), self._clock.now())
        return Answer(response.status_code, _detail(response), wait)

    async def stored(self, events: Sequence[Owed]) -> set[int]:
        """Which of these it has, asked of its listing (`GET /api/v2/events`, which both versions serve).

        Raises:
            TransientError: It does not say.
        """
        found: set[int] = set()
        by_wire = {(event.wire_source, event.wire_id): event.n for event in events}
        for start in range(0, len(events), VERIFY_IDS):
            ids = [event.wire_id for event in events[start : start + VERIFY_IDS]]
            for item in await self._list({"id": {"$in": ids}}):
                event = item.get("event", {})
                n = by_wire.get((event.get("source"), event.get("id")))
                if n is not None:
                    found.add(n)
        return found

    async def hourly(self, slug: str, start: datetime, end: datetime) -> dict[tuple[str, datetime], Decimal]:
        """A meter's value by subject and hour, every digit as it says it.

        Raises:
            TransientError: It does not say.
        """
        answer = await self._get(
            f"/api/v1/meters/{slug}/query",
            {
                "groupBy": "subject",
                "windowSize": "HOUR",
                "from": start.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "to": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
            },
        )
        return {
            (row["subject"] or "", datetime.fromisoformat(row["windowStart"])): Decimal(row["value"])
            for row in answer.get("data", [])
        }

    async def _list(self, conditions: dict[str, Any]) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        for _ in range(100):
            query = {
                "filter": json.dumps(conditions),
                "limit": "100",
                **({"cursor": cursor} if cursor else {}),
            }
            page = await self._get("/api/v2/events", query)
            items += page.get("items", [])
            cursor = page.get("nextCursor")
            if not cursor:
                break
        return items

    async def _get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        try:
            response = await self._client.get(path, params=query)
        except httpx.HTTPError as error:
            raise TransientError(f"openmeter: {type(error).__name__}") from error
        if response.status_code != 200:
            raise TransientError(f"openmeter: {path} answered {response.status_code}")
        answer: dict[str, Any] = json.loads(response.text, parse_float=Decimal)
        return answer


def _detail(response: httpx.Response) -> str:
    """What a problem document says, cut to a line; never more of a body than that."""
    if response.status_code < 400:
        return ""
    try:
        document = response.json()
        return str(document.get("detail") or document.get("title") or "")[:500]
    except (ValueError, AttributeError):
        return ""
