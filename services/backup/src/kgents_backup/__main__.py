"""`python -m kgents_backup <command>`, or `kgents-backup <command>`; the service is the command `run`."""

from __future__ import annotations

import sys

from kgents_backup.handlers.command import main

if __name__ == "__main__":
    sys.exit(main())
