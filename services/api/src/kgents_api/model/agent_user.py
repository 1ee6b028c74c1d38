"""What an agent that connects to NATS itself may do there: publish for its own tenants, hear its own acks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kgents_api.model.caller import Caller
from kgents_common.access.users import agent_inbox

SCOPE = "events:write"


@dataclass(frozen=True, slots=True)
class AgentUser:
    """A NATS user in the agents' account.

    Attributes:
        name: The id of the credentials; connections are found by it when they are revoked.
        expires_at: When the connection ends by itself; None for never.
    """

    name: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    expires_at: datetime | None = None


def agent_user(caller: Caller, *, expires_at: datetime | None = None) -> AgentUser:
    """The user of a caller that may send events."""
    return AgentUser(
        caller.credential,
        (f"agentese.{caller.tenant}.>",),
        (f"{agent_inbox(caller.tenant)}.>",),
        expires_at,
    )
