"""Stripe's snapshot events, and the books of everything that happened on one account; it sends nothing."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Mapping
from typing import Any

from kgents_devstack.stripe.objects import API_VERSION, Object, new_id


def snapshot(
    kind: str,
    thing: Mapping[str, Any],
    *,
    second: int,
    previous: Mapping[str, Any] | None = None,
    name: str | None = None,
    version: str = API_VERSION,
    **more: Any,
) -> bytes:
    """A snapshot event's body.

    Args:
        previous: The changed fields' old values, where Stripe says them.
        more: Fields of the event itself.
    """
    data: Object = {"object": copy.deepcopy(dict(thing))}
    if previous is not None:
        data["previous_attributes"] = copy.deepcopy(dict(previous))
    return json.dumps(
        {
            "id": name or new_id("evt"),
            "object": "event",
            "api_version": version,
            "created": second,
            "type": kind,
            "livemode": False,
            "pending_webhooks": 1,
            "request": {"id": None, "idempotency_key": None},
            "data": data,
            **more,
        }
    ).encode()


class Books:
    """What Stripe knows: every event, and every object as it is now. Safe to share between threads."""

    def __init__(self) -> None:
        self._bodies: list[bytes] = []
        self._events: list[Object] = []
        self._objects: dict[str, Object] = {}
        self._lock = threading.Lock()

    def tell(self, body: bytes) -> None:
        """Something happened: the event is listed from now on, and its object is as it says."""
        event = json.loads(body)
        thing = event["data"]["object"]
        with self._lock:
            self._bodies.append(body)
            self._events.append(event)
            if event["type"] == "customer.deleted":
                thing = {"id": thing["id"], "object": "customer", "deleted": True}
            if thing.get("id"):
                self._objects[f"{thing['object']}/{thing['id']}"] = thing

    def put(self, thing: Mapping[str, Any]) -> None:
        """An object is so, and no event says it."""
        with self._lock:
            self._objects[f"{thing['object']}/{thing['id']}"] = copy.deepcopy(dict(thing))

    def bodies(self, start: int = 0) -> list[bytes]:
        """Events as webhooks carry them, in the order they happened, from the `start`-th on."""
        with self._lock:
            return self._bodies[start:]

    def events(self) -> list[Object]:
        """Every event, newest first; of one second, the one that was told last."""
        with self._lock:
            found = self._events[::-1]
        found.sort(key=lambda event: -int(event["created"]))
        return found

    def event(self, name: str) -> Object | None:
        """An event by its id."""
        with self._lock:
            return next((event for event in self._events if event["id"] == name), None)

    def object(self, kind: str, name: str) -> Object | None:
        """An object as it is now."""
        with self._lock:
            return self._objects.get(f"{kind}/{name}")

    def objects(self, kind: str) -> list[Object]:
        """Every object of a kind, the last one told first."""
        with self._lock:
            return [t for name, t in reversed(self._objects.items()) if name.startswith(f"{kind}/")]
