"""A service that is worked on begins anew when its source changes, and only then."""

from __future__ import annotations

import fcntl
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from kgents_devstack import become, certificates, controls, held, kept
from kgents_devstack.__main__ import _write_documents
from kgents_devstack.apart import STACK_FILE, UP_DIRECTORY, run_servers
from kgents_devstack.become import DIRECTORY, FILE
from kgents_devstack.bench import run_bench
from kgents_devstack.demo import run_demo
from kgents_devstack.openmeter import __main__ as openmeter
from kgents_devstack.servers import StartError
from kgents_devstack.sources import SourceWatch, folder
from kgents_devstack.up import Reload, run_up


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package of this test's own."""
    made = tmp_path / "worked_on"
    (made / "inner").mkdir(parents=True)
    for path in (made / "__init__.py", made / "inner" / "__init__.py", made / "inner" / "schema.sql"):
        path.write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    return made


def test_every_kind_of_change_is_seen_once(package: Path) -> None:
    """Rule: a file written, added, removed, in any depth, also SQL; not what Python writes itself."""
    watch = SourceWatch("worked_on")
    assert not watch.has_changed()
    os.utime(package / "inner" / "schema.sql", ns=(1, 1))
    assert (watch.has_changed(), watch.has_changed()) == (True, False)
    (package / "new.py").write_text("")
    assert (watch.has_changed(), watch.has_changed()) == (True, False)
    (package / "new.py").unlink()
    assert (watch.has_changed(), watch.has_changed()) == (True, False)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "new.cpython-311.pyc").write_bytes(b"")
    assert not watch.has_changed()


def test_a_service_is_found_where_it_is_run_from() -> None:
    """Rule: the source that is watched is the one that is imported."""
    assert folder("kgents_api").name == "kgents_api"
    with pytest.raises(ModuleNotFoundError):
        folder("kgents_nothing")


class Service:
    """Counts its restarts; fails to start where told to."""

    name = "api"
    module = "worked_on"

    def __init__(self) -> None:
        self.restarts = 0
        self.is_broken = False
        self.is_stopped = False

    def stop(self) -> None:
        self.is_stopped = True

    def restart(self) -> None:
        self.restarts += 1
        if self.is_broken:
            raise StartError("SyntaxError in worked_on")


class OneService:
    """A stack of it."""

    def __init__(self) -> None:
        self.made = Service()

    def service(self, _: str) -> Service:
        return self.made


def test_an_edit_that_does_not_start_is_told_and_the_next_is_tried(package: Path) -> None:
    """Rule: the stack goes on, and the service comes back with the edit that mends it."""
    told = io.StringIO()
    stack = OneService()
    reload = Reload(Console(file=told), stack, "api")  # type: ignore[arg-type]
    reload.look()
    assert stack.made.restarts == 0
    stack.made.is_broken = True
    (package / "__init__.py").write_text("def")
    os.utime(package / "__init__.py", ns=(2, 2))
    reload.look()
    assert "SyntaxError" in told.getvalue()
    assert stack.made.is_stopped  # what was stopped is not begun anew before the next edit
    stack.made.is_broken = False
    os.utime(package / "__init__.py", ns=(3, 3))
    reload.look()
    reload.look()
    assert stack.made.restarts == 2
    assert "serves the new source" in told.getvalue()


def test_a_service_becomes_what_the_servers_wrote(tmp_path: Path) -> None:
    """Rule: `service NAME` waits for the servers, then is that process, with that environment alone."""
    command = [sys.executable, "-c", "import os; print(sorted(os.environ), os.environ['TOLD'])"]
    written = {"api": {"command": command, "environment": {"TOLD": "yes"}}}
    (tmp_path / FILE).write_text(json.dumps(written))
    with kept.alone(tmp_path):
        _become_and_see(tmp_path)


def _become_and_see(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "kgents_devstack", "service", "api", "--directory", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "'TOLD'" in ran.stdout
    assert "HOME" not in ran.stdout
    unknown = subprocess.run(
        [sys.executable, "-m", "kgents_devstack", "service", "apy", "--directory", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (unknown.returncode, "known: api" in unknown.stderr) == (2, True)


def test_becoming_a_service_costs_no_imports_of_its_own() -> None:
    """Rule: an edit is served in three seconds; the service's own imports are most of them."""
    asked = "import sys, kgents_devstack.__main__, kgents_devstack.become; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    heavy = {"pydantic", "nats", "httpx", "psycopg", "rich", "structlog", "opentelemetry", "starlette"}
    assert heavy & set(ran.stdout.split()) == set()


def test_servers_that_were_killed_make_no_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: what they left to read names ports that nobody has any more: it waits for the next ones."""
    monkeypatch.setattr(become, "WAIT_SECONDS", 0.0)
    (tmp_path / FILE).write_text("{}")
    assert become.become("api", tmp_path) == 1
    assert "no servers" in capsys.readouterr().err


def test_controls_say_where_no_servers_run(tmp_path: Path) -> None:
    """Rule: a clear error, and what to start."""
    with pytest.raises(StartError, match=f"up --directory {tmp_path}"):
        controls.running(tmp_path)


def test_a_killed_stack_is_told_at_once_and_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: what a killed stack left behind is not taken for it: said, and what runs is found."""
    monkeypatch.chdir(tmp_path)
    told = {"api": "http://127.0.0.1:1", "key": "", "openmeter": "", "pids": {"redis": -1}, "operator": {}}
    for place in (DIRECTORY, UP_DIRECTORY):
        place.mkdir(parents=True)
        (place / STACK_FILE).write_text(json.dumps(told))
    with pytest.raises(StartError, match="apart any more: its process was killed"):
        controls.running()
    with kept.alone(UP_DIRECTORY):
        running = controls.running()
        assert running.directory == UP_DIRECTORY.absolute()
    with pytest.raises(StartError, match="up any more"):
        controls.smoke(running)  # it was killed in between
    (UP_DIRECTORY / STACK_FILE).unlink()
    with kept.alone(UP_DIRECTORY), pytest.raises(StartError, match="not up yet"):
        controls.running()


def test_who_asks_whether_a_stack_runs_keeps_none_from_its_directory(tmp_path: Path) -> None:
    """Rule: a command that looks at the lock for a moment is not taken for another stack."""
    (tmp_path / held.FILE).touch()
    with (tmp_path / held.FILE).open("rb") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        threading.Timer(0.1, fcntl.flock, (asking, fcntl.LOCK_UN)).start()
        with kept.alone(tmp_path):
            assert held.is_held(tmp_path)


def test_a_second_stack_takes_nothing_from_the_one_that_runs(tmp_path: Path) -> None:
    """Rule: `servers` in a directory where they run is refused, and what the first told stays to be read."""
    for name in (FILE, STACK_FILE):
        (tmp_path / name).write_text("{}")
    with kept.alone(tmp_path):
        assert run_servers(tmp_path) == 1
    assert all((tmp_path / name).exists() for name in (FILE, STACK_FILE))


@pytest.mark.parametrize("place", ["a file", "below a file", "no disk", "an unreadable lock"])
def test_a_directory_that_cannot_be_is_told_in_a_line(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: whatever a directory refuses, each command says in one line which it is, and ends with 1."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "locked" / held.FILE).mkdir(parents=True)
    directory = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "stack",
        "no disk": Path("/proc/kgents"),  # root may write everywhere else
        "an unreadable lock": tmp_path / "locked",
    }[place]
    for command in (
        lambda: run_up(directory),
        lambda: run_up(directory, fresh=True),
        lambda: run_servers(directory),
        lambda: run_demo(directory=directory),
    ):
        assert command() == 1
        last = capsys.readouterr().out.splitlines()[-1]
        assert str(directory) in last or str(directory.parent) in last
    assert (tmp_path / "file").read_text() == "mine"
    if place != "no disk":  # there, nothing is there yet
        with pytest.raises(StartError, match=str(tmp_path)):
            controls.running(directory)
        assert become.become("api", directory) == 1
        assert capsys.readouterr().err.startswith(str(tmp_path))


def test_a_file_that_cannot_be_is_told_in_a_line_by_what_runs_alone_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: of the benchmarks' figures, the stand-in's journal, certificates and documents as well."""
    monkeypatch.chdir(tmp_path)
    Path(".bench").touch()
    below = ".bench/below"
    assert run_bench(["door"]) == 1
    assert openmeter.main(["--journal", below]) == 2
    monkeypatch.setattr(sys, "argv", ["certificates", below])
    assert certificates.main() == 1
    assert _write_documents() == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4, said
    assert all(".bench" in line for line in said[:3])
    assert "in the project's folder" in said[3]
