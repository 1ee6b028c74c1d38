"""What can be wrong with a backup, for an operator to act on; it extends the one error tree.

PermanentError
├── CorruptError        a stored file is not what was written; names the file
├── RefusedError        the command would destroy something, and was not told that it may
├── ClockError          this machine's clock is not the server's
└── UnrecoverableError  no snapshot and no segments lead to what was asked for
TransientError
├── StoreError          the store is away, full or slow
├── LockedError         another run holds the lock
├── RestoringError      the stream is being restored, or its restore was interrupted
└── ProtocolError       the server ended a snapshot or a restore with an error
"""

from __future__ import annotations

from kgents_common.errors import PermanentError, TransientError


class CorruptError(PermanentError):
    """A stored file is damaged, missing or not the one that its place says.

    Attributes:
        key: The file, as the store names it.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(
            f"{key}: {reason}",
            hint="restore with --fall-back to use the newest backup before it, or --store the other copy",
        )
        self.key = key


class RefusedError(PermanentError):
    """Something would be destroyed and the command was not told that it may."""


class UnrecoverableError(PermanentError):
    """The stored snapshots and segments do not lead to the wanted moment."""


class ClockError(PermanentError):
    """The clock differs from the server's: what is named or deleted by it would be wrong."""


class StoreError(TransientError):
    """The store did not take or give a file."""


class LockedError(TransientError):
    """Another process holds the lock, or took it over."""


class RestoringError(TransientError):
    """The stream is being restored, or was left closed by an interrupted restore: it must be left alone."""


class ProtocolError(TransientError):
    """The server ended a snapshot or a restore with an error, or stopped answering."""
