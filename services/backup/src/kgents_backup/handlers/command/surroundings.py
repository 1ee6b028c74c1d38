"""What every command is given: its arguments, and the parts it runs."""

from __future__ import annotations

import argparse
import sys

from kgents_backup.app import Backup
from kgents_backup.handlers.progress import amount
from kgents_common.errors import ConfigurationError, KgentsError

Arguments = argparse.Namespace


def database_of(backup: Backup) -> str:
    if backup.settings.database_url is None:
        raise ConfigurationError("there is no database to use", hint="set DATABASE_URL")
    return backup.settings.database_url.get_secret_value()


def streams_of(backup: Backup, arguments: Arguments) -> tuple[str, ...]:
    return (arguments.stream,) if arguments.stream else backup.settings.streams


def cell(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return amount(float(str(value)), "bytes") if key == "bytes" else str(value)


def complain(error: KgentsError, *, about: str = "") -> None:
    """Say what is wrong, and the next step."""
    where = f" {about}:" if about else ""
    print(f"error:{where} {error}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
