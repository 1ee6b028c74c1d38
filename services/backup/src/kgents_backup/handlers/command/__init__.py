"""The operator's commands: arguments in, answers out; what they do is in `operations`."""

from kgents_backup.handlers.command.program import main

__all__ = ["main"]
