"""Whether a stack runs in a directory: it holds a lock there, which ends with its process however that ends.

It imports nothing but the standard library: `service` asks it at each edit.
"""

from __future__ import annotations

import fcntl
from pathlib import Path

FILE = "in-use"


def is_held(directory: Path) -> bool:
    """Whether the process that runs a stack in this directory lives.

    Raises:
        OSError: The directory is none, or its lock may not be read.
    """
    try:
        with (directory / FILE).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
