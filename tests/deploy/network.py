"""What NetworkPolicies let through, computed as the API's reference says; it knows nothing of any plugin."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .rendered import Object, is_selected

# Some address inside the cluster's own networks: what a block of addresses sees of a pod.
POD_ADDRESS = "10.244.1.7"


@dataclass(frozen=True, slots=True)
class End:
    """One end of a connection: a pod, or an address outside the cluster (then without a namespace)."""

    name: str
    namespace: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = POD_ADDRESS
    ports: Mapping[str, int] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)


def is_allowed(
    policies: Sequence[Object], source: End, target: End, port: int, protocol: str = "TCP"
) -> bool:
    """Whether the source may open a connection: its egress and the target's ingress both let it."""
    return _passes(policies, "Egress", source, target, port, protocol, target) and _passes(
        policies, "Ingress", target, source, port, protocol, target
    )


def _passes(
    policies: Sequence[Object], direction: str, own: End, other: End, port: int, protocol: str, target: End
) -> bool:
    """A pod that no policy of a direction selects is open in it; else one rule must let it pass."""
    if own.namespace is None:
        return True
    rules: list[Mapping[str, Any]] = []
    is_isolated = False
    for policy in policies:
        spec = policy["spec"]
        # Without policyTypes a policy is of Ingress, and of Egress where it has such rules.
        types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
        if (
            policy["metadata"]["namespace"] == own.namespace
            and direction in types
            and is_selected(spec["podSelector"], own.labels)
        ):
            is_isolated = True
            rules += spec.get(direction.lower(), ())
    key = "from" if direction == "Ingress" else "to"
    return not is_isolated or any(
        _peer(rule.get(key), other, own) and _port(rule.get("ports"), port, protocol, target)
        for rule in rules
    )


def _peer(peers: Sequence[Mapping[str, Any]] | None, other: End, own: End) -> bool:
    """Without peers, or with an empty list of them, a rule takes anybody."""
    return not peers or any(_is_peer(peer, other, own) for peer in peers)


def _is_peer(peer: Mapping[str, Any], other: End, own: End) -> bool:
    if "ipBlock" in peer:
        address, block = ipaddress.ip_address(other.address), peer["ipBlock"]
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(excepted) for excepted in block.get("except", ())
        )
    if other.namespace is None:
        return False
    if "namespaceSelector" in peer:
        # Kubernetes itself gives each namespace its name as a label.
        labels = {**other.namespace_labels, "kubernetes.io/metadata.name": other.namespace}
        if not is_selected(peer["namespaceSelector"], labels):
            return False
    elif other.namespace != own.namespace:
        return False
    return is_selected(peer.get("podSelector", {}), other.labels)


def _port(ports: Sequence[Mapping[str, Any]] | None, port: int, protocol: str, target: End) -> bool:
    """Without ports a rule takes all of them; a name is the target's."""
    for wanted in ports or ({},):
        if wanted.get("protocol", protocol if not ports else "TCP") != protocol:
            continue
        number = wanted.get("port", port)
        first = target.ports.get(number) if isinstance(number, str) else int(number)
        if first is not None and first <= port <= int(wanted.get("endPort", first)):
            return True
    return False
