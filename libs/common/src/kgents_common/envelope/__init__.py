"""The CloudEvents 1.0 envelope: reading it strictly, stamping it, and its one identity; no transport.

Sources of the rules: CloudEvents 1.0.2 section 3 (attributes), its JSON format section 3 and its HTTP
binding; RFC 3339 for `time` (`rfc3339`); `scalars` for what a number and a text are; OpenMeter's event schema
for `data` (an object or null), as every event is delivered there.
"""

from kgents_common.envelope.attributes import (
    AGENT,
    ATTRIBUTE_NAME_PATTERN,
    BATCH,
    EARLIEST,
    MAX_AGENT_CHARACTERS,
    MAX_FUTURE,
    MAX_ID_CHARACTERS,
    MAX_SCHEMA_CHARACTERS,
    MAX_SOURCE_CHARACTERS,
    RESERVED_TYPES,
    STRUCTURED,
    TEXT_PATTERN,
    TIME_ORIGIN,
    TIME_ORIGIN_RECEIVED,
)
from kgents_common.envelope.checking import Tenants
from kgents_common.envelope.event import Envelope
from kgents_common.envelope.identity import identity
from kgents_common.envelope.reading import read, read_batch, read_binary, read_each

__all__ = [
    "AGENT",
    "ATTRIBUTE_NAME_PATTERN",
    "BATCH",
    "EARLIEST",
    "MAX_AGENT_CHARACTERS",
    "MAX_FUTURE",
    "MAX_ID_CHARACTERS",
    "MAX_SCHEMA_CHARACTERS",
    "MAX_SOURCE_CHARACTERS",
    "RESERVED_TYPES",
    "STRUCTURED",
    "TEXT_PATTERN",
    "TIME_ORIGIN",
    "TIME_ORIGIN_RECEIVED",
    "Envelope",
    "Tenants",
    "identity",
    "read",
    "read_batch",
    "read_binary",
    "read_each",
]
