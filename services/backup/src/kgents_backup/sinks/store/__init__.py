"""Where backups are kept: a directory or an object store behind one port, sealed, locked by lease."""

from kgents_backup.sinks.store.directory import DirectoryStore
from kgents_backup.sinks.store.lease import Lease, Lock, locks, unlock
from kgents_backup.sinks.store.objects import ObjectStore, open_object_store
from kgents_backup.sinks.store.sealing import Sealer
from kgents_backup.sinks.store.united import UnitedVault
from kgents_backup.sinks.store.vault import Vault

__all__ = [
    "DirectoryStore",
    "Lease",
    "Lock",
    "ObjectStore",
    "Sealer",
    "UnitedVault",
    "Vault",
    "locks",
    "open_object_store",
    "unlock",
]
