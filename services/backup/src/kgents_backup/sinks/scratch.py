"""A nats-server to restore into and throw away: a given one, or one started here; it holds no live stream.

One that was started here can be stopped, and its files of a stream taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from kgents_backup.sources.verbatim import VerbatimClient, connect, connected
from kgents_common.errors import ConfigurationError, TransientError
from kgents_common.streams import request

START_SECONDS = 60.0
_PREFIX, _OWNER, _CONFIGURATION = "drill-", "owner", "drill.conf"

_log = structlog.get_logger()


@asynccontextmanager
async def scratch_server(url: str | None, directory: Path | None = None) -> AsyncIterator[VerbatimClient]:
    """A client of a scratch server.

    Args:
        url: A server that is kept for drills (a sidecar): its streams are deleted, before and after.
        directory: Where a server started here keeps its files, while it lives.

    Raises:
        ConfigurationError: No URL, and no `nats-server` program beside this Python or on the path.
        TransientError: The server does not come up.
    """
    if url is not None:
        async with connected({"servers": url, "name": "backup-drill"}) as client:
            await _empty(client)
            try:
                yield client
            finally:
                await _empty(client)
        return
    async with own_server(directory) as own:
        yield own.client


@dataclass(frozen=True, slots=True)
class OwnServer:
    """A scratch server that was started here."""

    client: VerbatimClient
    _folder: Path
    _running: AsyncExitStack

    async def stop(self) -> None:
        """End the server; what it wrote stays until the context ends."""
        await self._running.aclose()

    def files_of(self, stream: str) -> Path:
        """Where it keeps a stream."""
        return self._folder / "store" / "jetstream" / "$G" / "streams" / stream


@asynccontextmanager
async def own_server(directory: Path | None = None) -> AsyncIterator[OwnServer]:
    """A scratch server started here, whose files go with it.

    Raises:
        ConfigurationError: There is no `nats-server` program beside this Python or on the path.
        TransientError: The server does not come up.
    """
    program = find_program()
    folder = await asyncio.to_thread(_new_folder, directory)
    try:
        with _claimed(folder):
            async with AsyncExitStack() as running:
                client = await running.enter_async_context(_started(program, folder))
                yield OwnServer(client, folder, running)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _new_folder(directory: Path | None) -> Path:
    """A folder of our own, where what the dead left is gone."""
    if directory is not None:
        directory = directory.absolute()
        _sweep(directory)
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=directory))


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """While the block runs, and this process lives, the folder is somebody's."""
    claim = folder / f"{_OWNER}.new"
    with claim.open("wb") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        claim.rename(folder / _OWNER)  # whoever sees it finds it taken
        yield


def _sweep(directory: Path) -> None:
    """End the servers and remove the files that processes left which were killed."""
    for folder in directory.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), (folder / _OWNER).open("rb") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _end_server_of(folder)
            shutil.rmtree(folder, ignore_errors=True)
            _log.info("scratch.swept", folder=folder.name)


def _end_server_of(folder: Path) -> None:
    """End whoever was started with its configuration: a killed owner may have noted no number of it."""
    argument = str(folder / _CONFIGURATION).encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if argument in (process / "cmdline").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


async def program_version() -> str:
    """The version of the `nats-server` program, e.g. `2.15.1`; empty where there is none.

    Raises:
        OSError: It cannot be run.
    """
    try:
        program = find_program()
    except ConfigurationError:
        return ""
    process = await asyncio.create_subprocess_exec(program, "--version", stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    return said.decode(errors="replace").strip().rpartition("v")[2]


def find_program() -> str:
    """The path of `nats-server`.

    Raises:
        ConfigurationError: There is none.
    """
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise ConfigurationError(
            "no scratch server to restore into",
            hint="set KGENTS_DRILL_NATS to one kept for drills, or put nats-server on the path",
        )
    return found


@asynccontextmanager
async def _started(program: str, folder: Path) -> AsyncIterator[VerbatimClient]:
    ports = folder / "ports"
    ports.mkdir()
    configuration = folder / _CONFIGURATION
    token = secrets.token_urlsafe(24)
    # Nothing in it outlives the drill, so it need not be synced to disk.
    configuration.write_text(
        f'server_name: "drill"\nlisten: "127.0.0.1:-1"\nports_file_dir: "{ports}"\nmax_payload: 8MB\n'
        f'authorization {{ token: "{token}" }}\n'
        f'jetstream {{ store_dir: "{folder / "store"}", max_file_store: 1TB, max_memory_store: 64MB }}\n'
    )
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program, "-c", str(configuration), stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL
        )
    try:
        url = await _url(ports, process)
        client = await connect({"servers": url, "name": "backup-drill", "token": token})
        try:
            yield client
        finally:
            await client.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _url(ports: Path, process: asyncio.subprocess.Process) -> str:
    try:
        async with asyncio.timeout(START_SECONDS):
            while process.returncode is None:
                found = await asyncio.to_thread(_read_ports, ports)
                if found is not None:
                    return found
                await asyncio.sleep(0.05)
    except TimeoutError:
        pass
    raise TransientError("the scratch server did not come up")


def _read_ports(ports: Path) -> str | None:
    for file in ports.glob("*.ports"):
        with contextlib.suppress(ValueError, OSError):  # being written
            return str(json.loads(file.read_text())["nats"][0])
    return None


async def _empty(client: VerbatimClient) -> None:
    answer = await request(client, "STREAM.NAMES")
    for name in answer.get("streams") or []:
        await request(client, f"STREAM.DELETE.{name}")
