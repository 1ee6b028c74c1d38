"""The operator's commands for dead letters, the same for every service; how one is replayed is not."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kgents_common import shown
from kgents_common.dead_letters.letter import DeadLetter
from kgents_common.dead_letters.table import DeadLetters

SHOWN_BODY_BYTES = 4096
_SHOWN = ("id", "state", "code", "detail", "stream", "seq", "stored_at", "subject", "epoch", "at")
_SETTLED = ("settled_at", "reason", "replay_seq")


def add_dead_commands(
    commands: Any,
    *,
    list_: Callable[..., Any],
    show: Callable[..., Any],
    replay: Callable[..., Any],
    discard: Callable[..., Any],
) -> argparse.ArgumentParser:
    """Add `dead` to the parser's subcommands; the parser of its `replay`, for more arguments."""
    dead = commands.add_parser("dead", help="dead letters").add_subparsers(required=True, metavar="what")
    listing = dead.add_parser("list", help="one line each")
    listing.add_argument("--state", choices=("open", "replayed", "discarded", "all"), default="open")
    listing.add_argument(
        "--all", dest="state", action="store_const", const="all", help="whatever their state"
    )
    listing.add_argument("--code", help="only this reason, e.g. invalid_event")
    listing.add_argument("--after", type=int, default=0, metavar="ID")
    listing.add_argument("--limit", type=int, default=100)
    listing.set_defaults(command=list_)
    showing = dead.add_parser("show", help="one, whole (it may hold personal data)")
    showing.add_argument("id", type=int)
    showing.set_defaults(command=show)
    again: argparse.ArgumentParser = dead.add_parser("replay", help="handle it again, as it was or mended")
    again.add_argument("id", type=int)
    again.add_argument("--body", type=Path, metavar="FILE", help="the mended event")
    again.set_defaults(command=replay)
    ending = dead.add_parser("discard", help="settle it without handling it")
    ending.add_argument("id", type=int)
    ending.add_argument("--reason", required=True)
    ending.set_defaults(command=discard)
    return again


async def list_letters(letters: DeadLetters[Any], arguments: argparse.Namespace) -> int:
    """Print one line each."""
    state = None if arguments.state == "all" else arguments.state
    found = await letters.find(state=state, code=arguments.code, after=arguments.after, limit=arguments.limit)
    for letter in found:
        _print(
            f"{letter.id:>8}  {letter.state:9}  {letter.code:18}  seq {letter.seq:<10}"
            f"  {letter.stored_at:%Y-%m-%d %H:%M:%S}  {shown.line(letter.subject)}"
            f"  {shown.line(letter.detail[:80])}"
        )
    if not found:
        _print("none")
    return 0


def print_letter(letter: DeadLetter, *beside: str) -> int:
    """Print one, whole but for the end of a long body.

    Args:
        beside: The names of columns that only this schema has.
    """
    for name in (*_SHOWN, *beside):
        _print(f"{name:10} {shown.line(getattr(letter, name))}")
    for name in _SETTLED:
        if getattr(letter, name) is not None:
            _print(f"{name:10} {shown.line(getattr(letter, name))}")
    if letter.raw_subject is not None and bytes(letter.raw_subject) != letter.subject.encode():
        _print(f"{'as sent':10} {bytes(letter.raw_subject)!r}")
    for name, value in letter.header_map().items():
        _print(f"header     {shown.line(name)}: {shown.line(value)}")
    if letter.raw_headers is not None and not letter.header_map():
        _print(f"headers    {bytes(letter.raw_headers)[:SHOWN_BODY_BYTES]!r}")
    body = bytes(letter.body)
    _print(f"body       {len(body)} bytes")
    _print(shown.body(body[:SHOWN_BODY_BYTES]))
    return 0


async def discard_letter(letters: DeadLetters[Any], arguments: argparse.Namespace) -> int:
    """Settle one without handling it."""
    await letters.settle(arguments.id, state="discarded", reason=arguments.reason)
    _print(f"dead letter {arguments.id} is discarded")
    return 0


def _print(line: str) -> None:
    print(line)  # noqa: T201 the command's answer
