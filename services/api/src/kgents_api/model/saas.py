"""How the system's workers do, judged by their heartbeats alone; it asks nobody and knows no clock.

A worker is one of the services that publish heartbeats, with any number of instances. Times are seconds of a
monotonic clock, by arrival: what a heartbeat says of its own time is not believed.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from kgents_common.errors import PermanentError

MISSED_INTERVALS = 3
# Instances come and go under new names; a silent one is forgotten after so many limits.
FORGOTTEN_AFTER = 4
MAX_INSTANCES = 256


class State(StrEnum):
    """How a part of the system does; `unknown` where that cannot be told yet, or from here."""

    OK = "ok"
    DEGRADED = "degraded"
    DOWN = "down"
    UNKNOWN = "unknown"


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """A part's state, and why it is not `ok`."""

    status: State
    detail: str = ""


class _Check(msgspec.Struct):
    status: str = ""


class _Document(msgspec.Struct):
    """What of a heartbeat counts here (`kgents_common.health.Health.document`)."""

    status: str
    checks: dict[str, _Check] = msgspec.field(default_factory=dict)


_DOCUMENT = msgspec.json.Decoder(_Document)
_STATES = {state.value: state for state in State}
_WORST = (State.DOWN, State.DEGRADED, State.UNKNOWN, State.OK)


@dataclass(slots=True)
class _Instance:
    state: State
    checks: dict[str, State]
    heard_at: float


@dataclass(slots=True)
class Heartbeats:
    """What was heard of the expected workers.

    Attributes:
        expected: The services that should be running.
        limit_seconds: Not heard for so long, an instance is silent.
        listening_since: Since when heartbeats could have been heard without a break; None while they cannot.
    """

    expected: Sequence[str]
    limit_seconds: float
    listening_since: float | None = None
    _heard: dict[str, OrderedDict[str, _Instance]] = field(default_factory=dict)

    @classmethod
    def every(cls, interval_seconds: float, expected: Sequence[str]) -> Heartbeats:
        """For workers that beat at this interval."""
        return cls(tuple(expected), MISSED_INTERVALS * interval_seconds)

    def note_link(self, is_up: bool, now: float) -> None:
        """Whether heartbeats can be heard at all."""
        if not is_up:
            self.listening_since = None
        elif self.listening_since is None:
            self.listening_since = now

    def note(self, service: str, instance: str, body: bytes, now: float) -> None:
        """A heartbeat that came in.

        Raises:
            PermanentError: It is no heartbeat.
        """
        if service not in self.expected:
            return
        try:
            document = _DOCUMENT.decode(body)
        except (ValueError, RecursionError):  # msgspec's and Unicode's errors are ValueErrors
            raise PermanentError("not a heartbeat") from None
        checks = {name: _STATES.get(check.status, State.UNKNOWN) for name, check in document.checks.items()}
        instances = self._heard.setdefault(service, OrderedDict())
        instances[instance] = _Instance(_STATES.get(document.status, State.UNKNOWN), checks, now)
        instances.move_to_end(instance)
        while len(instances) > MAX_INSTANCES or self._is_forgotten(next(iter(instances.values())), now):
            instances.popitem(last=False)

    def silent_seconds(self, service: str, now: float) -> float:
        """How long nothing was heard of a worker, though it could have been; NaN while nothing can be."""
        if self.listening_since is None:
            return math.nan
        heard = self._heard.get(service)
        if heard is None:
            return now - self.listening_since
        last = max((instance.heard_at for instance in heard.values()), default=self.listening_since)
        return max(0.0, now - max(last, self.listening_since))

    def worker(self, service: str, now: float) -> Finding:
        """How a worker does: as well as its instances that can be heard, if there is one."""
        heard = self._audible(service, now)
        if not heard:
            return self._silence(service, now)
        states = {instance.state for instance in heard}
        if states == {State.OK}:
            return Finding(State.OK)
        if states == {State.DOWN}:
            return Finding(State.DOWN, "says that it cannot work")
        poor = sum(instance.state is not State.OK for instance in heard)
        return Finding(State.DEGRADED, f"{poor} of {len(heard)} instances are not well")

    def neighbour(self, name: str, service: str, now: float) -> Finding:
        """How a neighbour does by what the worker that calls it says; the worst of what is said."""
        heard = self._audible(service, now)
        if not heard:
            return Finding(State.UNKNOWN, f"only {service} can tell, and it is not heard")
        said = [instance.checks[name] for instance in heard if name in instance.checks]
        if not said:
            return Finding(State.UNKNOWN, f"{service} says nothing of it")
        worst = next(state for state in _WORST if state in said)
        return Finding(worst, "" if worst is State.OK else f"as {service} finds it")

    def _audible(self, service: str, now: float) -> list[_Instance]:
        heard = self._heard.get(service)
        if heard is None:
            return []
        return [instance for instance in heard.values() if now - instance.heard_at <= self.limit_seconds]

    def _silence(self, service: str, now: float) -> Finding:
        if self.listening_since is None:
            return Finding(State.UNKNOWN, "cannot be heard without NATS")
        if now - self.listening_since <= self.limit_seconds:
            return Finding(State.UNKNOWN, "not heard yet")
        heard = self._heard.get(service)
        if not heard:
            return Finding(State.DOWN, "never heard")
        last = max(instance.heard_at for instance in heard.values())
        return Finding(State.DOWN, f"silent for {now - last:.0f} s")

    def _is_forgotten(self, instance: _Instance, now: float) -> bool:
        return now - instance.heard_at > FORGOTTEN_AFTER * self.limit_seconds


def overall(needed: Sequence[State], others: Sequence[State]) -> State:
    """The system: down without what taking events needs, else as good as its worst part, `unknown` being
    no better than `degraded`."""
    if State.DOWN in needed:
        return State.DOWN
    return State.OK if {*needed, *others} <= {State.OK} else State.DEGRADED
