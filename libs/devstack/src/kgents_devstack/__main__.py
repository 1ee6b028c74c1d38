"""`python -m kgents_devstack`: `up` and `dashboard` keep a stack, `demo` runs the job, `bench` measures."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import NoReturn


def main() -> int:
    """Run one command; 130 after Ctrl-C, with everything it started stopped."""
    parser = argparse.ArgumentParser(prog="kgents-devstack", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    up = commands.add_parser("up", help="keep the stack running and show what flows")
    dashboard = commands.add_parser(
        "dashboard", help="the same, with a little traffic, and its page opened in a browser"
    )
    for command in (up, dashboard):
        command.add_argument("--fresh", action="store_true", help="forget what an earlier run left")
        command.add_argument(
            "--directory", type=Path, help="keep files here instead of .kgents/up, from one run to the next"
        )
    demo = commands.add_parser("demo", help="run the main job and compare all numbers")
    demo.add_argument("--seed", type=int, default=1)
    demo.add_argument("--directory", type=Path, help="keep files here instead of a temporary directory")
    bench = commands.add_parser("bench", help="measure against bare floors")
    bench.add_argument("only", nargs="*", help="names of benchmarks; all but soak where none is")
    commands.add_parser("documents", help="write the documents that are made from code")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _unwind)
    try:
        if arguments.command in ("up", "dashboard"):
            from kgents_devstack.up import run_up

            opens_page = arguments.command == "dashboard"
            return run_up(arguments.directory, fresh=arguments.fresh, opens_page=opens_page)
        if arguments.command == "demo":
            from kgents_devstack.demo import run_demo

            return run_demo(seed=arguments.seed, directory=arguments.directory)
        if arguments.command == "documents":
            from kgents_devstack.documents import documents

            for name, text in documents().items():
                Path(name).write_text(text)
            return 0
        from kgents_devstack.bench import run_bench

        return run_bench(arguments.only)
    except KeyboardInterrupt:
        return 130


def _unwind(_: int, __: object) -> NoReturn:
    """Whatever was started is stopped on the way out; a second Ctrl-C must not cut that short."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
