"""The demo's last part: both streams are backed up, restored into a scratch server and compared."""

from __future__ import annotations

from rich.console import Console

from kgents_devstack.stack import Stack


def run(console: Console, stack: Stack) -> bool:
    """Snapshot and drill, as an operator would; whether the backup gave back what is live."""
    console.print("a drill: back up both streams, restore them into a scratch server, compare every message")
    for command in ("snapshot", "drill"):
        made = stack.command("backup", command)
        console.print(made.stdout.strip(), highlight=False, markup=False)
        if made.returncode != 0:
            console.print(made.stderr.strip(), style="red", highlight=False, markup=False)
            return False
    console.print()
    return True
