"""A stack for one benchmark, in a directory that goes with it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kgents_devstack.stack import Stack, StackOptions


@contextmanager
def running(**options: Any) -> Iterator[Stack]:
    """A started stack."""
    directory = Path(tempfile.mkdtemp(prefix="kgents-bench-"))
    stack = Stack(directory, StackOptions(**options))
    try:
        yield stack.start()
    finally:
        stack.stop()
        shutil.rmtree(directory, ignore_errors=True)
