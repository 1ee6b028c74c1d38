"""`python -m kgents_billing`: the service, and its operator's commands."""

from __future__ import annotations

import sys

from kgents_billing.settings import BillingSettings
from kgents_common import service


def main() -> int:
    """Serve where no command is given (or `serve`, `--check`); else run the command."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] not in ("serve", "--check"):
        from kgents_billing.handlers.commands import run_command  # a service has no need of it

        return run_command(arguments)
    from kgents_billing.app import run

    return service.run("billing", BillingSettings, run)


if __name__ == "__main__":
    sys.exit(main())
