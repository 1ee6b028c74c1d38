"""`python -m kgents_devstack`: `up` and `dashboard` keep a stack, `demo` runs the job, `bench` measures."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import NoReturn

CONTROLS = ("burst", "smoke", "break", "mend", "operate")


def main() -> int:
    """Run one command; 130 after Ctrl-C, with everything it started stopped."""
    arguments = make_parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _unwind)
    try:
        if arguments.command in ("up", "dashboard"):
            from kgents_devstack.up import run_up

            opens_page = arguments.command == "dashboard"
            return run_up(
                arguments.directory,
                fresh=arguments.fresh,
                opens_page=opens_page,
                service=getattr(arguments, "service", None),
            )
        if arguments.command == "servers":
            from kgents_devstack.apart import run_servers

            return run_servers(arguments.directory, without=arguments.without)
        if arguments.command == "service":
            from kgents_devstack.become import become

            return become(arguments.name, arguments.directory)
        if arguments.command in CONTROLS:
            return _control(arguments)
        if arguments.command == "demo":
            from kgents_devstack.demo import run_demo

            return run_demo(seed=arguments.seed, directory=arguments.directory)
        if arguments.command == "documents":
            return _write_documents()
        from kgents_devstack.bench import run_bench

        return run_bench(arguments.only)
    except KeyboardInterrupt:
        return 130


def make_parser() -> argparse.ArgumentParser:
    """Its commands and their options."""
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
    up.add_argument("--service", help="restart this service when its source changes")
    servers = commands.add_parser("servers", help="servers, stand-ins and streams; services run elsewhere")
    servers.add_argument("--without", help="run the services too, all but this one")
    service = commands.add_parser("service", help="one service beside `servers`, in this process's place")
    service.add_argument("name")
    for command in (servers, service):
        command.add_argument("--directory", type=Path, help="files of both (default: .kgents/apart)")
    _add_controls(commands)
    demo = commands.add_parser("demo", help="run the main job and compare all numbers")
    demo.add_argument("--seed", type=int, default=1)
    demo.add_argument("--directory", type=Path, help="keep files here instead of a temporary directory")
    bench = commands.add_parser("bench", help="measure against bare floors")
    bench.add_argument("only", nargs="*", help="names of benchmarks; all but soak where none is")
    commands.add_parser("documents", help="write the documents that are made from code")
    return parser


def _add_controls(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parsers = {
        name: commands.add_parser(name, help=text)
        for name, text in (
            ("burst", "send a thousand events to the stack that runs"),
            ("smoke", "whether an event sent to the stack that runs is counted"),
            ("break", "freeze a neighbour for a minute, or make it fail"),
            ("mend", "undo `break`"),
            ("operate", "an operator's command of a service, e.g. `backup drill`"),
        )
    }
    for parser in parsers.values():
        parser.add_argument(
            "--directory", type=Path, help="of the stack (default: .kgents/apart or .kgents/up, what runs)"
        )
    for name in ("break", "mend"):
        parsers[name].add_argument("neighbour", choices=("openmeter", "nats", "redis"))
    parsers["operate"].add_argument("service")
    parsers["operate"].add_argument("arguments", nargs=argparse.REMAINDER)


def _write_documents() -> int:
    from kgents_devstack.documents import documents

    for name, text in documents().items():
        try:
            Path(name).write_text(text)
        except OSError as error:
            print(f"{name}: {error.strerror}: run this in the project's folder", file=sys.stderr)
            return 1
    return 0


def _control(arguments: argparse.Namespace) -> int:
    import httpx

    from kgents_devstack import controls
    from kgents_devstack.servers import StartError

    try:
        stack = controls.running(arguments.directory)
        if arguments.command == "burst":
            print(f"{controls.burst(stack)} acknowledged")
        elif arguments.command == "smoke":
            controls.smoke(stack)
            print("an event was accepted and counted")
        elif arguments.command == "break":
            controls.break_neighbour(stack, arguments.neighbour)
        elif arguments.command == "mend":
            controls.mend_neighbour(stack, arguments.neighbour)
        else:
            controls.operate(stack, arguments.service, arguments.arguments)
    except (StartError, AssertionError) as error:
        print(error, file=sys.stderr)
        return 1
    except httpx.HTTPError as error:
        print(f"the stack does not take it: {error or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


def _unwind(_: int, __: object) -> NoReturn:
    """Whatever was started is stopped on the way out; a second Ctrl-C must not cut that short."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
