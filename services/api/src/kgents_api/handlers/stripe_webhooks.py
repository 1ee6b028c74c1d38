"""The door for Stripe's webhooks: verified over the raw bytes, stored as they came, and only then answered
200.

Stripe sends again whatever is not answered 2xx, for up to three days, so an answer must be the truth: 200
means
stored, now or before; 503 means not durable; 400 means not Stripe's. What proves itself is never rate
limited: a renewal day would look like an attack. What fails to is, by address.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from kgents_api.handlers.events import trace_headers
from kgents_api.handlers.refusal import Refused, described
from kgents_api.handlers.request import address_of, expected_size, headers_of, read_body
from kgents_api.model.failures import FailureCounts
from kgents_api.model.stripe_signature import SignatureError, check_header, verify
from kgents_api.model.tenant_limits import FairShare
from kgents_api.sinks.stripe_secrets import WebhookSecrets
from kgents_common import stripe_events
from kgents_common.clock import Clock
from kgents_common.errors import PermanentError, TransientError
from kgents_common.publisher import AlreadyThereError, Publisher
from kgents_common.stripe_events import NotStripeEventError, StripeEnvelope
from kgents_common.telemetry import exemplar

PATH = "/webhooks/stripe"
RETRY_AFTER_SECONDS = 30
MAX_CONCURRENCY = 256
# Of bodies that are being read or stored, of all addresses.
HELD_WEBHOOK_BYTES = 64 * 1024 * 1024
FAILURES_A_MINUTE = 100

_RECEIVED = b'{"received":true}'
_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_log = structlog.get_logger()


class WebhookMetrics:
    """The door's metrics; every label has few values."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.received = Counter(
            "kgents_stripe_webhooks_received_total",
            "Verified webhooks by what became of them: stored, duplicate, wrong_mode, not_durable",
            ["outcome"],
            registry=registry,
        )
        self.errors = Counter(
            "kgents_stripe_webhooks_errors_total",
            "Webhooks refused, by why",
            ["reason"],
            registry=registry,
        )
        self.signed_by = Counter(
            "kgents_stripe_webhook_signatures_total",
            "Verified webhooks by the name of the secret that signed them",
            ["secret"],
            registry=registry,
        )
        self.lag = Histogram(
            "kgents_stripe_webhook_lag_seconds",
            "From Stripe's event to its arrival here",
            buckets=(1, 2, 5, 10, 30, 60, 300, 3600, 86400),
            registry=registry,
        )
        self.store_seconds = Histogram(
            "kgents_stripe_webhook_store_seconds", "Publish to PubAck", buckets=_LATENCY, registry=registry
        )
        for outcome in ("stored", "duplicate", "wrong_mode", "not_durable"):
            self.received.labels(outcome)


class StripeWebhooks:
    """The ASGI endpoint.

    Args:
        mode: Store events of this mode only; others are answered 200 and counted. None stores both: the
            subject tells them apart.
    """

    def __init__(
        self,
        secrets: WebhookSecrets,
        publisher: Publisher,
        *,
        share: FairShare,
        metrics: WebhookMetrics,
        clock: Clock,
        mode: Literal["live", "test"] | None,
        tolerance: timedelta = timedelta(minutes=5),
    ) -> None:
        self._secrets = secrets
        self._publisher = publisher
        self._share = share
        self._metrics = metrics
        self._clock = clock
        self._mode = mode
        self._tolerance = tolerance
        self._failures = FailureCounts(FAILURES_A_MINUTE)
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = headers_of(scope)
        self._look(scope, headers)
        address, size = address_of(scope), expected_size(headers, stripe_events.MAX_BODY_BYTES)
        if not self._share.enter(address, size):
            raise self._refusal(503, "too many webhooks at once", "too_busy")
        try:
            body = await read_body(receive, headers, stripe_events.MAX_BODY_BYTES)
            event = self._verified(scope, headers, body)
            # A place is for who proved to be Stripe: until then a request holds no more than its bytes.
            if self._running >= MAX_CONCURRENCY:
                raise self._refusal(503, "too many webhooks at once", "too_busy")
            self._running += 1
            try:
                answer = await self._store(event, body, headers)
            finally:
                self._running -= 1
        finally:
            self._share.leave(address, size)
        await answer(scope, receive, send)

    def _look(self, scope: Scope, headers: dict[str, str]) -> None:
        """Refuse what the headers alone show not to be Stripe's.

        Raises:
            Refused: As `_verified`.
        """
        try:
            check_header(
                headers.get("stripe-signature", ""),
                now_seconds=self._clock.now().timestamp(),
                tolerance=self._tolerance,
            )
        except SignatureError as error:
            raise self._unverified(scope, error.reason) from None

    def _verified(self, scope: Scope, headers: dict[str, str], body: bytes) -> StripeEnvelope:
        """The event, being Stripe's.

        Raises:
            Refused: 400, or 429 for an address that failed too often.
        """
        secrets = self._secrets.current()
        try:
            index = verify(
                body,
                headers.get("stripe-signature", ""),
                [secret.value for secret in secrets],
                now_seconds=self._clock.now().timestamp(),
                tolerance=self._tolerance,
            )
        except SignatureError as error:
            raise self._unverified(scope, error.reason) from None
        self._metrics.signed_by.labels(secrets[index].name).inc()
        try:
            return stripe_events.read(body)
        except NotStripeEventError as error:
            raise self._refusal(400, str(error), "not_an_event") from None

    def _unverified(self, scope: Scope, reason: str) -> Refused:
        if self._failures.failed(address_of(scope), self._clock.monotonic()):
            return self._refusal(
                429, "too many requests that are not Stripe's", "rate_limited", retry_after=60
            )
        return self._refusal(400, "the signature does not prove that this is Stripe's", reason)

    async def _store(self, event: StripeEnvelope, body: bytes, headers: dict[str, str]) -> Response:
        if self._mode is not None and event.livemode != (self._mode == "live"):
            self._metrics.received.labels("wrong_mode").inc()
            return _ok()
        now = self._clock.now()
        publish = stripe_events.append(
            event, body, received_at=now, via="webhook", trace=trace_headers(headers)
        )
        started = self._clock.monotonic()
        try:
            await self._publisher.publish(
                publish.subject, publish.body, message_id=publish.message_id, headers=publish.headers
            )
        except AlreadyThereError:
            self._metrics.received.labels("duplicate").inc()
            return _ok()
        except TransientError as error:
            self._metrics.received.labels("not_durable").inc()
            _log.warning("webhook.not_durable", event_id=event.id, type=event.type, error=str(error))
            raise self._refusal(503, "not durable: send it again", "not_durable") from None
        except PermanentError:
            raise self._refusal(413, "larger than the stream takes", "too_large") from None
        self._metrics.store_seconds.observe(self._clock.monotonic() - started, exemplar())
        self._metrics.received.labels("stored").inc()
        self._metrics.lag.observe(max(0.0, (now - event.created_at).total_seconds()))
        return _ok()

    def _refusal(
        self, status: int, detail: str, reason: str, *, retry_after: int = RETRY_AFTER_SECONDS
    ) -> Refused:
        self._metrics.errors.labels(reason).inc()
        headers = {"retry-after": str(retry_after)} if status in (429, 503) else None
        return Refused(status, detail, reason=f"stripe_{reason}", headers=headers)


def _ok() -> Response:
    return Response(_RECEIVED, 200, media_type="application/json")


def routes(webhooks: StripeWebhooks) -> list[BaseRoute]:
    """`POST /webhooks/stripe`, with or without a slash at its end: Stripe takes a redirect for a failure."""
    return [Route(path, webhooks, methods=["POST"]) for path in (PATH, f"{PATH}/")]


def openapi_paths() -> dict[str, Any]:
    """The door in the OpenAPI document."""
    refused = {
        "400": "Not Stripe's: no good signature, not recent, or no event.",
        "413": "The body is too large.",
        "429": "Too many requests that are not Stripe's from this address.",
        "503": "Not durable: Stripe sends it again.",
    }
    return {
        PATH: {
            "post": {
                "operationId": "receiveStripeWebhook",
                "summary": "Take a webhook of Stripe",
                "description": "Snapshot and thin events, signed by Stripe. For Stripe alone.",
                "parameters": [
                    {
                        "name": "Stripe-Signature",
                        "in": "header",
                        "required": True,
                        "schema": {"type": "string", "maxLength": 4096},
                    }
                ],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"type": "object"}}},
                },
                "responses": {
                    "200": {"description": "Stored, now or before."},
                    **described(refused),
                },
            }
        }
    }
