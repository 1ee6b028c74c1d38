"""Stripe's API as billing asks it: objects and lists as plain JSON, slowly, and with an end to every wait.

Stripe's library defaults to 80 s, two silent retries and telemetry; here a request takes seconds, the
caller's own backoff decides about the next, and nothing is told about us. Its objects are not used: the
answer's JSON is.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec
import stripe
import structlog
from pyrate_limiter import Duration, Limiter, Rate

from kgents_billing.model.event import at
from kgents_billing.model.known import Fetched
from kgents_billing.model.projection import project
from kgents_common.clock import Clock
from kgents_common.errors import PermanentError, TransientError
from kgents_common.resilience import CircuitBreaker

# What the projection was written for. Events keep their endpoint's version; what we ask for has this one.
API_VERSION = "2026-10-28.endive"
PAGE = 100
# Of a `Stripe-Account` that is none, or that took its access back (docs.stripe.com/error-codes).
NO_ACCESS = "account_invalid"
_log = structlog.get_logger()


class MissingObjectError(PermanentError):
    """Stripe has no object of this id."""


class RefusedRequestError(PermanentError):
    """Stripe does not take the question, and would not take it again."""


class AccountRefusedError(PermanentError):
    """A connected account is none, or took its access back: nothing of it can be asked, others can."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One response.

    Attributes:
        second: When it was given, by Stripe's clock.
    """

    data: Mapping[str, Any]
    body: str
    second: int


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list: each object's JSON as Stripe gave it, and when by Stripe's clock."""

    items: list[bytes]
    second: int


class _List(msgspec.Struct):
    data: list[msgspec.Raw]
    has_more: bool = False


class _Id(msgspec.Struct):
    id: str


_LIST = msgspec.json.Decoder(_List)
_ID = msgspec.json.Decoder(_Id)


class StripeApi:
    """Reads of Stripe's API with a restricted key.

    Args:
        base_url: Elsewhere than api.stripe.com, for tests.
        per_second: At most so many requests; Stripe gives an account 100 (25 in a sandbox).
        breaker: Told of every outcome; open, Stripe is not asked.
        on_refused: Told of each question that a connected account's lost access refused.
    """

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str | None = None,
        clock: Clock,
        per_second: int = 10,
        timeout: timedelta = timedelta(seconds=5),
        breaker: CircuitBreaker | None = None,
        on_refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        stripe.enable_telemetry = False
        self._http = stripe.HTTPXClient(timeout=timeout.total_seconds())
        self._client = stripe.StripeClient(
            api_key,
            stripe_version=API_VERSION,
            max_network_retries=0,
            http_client=self._http,
            base_addresses={"api": base_url} if base_url else None,
        )
        self._clock = clock
        self._account: str | None = None
        self._refused: set[str] = set()  # of all accounts: what `of` gives shares it
        self._on_refused = on_refused
        self._limiter = Limiter(Rate(per_second, Duration.SECOND))
        self.breaker = breaker or CircuitBreaker(
            "stripe", threshold=5, window=10, is_failure=lambda error: isinstance(error, TransientError)
        )

    @property
    def refused(self) -> Collection[str]:
        """The connected accounts that may not be asked, as Stripe said when they were asked last."""
        return sorted(self._refused)

    def of(self, account: str | None) -> StripeApi:
        """The same for a connected account: every request names it."""
        if account == self._account:
            return self
        bound = copy.copy(self)
        bound._account = account
        return bound

    async def subscription(self, subscription_id: str) -> Fetched:
        """A subscription's state now.

        Raises:
            MissingObjectError: There is none.
            AccountRefusedError: Stripe does not let us ask for this connected account.
            TransientError: Stripe does not answer, or does not let us ask.
        """
        answer = await self.whole_subscription(subscription_id)
        return Fetched(project(answer.data), answer.second)

    async def whole_subscription(self, subscription_id: str) -> Answer:
        """A subscription with all of its items, which its own list may not hold. Errors as `subscription`."""
        answer = await self.get(f"/v1/subscriptions/{subscription_id}")
        if at(answer.data, "items", "has_more") is not True:
            return answer
        items: list[Any] = []
        async for page in self.pages("/v1/subscription_items", {"subscription": subscription_id}):
            items += [msgspec.json.decode(raw) for raw in page.items]
        return replace(answer, data={**answer.data, "items": {"data": items}})

    async def customer_metadata(self, customer_id: str) -> Mapping[str, Any]:
        """What the account's owner noted on a customer; empty for a deleted one. Errors as `subscription`."""
        answer = await self.get(f"/v1/customers/{customer_id}")
        found = answer.data.get("metadata")
        return found if isinstance(found, Mapping) else {}

    async def event(self, event_id: str) -> bytes:
        """A snapshot event as Stripe keeps it (for 30 days). Errors as `subscription`."""
        return (await self.get(f"/v1/events/{event_id}")).body.encode()

    async def pages(self, path: str, params: Mapping[str, Any]) -> AsyncIterator[Page]:
        """A list, page by page, newest first.

        Raises:
            AccountRefusedError: As `subscription`.
            TransientError: As `subscription`; what was given is not all of it.
        """
        after: dict[str, str] = {}
        while True:
            answer = await self.get(path, {**params, **after, "limit": PAGE})
            found = _LIST.decode(answer.body)
            yield Page([bytes(raw) for raw in found.data], answer.second)
            if not found.has_more or not found.data:
                return
            after = {"starting_after": _ID.decode(found.data[-1]).id}

    async def get(self, path: str, params: Mapping[str, Any] | None = None) -> Answer:
        """One GET. Errors as `subscription`."""
        await self._limiter.try_acquire_async("stripe")
        async with self.breaker.guard():
            return await self._get(path, params or {})

    async def close(self) -> None:
        """Close its connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def _get(self, path: str, params: Mapping[str, Any]) -> Answer:
        try:
            named = {} if self._account is None else {"stripe_account": self._account}
            response = await self._client.raw_request_async("get", path, **params, **named)
        except stripe.StripeError as error:
            # The library has the code of some kinds of errors only in what they were made of.
            if self._account is not None and getattr(error.error, "code", None) == NO_ACCESS:
                raise self._no_access(self._account) from None
            raise _meaning(error, path) from None  # its own text may hold the request
        if self._account in self._refused:
            self._refused.discard(self._account)
            _log.info("stripe.account_admitted", account=self._account)
        date = response.headers.get("Date") or response.headers.get("date")
        second = int(parsedate_to_datetime(date).timestamp() if date else self._clock.now().timestamp())
        return Answer(response.data, response.body, second)

    def _no_access(self, account: str) -> AccountRefusedError:
        self._on_refused(account)
        if account not in self._refused:  # each question would say it again
            self._refused.add(account)
            _log.error(
                "stripe.account_refused",
                account=account,
                hint="connect it again, or take it out of KGENTS_STRIPE_ACCOUNTS",
            )
        return AccountRefusedError(f"stripe: no access to account {account}")


def _meaning(error: stripe.StripeError, path: str) -> Exception:
    status = error.http_status
    what = path.rpartition("/")[0] or path
    if status == 404:
        return MissingObjectError(f"stripe: nothing at {what}")
    if status in (401, 403):
        _log.error(
            "stripe.refused", status=status, path=what, hint="check STRIPE_API_KEY and its permissions"
        )
    elif status == 400:
        return RefusedRequestError(f"stripe: refused the request for {what}")
    return TransientError(f"stripe: {type(error).__name__} {status or ''} on {what}".replace("  ", " "))
