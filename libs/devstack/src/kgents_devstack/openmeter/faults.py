"""The faults to switch on while the stand-in runs, and which of them a request meets; it answers nothing.

Each switch fires with a probability, for the next so many calls, or always; together they are drawn in one
fixed order from one seeded generator: the same requests in the same order meet the same faults. Short forms:
`true` is always, a whole number is the next so many calls, a fraction is a probability (1.0 is always);
for `hang_seconds` a number is how long, for `payload_too_large` a whole number is how many events are taken.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

Scope = Literal["ingest", "reads"]
_Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Count = Annotated[int, msgspec.Meta(ge=0)]
_Status = Annotated[int, msgspec.Meta(ge=400, le=599)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Switch(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """When a fault fires: neither given, always; both given, the next `count` times chance says so."""

    probability: _Probability | None = None
    count: _Count | None = None
    on: Literal["ingest", "reads", "all"] = "ingest"


class TooManyRequests(Switch):
    """429 with Retry-After, which is in whole seconds (RFC 9110)."""

    retry_after_seconds: _Count = 1


class ErrorBefore(Switch):
    """An error before anything is ingested."""

    status: _Status = 503


class ErrorAfterPartial(Switch):
    """The first part of the batch is ingested, then an error: OpenMeter produces events one by one."""

    status: _Status = 500
    fraction: _Probability = 0.5


class ErrorAfter(Switch):
    """Everything is ingested, then an error, or the connection is cut without an answer."""

    status: _Status = 500
    close: bool = False


class RejectOne(Switch):
    """400 naming an event, nothing ingested.

    Attributes:
        id: The event with this id.
        marker: Events whose `data` contains this text. With neither: those with `data.poison == true`.
    """

    id: str | None = None
    marker: str | None = None


class Hang(Switch):
    """No answer for a while; then the request goes on, even when nobody waits for it any longer.

    Attributes:
        stored: Whether events are stored before the wait, after it, or never (then the connection is cut).
    """

    seconds: _Seconds
    stored: Literal["before", "after", "never"] = "after"


class PayloadTooLarge(Switch):
    """413 for more events than this in one request."""

    above_events: _Count


class FailRate(Switch):
    """A mix of what may be tried again: 429, 5xx before, 500 after a part of the batch, a wait and 504."""

    probability: _Probability | None = 0.5
    retry_after_seconds: _Count = 1
    hang_seconds: _Seconds = 0.2


class FaultSet(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The switches; what is absent is off."""

    seed: int | None = None
    fail_rate: FailRate | None = None
    connection_reset: Switch | None = None
    hang_seconds: Hang | None = None
    unauthorized: Switch | None = None
    forbidden: Switch | None = None
    not_found: Switch | None = None
    too_many_requests: TooManyRequests | None = None
    payload_too_large: PayloadTooLarge | None = None
    error_before: ErrorBefore | None = None
    reject_one: RejectOne | None = None
    error_after_partial: ErrorAfterPartial | None = None
    error_after: ErrorAfter | None = None
    drop_after_204: Switch | None = None


# Ended by what fires first; the wait alone lets the request go on to what fires after it.
_ORDER = tuple(name for name in FaultSet.__struct_fields__ if name not in ("seed", "hang_seconds"))
_AT_READS = frozenset(
    {
        *("fail_rate", "connection_reset", "hang_seconds", "unauthorized", "forbidden", "not_found"),
        *("too_many_requests", "error_before"),
    }
)
# These look at the events before they fire.
_LOOKING = frozenset({"payload_too_large", "reject_one"})


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that fires, by name, with its switch."""

    name: str
    switch: Switch


@dataclass(frozen=True, slots=True)
class Draw:
    """What a request meets.

    Attributes:
        fault: What ends it, if anything does.
        looking: Those that fire only if its events are so; they come before `fault` when it is a later one.
    """

    hang: Hang | None = None
    fault: Fault | None = None
    looking: tuple[Fault, ...] = ()


def parse(document: object) -> FaultSet:
    """The switches of a JSON document, short forms included.

    Raises:
        ValueError: Naming the switch that is none.
    """
    if not isinstance(document, dict):
        raise ValueError("faults must be an object")
    full = {
        name: value if name == "seed" else _full(name, value)
        for name, value in document.items()
        if value is not None and value is not False
    }
    try:
        return msgspec.convert(full, FaultSet)
    except msgspec.ValidationError as error:
        raise ValueError(f"faults: {error}") from None


class Faults:
    """The switches that are on, and how often each has fired."""

    def __init__(self) -> None:
        self.fired: Counter[str] = Counter()
        self.set(FaultSet())

    @property
    def switches(self) -> FaultSet:
        """As they are now: counts have gone down by what fired."""
        return self._switches

    def set(self, switches: FaultSet) -> None:
        """Replace all switches and start the generator anew; what fired so far stays counted."""
        self._switches = switches
        self._roll = random.Random(switches.seed)
        self._is_quiet = switches == FaultSet(seed=switches.seed)

    def draw(self, scope: Scope) -> Draw:
        """What the next request meets."""
        if self._is_quiet:
            return Draw()
        hang = self._switches.hang_seconds
        if hang is not None and not self._fires("hang_seconds", hang, scope):
            hang = None
        looking: list[Fault] = []
        for name in _ORDER:
            switch: Switch | None = getattr(self._switches, name)
            if switch is None:
                continue
            if name in _LOOKING:
                if scope == "ingest":
                    looking.append(Fault(name, switch))
            elif self._fires(name, switch, scope):
                fault = self._mixed(switch) if isinstance(switch, FailRate) else Fault(name, switch)
                return Draw(hang, fault, tuple(looking))
        return Draw(hang, None, tuple(looking))

    def confirm(self, fault: Fault) -> bool:
        """Whether a fault that looks at events, and found one, fires now."""
        return self._fires(fault.name, fault.switch, "ingest")

    def _fires(self, name: str, switch: Switch, scope: Scope) -> bool:
        if switch.on not in (scope, "all") or (scope == "reads" and name not in _AT_READS):
            return False
        if switch.count == 0:
            return False
        if switch.probability is not None and self._roll.random() >= switch.probability:
            return False
        if switch.count is not None:
            switch.count -= 1
        self.fired[name] += 1
        return True

    def _mixed(self, switch: FailRate) -> Fault:
        kind = self._roll.randrange(4)
        if kind == 0:
            return Fault("too_many_requests", TooManyRequests(retry_after_seconds=switch.retry_after_seconds))
        if kind == 1:
            return Fault("error_before", ErrorBefore(status=self._roll.choice((500, 502, 503))))
        if kind == 2:
            return Fault("error_after_partial", ErrorAfterPartial(fraction=self._roll.random()))
        return Fault("hang_short", Hang(seconds=switch.hang_seconds))


def _full(name: str, value: object) -> Mapping[str, Any] | object:
    if isinstance(value, dict):
        return value
    if name == "hang_seconds" and isinstance(value, (int, float)) and value is not True:
        return {"seconds": value}
    if name == "payload_too_large" and isinstance(value, int) and value is not True:
        return {"above_events": value}
    if value is True:
        return {}
    if isinstance(value, int):
        return {"count": value}
    if isinstance(value, float):
        return {"probability": value}
    return value
