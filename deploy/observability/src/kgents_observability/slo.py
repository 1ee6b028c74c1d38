"""What we promise as numbers, and the rules that tell how fast the error budget burns; it evaluates nothing.

The windows and factors are those of Google's SRE workbook, chapter 5, "multiwindow, multi-burn-rate alerts":
two per cent of a month's budget in an hour, five in six hours, ten in three days.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kgents_observability import runbooks

INGEST = 'route=~"/v1/events|/api/v1/events",method="POST"'
WEBHOOK = 'route="/webhooks/stripe",method="POST"'
INGEST_LATENCY = 'route=~"/v1/events|/api/v1/events"'
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
# Prometheus keeps 15 days: the budget is of two weeks.
BUDGET_WINDOW = "14d"


@dataclass(frozen=True, slots=True)
class Objective:
    """One promise.

    Attributes:
        slug: Its value of the label `slo`.
        target: The share of good ones, below 1.
        bad: PromQL for the rate of bad ones, with `$window`.
        all: PromQL for the rate of all, with `$window`.
    """

    slug: str
    title: str
    target: float
    bad: str
    all: str

    def error_ratio(self, window: str) -> str:
        """PromQL: the share of bad ones in `window`; nothing where there were none at all."""
        return f"({self.bad}) / (({self.all}) > 0)".replace("$window", window)


def _requests(matchers: str) -> tuple[str, str]:
    bad = f'sum(rate(kgents_api_requests_total{{{matchers},code=~"5.."}}[$window])) or vector(0)'
    # 499: the client went away before there was an answer.
    every = f'sum(rate(kgents_api_requests_total{{{matchers},code!="499"}}[$window]))'
    return bad, every


def _within(metric: str, seconds: str, matchers: str = "") -> tuple[str, str]:
    both = f'{matchers},le="{seconds}"' if matchers else f'le="{seconds}"'
    count = (
        f"sum(rate({metric}_count{{{matchers}}}[$window]))"
        if matchers
        else f"sum(rate({metric}_count[$window]))"
    )
    return f"{count} - sum(rate({metric}_bucket{{{both}}}[$window]))", count


OBJECTIVES = (
    Objective("door-availability", "Requests with events are answered, not 5xx", 0.999, *_requests(INGEST)),
    Objective(
        "door-latency",
        "Requests with events are answered within half a second",
        0.99,
        *_within("kgents_api_request_latency_seconds", "0.5", INGEST_LATENCY),
    ),
    Objective("webhooks", "Stripe's webhooks are answered, not 5xx", 0.999, *_requests(WEBHOOK)),
    Objective(
        "freshness",
        "Batches of events are counted within ten seconds of being stored",
        0.99,
        *_within("kgents_metering_accept_to_applied_seconds", "10.0"),
    ),
)


@dataclass(frozen=True, slots=True)
class Burn:
    """Both windows must burn faster than `factor` times what the budget allows."""

    long: str
    short: str
    factor: float


FAST = (Burn("1h", "5m", 14.4), Burn("6h", "30m", 6))
SLOW = (Burn("1d", "2h", 3), Burn("3d", "6h", 1))


def rules() -> dict[str, Any]:
    """The rule file: ratios per window, objectives, what is left of the budget, two alerts."""
    ratios = [
        {
            "record": f"kgents:slo_errors:ratio_rate{window}",
            "labels": {"slo": one.slug},
            "expr": one.error_ratio(window),
        }
        for one in OBJECTIVES
        for window in WINDOWS
    ]
    allowed = [
        {
            "record": "kgents:slo_allowed:ratio",
            "labels": {"slo": one.slug},
            "expr": f"vector({1 - one.target:.6g})",
        }
        for one in OBJECTIVES
    ]
    budgets = [
        {
            "record": "kgents:slo_errors:ratio_rate14d",
            "labels": {"slo": one.slug},
            "expr": one.error_ratio(BUDGET_WINDOW),
        }
        for one in OBJECTIVES
    ]
    left = {
        "record": "kgents:slo_budget_left:ratio14d",
        "expr": "1 - kgents:slo_errors:ratio_rate14d / on (slo) kgents:slo_allowed:ratio",
    }
    return {
        "groups": [
            {"name": "kgents-slo-recording", "rules": [*allowed, *ratios]},
            # Two weeks of samples are many: seldom is enough for a number that moves slowly.
            {"name": "kgents-slo-budget", "interval": "10m", "rules": [*budgets, left]},
            {"name": "kgents-slo", "rules": [_alert("Fast", FAST, "2m"), _alert("Slowly", SLOW, "15m")]},
        ]
    }


def _alert(speed: str, burns: tuple[Burn, ...], lasting: str) -> dict[str, Any]:
    is_fast = burns is FAST
    name = f"ErrorBudgetBurns{speed}"
    return {
        "alert": name,
        "expr": " or ".join(f"({_burning(burn)})" for burn in burns),
        "for": lasting,
        "labels": {"severity": "critical" if is_fast else "warning", "service": "kgents"},
        "annotations": {
            "summary": "{{ $labels.slo }}: {{ $value | humanizePercentage }} is not as promised",
            "description": (
                "At this rate two weeks' budget is gone in a day or two. Act now."
                if is_fast
                else "At this rate the budget does not last. Find out why in working hours."
            ),
            "runbook_url": runbooks.link("slo", name),
        },
    }


def _burning(burn: Burn) -> str:
    def above(window: str) -> str:
        return (
            f"kgents:slo_errors:ratio_rate{window}"
            f" > on (slo) group_left () ({burn.factor:g} * kgents:slo_allowed:ratio)"
        )

    return f"{above(burn.long)} and on (slo) {above(burn.short)}"
