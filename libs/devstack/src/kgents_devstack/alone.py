"""`python -m kgents_devstack.alone MODULE [ARGUMENT …]`: a service, or its command, as its image runs it.

Here everything is installed side by side, in an image one service's own. nats-py and structlog import aiohttp
and rich wherever these are found: a quarter of a service's start, for what its image has not.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

# What a module's image lacks, of that which a library imports only where it is there.
LACKS = {
    "kgents_api": ("aiohttp", "rich"),
    "kgents_metering": ("aiohttp", "rich"),
    "kgents_billing": ("aiohttp", "rich"),
    "kgents_backup": ("aiohttp",),
}


def command(module: str, arguments: Sequence[str] = ()) -> list[str]:
    """What runs a service's module alone."""
    return [sys.executable, "-m", "kgents_devstack.alone", module, *arguments]


def main() -> None:
    """Become the module that the first argument names."""
    if len(sys.argv) == 1:
        sys.exit("usage: python -m kgents_devstack.alone MODULE [ARGUMENT ...]")
    del sys.argv[0]
    module = sys.argv[0]
    for name in LACKS.get(module, ()):
        sys.modules[name] = None  # type: ignore[assignment]  # to import it raises ModuleNotFoundError
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
