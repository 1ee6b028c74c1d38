"""The two streams and their consumers, and how a server comes to have them; no service declares its own.

One owner applies them: `python -m kgents_common.streams plan`, then `apply`.
"""

from kgents_common.streams.jetstream_api import JetStreamApiError, NotPermittedError, request, server_version
from kgents_common.streams.provisioning import (
    Change,
    RefusedChangeError,
    apply,
    ensure,
    plan,
    recreate_consumer,
)
from kgents_common.streams.specification import (
    AGENTESE,
    BILLING,
    CONSUMERS,
    EVENTS,
    METERING,
    METERING_BILLING_FACTS,
    RESTORE_MARK,
    STREAMS,
    ConsumerSpec,
    StreamSpec,
    for_rate,
    scaled,
    stream_config,
)

__all__ = [
    "AGENTESE",
    "BILLING",
    "CONSUMERS",
    "EVENTS",
    "METERING",
    "METERING_BILLING_FACTS",
    "RESTORE_MARK",
    "STREAMS",
    "Change",
    "ConsumerSpec",
    "JetStreamApiError",
    "NotPermittedError",
    "RefusedChangeError",
    "StreamSpec",
    "apply",
    "ensure",
    "for_rate",
    "plan",
    "recreate_consumer",
    "request",
    "scaled",
    "server_version",
    "stream_config",
]
