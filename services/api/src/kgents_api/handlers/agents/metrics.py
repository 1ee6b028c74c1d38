"""The figures of agents' connections to NATS."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class AgentMetrics:
    """What happens to agents' connections."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.asked = Counter(
            "kgents_agents_connects_total",
            "Agents that wanted to connect to NATS, by what was answered",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("admitted", "refused", "paused", "unavailable"):
            self.asked.labels(outcome)
        self.cut = Counter(
            "kgents_agents_cut_total", "Connections ended as their credentials had", registry=registry
        )
        self.paused = Counter(
            "kgents_agents_paused_total",
            "Times that a tenant's agents were kept out of NATS for a while, as they sent too fast",
            registry=registry,
        )
        self.connected = Gauge(
            "kgents_agents_connected", "Agents connected to NATS at the last look", registry=registry
        )
