"""Publishing to JetStream: pipelined, with an end to every call, and a spool for what it cannot take now.

`Publisher` is what services use; `AgentPublisher` is for agents' own Python. `SpoolingPublisher` puts a
`Spool` behind a `Publisher`; `stored_ids` tells what a stream already holds.
"""

from kgents_common.publisher.acknowledgement import Ack, AlreadyThereError
from kgents_common.publisher.agent import AgentPublisher, Event
from kgents_common.publisher.message_id import MIN_SECRET_BYTES, MessageIds
from kgents_common.publisher.pipeline import (
    EXPECTED_LAST_SUBJECT_SEQUENCE,
    MESSAGE_ID,
    Message,
    Publisher,
)
from kgents_common.publisher.spool import Spool, Spooled, SpoolFullError
from kgents_common.publisher.spooling import PublishesAll, SpoolingPublisher
from kgents_common.publisher.stored import CLOCK_SKEW, SURELY_REMEMBERED, stored_ids

__all__ = [
    "CLOCK_SKEW",
    "EXPECTED_LAST_SUBJECT_SEQUENCE",
    "MESSAGE_ID",
    "MIN_SECRET_BYTES",
    "SURELY_REMEMBERED",
    "Ack",
    "AgentPublisher",
    "AlreadyThereError",
    "Event",
    "Message",
    "MessageIds",
    "Publisher",
    "PublishesAll",
    "Spool",
    "SpoolFullError",
    "Spooled",
    "SpoolingPublisher",
    "stored_ids",
]
