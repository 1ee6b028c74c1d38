"""The program `kgents-backup`: its commands, and what their ends mean to a shell."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Sequence

from kgents_backup.app import Backup, run_service
from kgents_backup.handlers.command.copying import run_archive, run_daily, run_prune, run_snapshot, run_upload
from kgents_backup.handlers.command.databases import run_dump, run_load, run_redeliver
from kgents_backup.handlers.command.disaster import add_disaster_commands
from kgents_backup.handlers.command.looking import run_drill, run_list, run_verify
from kgents_backup.handlers.command.restoring import run_discard, run_restore
from kgents_backup.handlers.command.standing import run_status, run_unlock
from kgents_backup.handlers.command.surroundings import Arguments, complain
from kgents_backup.handlers.progress import for_terminal
from kgents_backup.settings import BackupSettings
from kgents_backup.sinks.store.sealing import new_key
from kgents_common import service
from kgents_common.errors import ConfigurationError, KgentsError
from kgents_common.telemetry import configure_logs

# More are refused by JetStream, when everything is restored and only the stream's own configuration is left.
MOST_REPLICAS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. 0: done; 1: it failed or found damage; 2: it must not start like this."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["run"]:
        return service.run("backup", BackupSettings, run_service)
    parsed = _parser().parse_args(given)
    try:
        if parsed.command == "key":
            print(new_key())
            return 0
        settings = BackupSettings.from_environment()
        configure_logs(service="backup", instance=settings.instance, level=parsed.log_level, to=sys.stderr)
        return asyncio.run(_dispatch(parsed, settings))
    except ConfigurationError as error:
        complain(error)
        return 2
    except KgentsError as error:
        complain(error)
        return 1
    except KeyboardInterrupt:
        return 130


async def _dispatch(arguments: Arguments, settings: BackupSettings) -> int:
    if not settings.directory.is_dir():  # new, or mistyped: what follows may be that nothing is stored
        print(f"note: KGENTS_BACKUP_DIRECTORY: there is no directory {settings.directory}", file=sys.stderr)
    backup = Backup(settings, progress=for_terminal())
    try:
        code: int = await arguments.run(backup, arguments)
        return code
    finally:
        await backup.client.stop()


def _into(text: str) -> str:
    """A server's URL, or a name that a stream may have (docs.nats.io, "Naming")."""
    if "://" in text or re.fullmatch(r"[^\s.*>/\\]+", text):
        return text
    raise argparse.ArgumentTypeError("a stream's name holds no blank, '.', '*', '>', '/' or '\\'")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kgents-backup", description="The streams come back, to any moment."
    )
    parser.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, text: str, *, stream: bool = True, store: bool = False) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text)
        if stream:
            found.add_argument("--stream", help="one stream instead of all")
        if store:
            found.add_argument("--store", choices=("local", "offsite"), default="local")
        return found

    def both(found: argparse.ArgumentParser) -> argparse.ArgumentParser:
        found.add_argument(
            "--store",
            choices=("all", "local", "offsite"),
            default="all",
            help="default: whatever there is, so that one makes up for what the other lacks",
        )
        return found

    command(
        "run",
        "the service: archive for ever, the daily run, health and metrics (--check: settings)",
        stream=False,
    )
    archive_ = command("archive", "archive continuously")
    archive_.add_argument("--once", action="store_true", help="only what the stream holds now")
    archive_.set_defaults(run=run_archive)
    command("snapshot", "take a full copy now, and upload it").set_defaults(run=run_snapshot)
    command("daily", "the daily run, now", stream=False).set_defaults(run=run_daily)
    list_ = command("list", "what is stored", store=True)
    list_.add_argument("--json", action="store_true")
    list_.set_defaults(run=run_list)
    command("verify", "read everything stored and name what is damaged", store=True).set_defaults(
        run=run_verify
    )
    restore_ = both(command("restore", "bring the streams back"))
    restore_.add_argument(
        "--to", metavar="TIME|SEQ", help="the last message not after TIME, or SEQ; default: the end"
    )
    restore_.add_argument(
        "--into", type=_into, metavar="NAME|URL", help="another stream name, or another server"
    )
    restore_.add_argument("--line", help="a history other than the one being written at that time (see list)")
    restore_.add_argument(
        "--replicas",
        type=int,
        choices=range(1, MOST_REPLICAS + 1),
        metavar="N",
        help="instead of the backed up stream's",
    )
    restore_.add_argument("--replace", action="store_true", help="replace a stream that is there")
    restore_.add_argument(
        "--system", action="store_true", help="streams and databases, to one moment; services stopped"
    )
    restore_.add_argument("--undo", action="store_true", help="take an interrupted restore back")
    restore_.add_argument("--fall-back", action="store_true", help="avoid damaged files by older ones")
    restore_.add_argument("--dry-run", action="store_true", help="only the plan")
    restore_.set_defaults(run=run_restore)
    redeliver_ = both(command("redeliver", "have the streams delivered again from where a dump stood"))
    redeliver_.add_argument("dump", nargs="?", help="its name (see list); default: the newest")
    redeliver_.add_argument("--whole", action="store_true", help="from the first message")
    redeliver_.set_defaults(run=run_redeliver)
    command("status", "would a restore work now?", stream=False).set_defaults(run=run_status)
    unlock_ = command("unlock", "who holds the locks; take one from the dead", stream=False)
    unlock_.add_argument("lock", nargs="?", help="e.g. run, archive-AGENTESE")
    unlock_.add_argument("--force", action="store_true", help="although its holder may live")
    unlock_.set_defaults(run=run_unlock)
    discard = command("discard", "delete what was kept of streams as they were before a restore")
    discard.add_argument("--dry-run", action="store_true")
    discard.set_defaults(run=run_discard)
    drill = command("drill", "restore into a scratch server and compare with the live stream", store=True)
    drill.set_defaults(run=run_drill)
    prune_ = command("prune", "delete what retention lets go")
    prune_.add_argument("--dry-run", action="store_true")
    prune_.set_defaults(run=run_prune)
    command("upload", "copy what is missing off-site", stream=False).set_defaults(run=run_upload)
    command("dump", "dump the databases now", stream=False).set_defaults(run=run_dump)
    load = both(command("load", "put a dump of the databases back", stream=False))
    load.add_argument("dump", nargs="?", help="its name (see list); default: the newest")
    load.add_argument("--replace", action="store_true", help="remove the rows that are there")
    load.set_defaults(run=run_load)
    command("key", "make a key for KGENTS_BACKUP_KEY_FILE", stream=False)
    add_disaster_commands(command("dr", "the second region", stream=True))
    return parser
