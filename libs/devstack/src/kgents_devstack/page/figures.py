"""What the stack says of itself, read from its own endpoints every few seconds; it asks no database."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from kgents_devstack.stack import Stack

EVERY_SECONDS = 2.0
HISTORY = 150
RATES = {
    "accepted": "kgents_nats_messages_published_total",
    "counted": 'kgents_metering_events_total{outcome="accepted"}',
    "delivered": "kgents_openmeter_events_sent_total",
}
WAITING = {
    "to be counted": "kgents_metering_stream_pending",
    "owed to OpenMeter": "kgents_openmeter_events_buffered",
    "of Stripe": "kgents_billing_stream_pending",
    "facts owed": "kgents_billing_facts_owed",
    "in the spool": "kgents_nats_fallback_queue_depth",
}
DECIDE = {
    "dead letters": ("kgents_metering_dead_letters", "metering#meteringdeadletters"),
    "dead letters of Stripe": ("kgents_billing_dead_letters", "billing#billingdeadletters"),
    "refused by OpenMeter": ("kgents_openmeter_events_poison", "metering#openmeterrefusesevents"),
    "without a tenant": ("kgents_billing_quarantined", "billing#billingquarantineold"),
    "missing sequences": ("kgents_metering_gap_events", "metering#meteringgaps"),
}
CIRCUITS = {
    "NATS": ("kgents_nats_circuit_state", "nats#natscircuitopen"),
    "Redis": ("kgents_redis_circuit_state", "door#rediscircuitopen"),
    "OpenMeter": ("kgents_openmeter_circuit_state", "metering#openmeterflusherrors"),
    "Stripe": ("kgents_stripe_circuit_state", "billing#stripecircuitopen"),
}
STATES = ("closed", "open", "trying")
STREAMS = ("AGENTESE", "EVENTS")


class Figures:
    """The stack's state, and a history of its rates and of what waits."""

    def __init__(self, stack: Stack, client: httpx.AsyncClient) -> None:
        self._stack = stack
        self._client = client
        self._totals: Mapping[str, float] | None = None
        self._looked_at = 0.0
        self._history: deque[dict[str, float]] = deque(maxlen=HISTORY)
        self.state: dict[str, Any] = {"services": [], "history": []}

    async def follow(self) -> None:
        """Look again and again, for ever."""
        while True:
            await self._look()
            await asyncio.sleep(EVERY_SECONDS)

    async def _look(self) -> None:
        names = list(self._stack.options.services)
        found = await asyncio.gather(*(self._ask(name) for name in names))
        samples: dict[str, float] = {}
        for _, told in found:
            samples |= told
        now = time.time()
        totals = {name: samples.get(series, 0.0) for name, series in RATES.items()}
        point = {"at": now, **{name: samples.get(series, 0.0) for name, series in WAITING.items()}}
        if self._totals is not None:
            passed = max(now - self._looked_at, 0.001)
            # A process that starts again counts from nought.
            point |= {name: max(0.0, totals[name] - self._totals[name]) / passed for name in RATES}
            self._history.append(point)
        self._totals, self._looked_at = totals, now
        self.state = {
            "at": now,
            "services": [document for document, _ in found],
            "totals": {
                **totals,
                "repeats": samples.get('kgents_metering_events_total{outcome="duplicate"}', 0.0),
                "conflicts": samples.get('kgents_metering_events_total{outcome="conflict"}', 0.0),
            },
            "rates": list(RATES),
            "waiting": list(WAITING),
            "history": list(self._history),
            "decide": [
                {"what": what, "count": samples.get(series, 0.0), "runbook": runbook}
                for what, (series, runbook) in DECIDE.items()
            ],
            "circuits": [
                {"what": what, "state": STATES[int(samples.get(series, 0)) % 3], "runbook": runbook}
                for what, (series, runbook) in CIRCUITS.items()
            ],
            "backups": [_backup(samples, stream) for stream in STREAMS],
        }

    async def _ask(self, name: str) -> tuple[dict[str, Any], dict[str, float]]:
        url = self._stack.service(name).operations_url
        try:
            health = (await self._client.get(f"{url}/health")).json()
            text = (await self._client.get(f"{url}/metrics")).text
        except (httpx.HTTPError, ValueError):
            return {"name": name, "status": "down", "checks": {}, "url": url}, {}
        checks = {what: check.get("detail") or check["status"] for what, check in health["checks"].items()}
        return {"name": name, "status": health["status"], "checks": checks, "url": url}, _samples(text)


def _samples(text: str) -> dict[str, float]:
    """Series as text, `name{label="value"}`, to value."""
    found = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("kgents_") and family.type in ("gauge", "counter"):
            for sample in family.samples:
                labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def _backup(samples: Mapping[str, float], stream: str) -> dict[str, Any]:
    def of(name: str) -> float | None:
        value = samples.get(f'kgents_backup_{name}{{stream="{stream}"}}')
        return value if value and value > 0 else None

    return {
        "stream": stream,
        "snapshot_at": of("last_success_timestamp_seconds"),
        "archived_to": of("archive_last_sequence"),
        "waiting": samples.get(f'kgents_backup_archive_pending_messages{{stream="{stream}"}}', 0.0),
        "drilled_at": of("drill_last_passed_timestamp_seconds"),
    }
