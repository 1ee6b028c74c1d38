"""The second region: mirrors of both streams, their promotion, a fence for the old primary, and the way back.

A mirror has its origin's sequences, times and headers, and takes no writes. Promoted, it is the stream: the
same subjects, the next sequence. What the primary acknowledged and the mirror never got is looked for in the
archive, and later in the old primary itself.
"""

from kgents_backup.operations.disaster.accounting import Account, account
from kgents_backup.operations.disaster.failing_back import fail_back
from kgents_backup.operations.disaster.fencing import fence, fence_when_back
from kgents_backup.operations.disaster.promoting import Promotion, promote
from kgents_backup.operations.disaster.regions import MirrorStatus, Region, mirror, status, watch_mirrors

__all__ = [
    "Account",
    "MirrorStatus",
    "Promotion",
    "Region",
    "account",
    "fail_back",
    "fence",
    "fence_when_back",
    "mirror",
    "promote",
    "status",
    "watch_mirrors",
]
