"""Webhooks as Stripe sends them: signed, again until they are taken, in no order; or badly, on purpose.

Scheme: docs.stripe.com/webhooks, "Verify webhook signatures manually". Stripe retries for three days; here
for a minute and a half.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import random
import ssl
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta

import httpx

MAX_ATTEMPTS = 100
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 1.0


def signed(body: bytes, secret: str, *, at: int | None = None) -> dict[str, str]:
    """The headers of a webhook, signed now or at a second of the test's choosing."""
    second = str(int(time.time()) if at is None else at)
    mac = hmac.new(secret.encode(), second.encode() + b"." + body, hashlib.sha256).hexdigest()
    return {"stripe-signature": f"t={second},v1={mac}", "content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Chaos:
    """How badly to deliver; the same seed gives the same deliveries.

    Attributes:
        duplicate: Probability that an event is sent twice.
        drop: Probability that an event is never sent; Stripe still lists it.
        shuffle: Send in any order.
        delay: Probability that a delivery is held back, and for at most how long.
        same_second: Probability that a change comes within the second of the one before: the lives heed it.
    """

    duplicate: float = 0.0
    drop: float = 0.0
    shuffle: bool = False
    delay: tuple[float, timedelta] = (0.0, timedelta())
    same_second: float = 0.0
    seed: int = 1

    def order(self, bodies: Sequence[bytes]) -> list[bytes]:
        """What is sent, in its order."""
        roll = random.Random(self.seed)
        sent = [body for body in bodies if roll.random() >= self.drop]
        sent += [body for body in sent if roll.random() < self.duplicate]
        if self.shuffle:
            roll.shuffle(sent)
        return sent

    def plan(self, bodies: Sequence[bytes]) -> list[tuple[float, bytes]]:
        """What is sent, and how many seconds after the first of them at the earliest, by that."""
        probability, longest = self.delay
        roll = random.Random(self.seed + 1)
        held = [
            (roll.uniform(0, longest.total_seconds()) if roll.random() < probability else 0.0, body)
            for body in self.order(bodies)
        ]
        return sorted(held, key=lambda pair: pair[0])


@dataclass(slots=True)
class Sender:
    """Delivers to one endpoint; remembers the statuses each delivery met."""

    url: str
    secret: str
    at_once: int = 8
    log: list[list[int]] = field(default_factory=list)

    def deliver(self, bodies: Iterable[bytes], chaos: Chaos | None = None) -> int:
        """Deliver, each until it is taken; how many deliveries that were.

        Raises:
            RuntimeError: One was refused for good, or never taken.
        """
        planned = (chaos or Chaos()).plan(list(bodies))
        began = time.monotonic()
        with (
            httpx.Client(timeout=10, verify=_certificates()) as client,
            ThreadPoolExecutor(self.at_once) as pool,
        ):
            self.log += pool.map(lambda due: self._one(client, due[1], began + due[0]), planned)
        return len(planned)

    def _one(self, client: httpx.Client, body: bytes, not_before: float) -> list[int]:
        statuses: list[int] = []
        time.sleep(max(0.0, not_before - time.monotonic()))
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                answer = client.post(self.url, content=body, headers=signed(body, self.secret))
            except httpx.TransportError:
                statuses.append(0)
            else:
                statuses.append(answer.status_code)
                if answer.is_success:
                    return statuses
                if answer.status_code not in (429, 503):
                    raise RuntimeError(f"refused: {answer.status_code} {answer.text}")
            time.sleep(min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * attempt))
        raise RuntimeError("a webhook was never taken")


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Whom to believe, read once: that takes longer than a small delivery."""
    return ssl.create_default_context()
