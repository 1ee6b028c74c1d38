"""Restoring a stream: a plan, every file of it checked, the snapshot, its tail, the numbers compared.

Nothing is destroyed before every file the restore needs was read and found good.
"""

from kgents_backup.operations.restoring.carrying_out import restore
from kgents_backup.operations.restoring.filling import tail
from kgents_backup.operations.restoring.opening import refuse_fenced_subjects, widen
from kgents_backup.operations.restoring.preparing import Prepared, prepare
from kgents_backup.operations.restoring.reporting import RestoreReport

__all__ = [
    "Prepared",
    "RestoreReport",
    "prepare",
    "refuse_fenced_subjects",
    "restore",
    "tail",
    "widen",
]
