"""Agents that connect to NATS themselves: let in with the credentials of the door, cut off when these end.

While no process answers, nobody new is let in and nobody is cut off.
"""

from kgents_api.handlers.agents.admitting import Responder
from kgents_api.handlers.agents.cutting import Cutter
from kgents_api.handlers.agents.metrics import AgentMetrics

__all__ = ["AgentMetrics", "Cutter", "Responder"]
