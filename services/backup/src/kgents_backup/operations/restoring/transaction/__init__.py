"""A stream brought back as a transaction: whatever interrupts it, the same command goes on or takes it back.

JetStream cannot rename a stream, so it is the stream *as it was* that gets another name: it is fenced,
archived to its end, copied within the server, and only then deleted (`closing`); the restored one is filled
behind a fence under the real name, read back, and opened (`replacing`). At no moment is the only copy gone,
and until it is deleted the stream as it was can be opened again at once (`undoing`).
"""

from kgents_backup.operations.restoring.transaction.means import Means, Wanted
from kgents_backup.operations.restoring.transaction.restoration import Restoration

__all__ = ["Means", "Restoration", "Wanted"]
