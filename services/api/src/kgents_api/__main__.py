"""`python -m kgents_api`: the service, and its operator's commands."""

from __future__ import annotations

import sys

from kgents_api.settings import ApiSettings
from kgents_common import service


def main() -> int:
    """Serve where no command is given (or `serve`, `--check`) or `agents` is; else run the command."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["agents"]:
        from kgents_api import agents
        from kgents_api.settings import AgentsSettings

        return service.run("agents", AgentsSettings, agents.run)
    if arguments and arguments[0] not in ("serve", "--check"):
        from kgents_api.handlers.commands import run_command  # a service has no need of it

        return run_command(arguments)
    from kgents_api.app import run

    return service.run("api", ApiSettings, run)


if __name__ == "__main__":
    sys.exit(main())
