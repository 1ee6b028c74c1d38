"""Facts of something that changed hands: told to both, and to neither whose the other is; it stores none."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from kgents_billing.model import facts as kinds
from kgents_billing.model.facts import Fact, without_nothing
from kgents_billing.model.ownership import Kind

_TYPES = {Kind.SUBSCRIPTION: kinds.SUBSCRIPTION_MOVED, Kind.CUSTOMER: kinds.CUSTOMER_MOVED}
_NAMES = {Kind.SUBSCRIPTION: "sub", Kind.CUSTOMER: "cus"}


def moved_facts(
    kind: Kind, name: str, before: str, after: str, *, second: int, source: str, data: Mapping[str, Any]
) -> list[Fact]:
    """What its owner until now and its owner from now on are told; nothing where they are one."""
    if before == after:
        return []
    # The key may not say to one tenant who the other is.
    pair = hashlib.blake2b(f"{before}\x00{after}".encode(), digest_size=6).hexdigest()
    return [
        Fact(
            type=_TYPES[kind],
            key=f"{_NAMES[kind]}.moved:{name}:{second}:{pair}:{direction}",
            second=second,
            source=source,
            data=without_nothing({kind.value: name, "direction": direction, **data}),
            tenant=tenant,
        )
        for direction, tenant in (("out", before), ("in", after))
    ]
