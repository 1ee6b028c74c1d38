"""Whether a service's source has changed, its libraries' included; it restarts nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# What a package carries besides Python: migrations, meters, pages.
SUFFIXES = (".py", ".sql", ".yaml", ".html", ".css", ".js")


def folder(module: str) -> Path:
    """Where a package lies, found without importing it.

    Raises:
        ModuleNotFoundError: There is no such package.
    """
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(module)
    return Path(found.origin).parent


class SourceWatch:
    """The files of some packages, compared from one look to the next."""

    def __init__(self, *modules: str) -> None:
        self._folders = [folder(module) for module in modules]
        self._seen = self._look()

    def has_changed(self) -> bool:
        """Whether a file came, went or was written since the last look."""
        now = self._look()
        if now == self._seen:
            return False
        self._seen = now
        return True

    def _look(self) -> dict[Path, int]:
        return {
            path: path.stat().st_mtime_ns
            for top in self._folders
            for path in top.rglob("*")
            if path.suffix in SUFFIXES and path.is_file()
        }
