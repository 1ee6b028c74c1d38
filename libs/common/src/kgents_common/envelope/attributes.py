"""The names and limits of an event's attributes; nothing is read here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"

# The door stamps the time it received an event that came without one, and says so: such a time is not part
# of what the producer said, so the same event sent again is a duplicate and not a conflict.
TIME_ORIGIN = "timeorigin"
TIME_ORIGIN_RECEIVED = "received"

# An extension attribute: which agent the event is from. The door vouches for it where a session was shown.
AGENT = "agent"

# Types of events that the system makes itself, from facts; nobody else may send one.
RESERVED_TYPES = "billing."

MAX_ID_CHARACTERS = 512
MAX_SOURCE_CHARACTERS = 1024
MAX_AGENT_CHARACTERS = 128
MAX_SCHEMA_CHARACTERS = 2048
# What a text attribute is made of (no control characters), and an attribute's name.
TEXT_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]+$"
ATTRIBUTE_NAME_PATTERN = r"^[a-z0-9_]{1,64}$"
MAX_FUTURE = timedelta(minutes=5)
# Older than the Unix epoch or beyond what a date type holds is a broken clock, not a late event.
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
