"""The error tree, split by what the caller must do; it holds no error of one service's own domain.

KgentsError
├── TransientError        try again later: the neighbour is slow, full, away or restarting
│   └── NotDurableError   a publish that JetStream did not acknowledge in time (safe to repeat)
├── PermanentError        set it aside: trying again cannot help
│   └── EnvelopeError     not a CloudEvent we accept; carries one violation for each wrong field
└── ConfigurationError    refuse to start
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class KgentsError(Exception):
    """The root of the tree.

    Args:
        message: What happened, for a log or a terminal.
        hint: The operator's next step, where there is one.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class TransientError(KgentsError):
    """Trying the same thing again later may succeed."""


class NotDurableError(TransientError):
    """JetStream did not acknowledge a message in time; repeating it under the same identity is safe.

    Args:
        may_be_stored: It was sent and nothing was heard; False where it was refused or never left.
    """

    def __init__(self, message: str, *, hint: str | None = None, may_be_stored: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.may_be_stored = may_be_stored


class PermanentError(KgentsError):
    """Trying again cannot help: set the thing aside, whole, with the reason."""


class ConfigurationError(KgentsError):
    """The process must not start like this."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field: where it is (`[3].subject`; empty for the whole body) and which rule it breaks."""

    field: str
    rule: str


class EnvelopeError(PermanentError):
    """A body or message that is not a CloudEvent this system accepts."""

    def __init__(self, violations: Sequence[Violation], *, status: int = 400) -> None:
        super().__init__("; ".join(f"{v.field or 'body'}: {v.rule}" for v in violations))
        self.violations = tuple(violations)
        self.status = status
