"""A lock in the store with a lease, so that two runs never mix and a dead run's lock ends by itself.

Whoever holds it renews it every third of its length. One that could not renew in time must publish nothing
more: `check` is asked right before every manifest, segment and deletion.

No wall clock decides that another is dead, neither its own nor ours: a lease whose file did not change for
its whole length while we looked is over. What the file says of its end only tells whether looking is worth
the wait. One whose process is surely dead (it ran on this machine) is over at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

import msgspec
import structlog

from kgents_backup.model.faults import LockedError, StoreError
from kgents_backup.model.keys import lock_key
from kgents_backup.model.ports import Store
from kgents_backup.sinks.store.process import Process
from kgents_common.cancelling import cancelled
from kgents_common.clock import Clock

LEASE = timedelta(seconds=30)

_log = structlog.get_logger()


class _Holder(msgspec.Struct, frozen=True):
    owner: str
    token: str
    until: datetime
    process: Process | None = None
    beat: int = 0


class Lease:
    """An asynchronous context manager: held inside.

    Args:
        name: What is locked, e.g. `run` or `archive-AGENTESE`.
        owner: Who we are, for the one who is refused.
    """

    def __init__(
        self, store: Store, name: str, *, owner: str, clock: Clock, length: timedelta = LEASE
    ) -> None:
        self._store = store
        self._key = lock_key(name)
        self._name = name
        self._owner = owner
        self._clock = clock
        self._length = length
        self._token = secrets.token_hex(8)
        self._held_until = 0.0
        self._beat = 0
        self._seen: tuple[str, float] | None = None
        self._renewing: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Raise unless the lease surely still holds.

        Raises:
            LockedError: It ran out or was taken over.
        """
        if self._clock.monotonic() >= self._held_until:
            raise LockedError(
                f"the lock {self._name} was lost",
                hint="another run may be at work; this one published nothing more",
            )

    async def acquire(self) -> None:
        """Take it; where it seems to have ended, after looking for as long as it lasts whether it did.

        Raises:
            LockedError: Somebody else holds it.
            StoreError: The store does not answer.
        """
        is_watching = False
        started = self._clock.monotonic()
        while not await self._store.create(self._key, self._content()):
            try:
                found = await self._store.get_versioned(self._key)
            except FileNotFoundError:
                raise LockedError(f"the lock {self._name} just changed hands", hint="try again") from None
            holder = _read(found.data)
            is_watched_anew = self._seen is None or self._seen[0] != found.version
            if holder is None or self._is_over(holder, found.version):
                if not await self._store.replace(self._key, self._content(), found.version):
                    raise LockedError(f"the lock {self._name} was taken at the same moment", hint="try again")
                _log.info("lease.taken_over", lock=self._name, from_owner=holder.owner if holder else "?")
                break
            left = (holder.until - self._clock.now()).total_seconds()
            if left > 0 or (is_watched_anew and is_watching):
                raise self._refused(holder, left)
            is_watching = True
            await asyncio.sleep(self._length.total_seconds() / 30)
            started = self._clock.monotonic()
        self._held_until = started + self._length.total_seconds()
        self._renewing = asyncio.create_task(self._renew(), name=f"lease.{self._name}")

    def _refused(self, holder: _Holder, left: float) -> LockedError:
        if left <= 0:
            return LockedError(
                f"the lock {self._name} is held by {holder.owner}, which renews it: a clock is wrong",
                hint="compare this machine's clock with the holder's; wait until it lets go",
            )
        return LockedError(
            f"the lock {self._name} is held by {holder.owner} for {left:.0f} s more",
            hint="wait; a run that died lets go when its lease ends"
            if left <= 2 * self._length.total_seconds()
            else "its clock is ahead of ours: wait half a minute and try again, or"
            f" `kgents-backup unlock {self._name}` if it is dead",
        )

    async def acquire_within(self, patience: timedelta) -> None:
        """Take it as soon as its holder lets go, or is known to be dead.

        Raises:
            LockedError: It is still held after so long.
            StoreError: The store does not answer.
        """
        deadline = self._clock.monotonic() + patience.total_seconds()
        while True:
            try:
                await self.acquire()
                return
            except LockedError:
                if self._clock.monotonic() >= deadline:
                    raise
            await asyncio.sleep(0.5)

    async def release(self) -> None:
        """Let go; where the store is away, the lease runs out by itself."""
        await cancelled(self._renewing)
        is_mine = self._clock.monotonic() < self._held_until
        self._held_until = 0.0
        if is_mine:
            with contextlib.suppress(StoreError, FileNotFoundError):
                found = await self._store.get_versioned(self._key)
                holder = _read(found.data)
                if holder is not None and holder.token == self._token:
                    await self._store.delete(self._key)

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.release()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._length.total_seconds() / 3)
            started = self._clock.monotonic()
            try:
                found = await self._store.get_versioned(self._key)
                holder = _read(found.data)
                if holder is None or holder.token != self._token:
                    raise FileNotFoundError
                if await self._store.replace(self._key, self._content(), found.version):
                    self._held_until = started + self._length.total_seconds()
            except FileNotFoundError:
                self._held_until = 0.0
                _log.error("lease.lost", lock=self._name)
                return
            except StoreError as error:
                _log.warning("lease.not_renewed", lock=self._name, error=str(error))

    def _is_over(self, holder: _Holder, version: str) -> bool:
        if holder.process is not None and holder.process.is_surely_dead():
            return True
        now = self._clock.monotonic()
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, now)
        return now - self._seen[1] > self._length.total_seconds()

    def _content(self) -> bytes:
        self._beat += 1  # each renewal changes the file, for those who watch it
        until = self._clock.now() + self._length
        return msgspec.json.encode(_Holder(self._owner, self._token, until, Process.own(), self._beat))


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock as an operator sees it.

    Attributes:
        is_dead: Whether its holder's process is surely gone.
    """

    name: str
    owner: str
    until: datetime
    is_dead: bool


async def locks(store: Store) -> list[Lock]:
    """Every lock that is held.

    Raises:
        StoreError: The store does not answer.
    """
    found: list[Lock] = []
    for entry in await store.list("locks/"):
        with contextlib.suppress(FileNotFoundError):
            holder = _read(await store.get(entry.key))
            name = entry.key.removeprefix("locks/").removesuffix(".json")
            if holder is not None:
                is_dead = holder.process is not None and holder.process.is_surely_dead()
                found.append(Lock(name, holder.owner, holder.until, is_dead))
    return found


async def unlock(store: Store, name: str) -> None:
    """Take a lock away from whoever holds it; it notices with its next renewal and publishes nothing more.

    Raises:
        StoreError: It may still be held.
    """
    await store.delete(lock_key(name))


def _read(data: bytes) -> _Holder | None:
    try:
        return msgspec.json.decode(data, type=_Holder)
    except msgspec.MsgspecError:
        return None
