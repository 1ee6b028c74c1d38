"""The door's one Redis client: its circuit, and a look every other second at whether Redis is there."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from kgents_common.errors import TransientError
from kgents_common.redis_client import make_redis
from kgents_common.resilience import CircuitBreaker, CircuitOpenError, CircuitState
from kgents_common.upkeep import Round, Upkeep

PING_SECONDS = 2.0


class SharedRedis:
    """Asks Redis and never waits long: what it holds for the door, the door can do without for a while."""

    def __init__(self, url: str, *, on_change: Callable[[CircuitState], None] = lambda _: None) -> None:
        self.client: Redis = make_redis(url)
        self.breaker = CircuitBreaker(
            "redis",
            threshold=3,
            window=6,
            rest=timedelta(milliseconds=500),
            longest_rest=timedelta(seconds=2),
            on_change=on_change,
        )
        self._upkeep = Upkeep(Round("redis", self._look, PING_SECONDS))

    async def ask(self, question: Callable[[], Awaitable[Any]]) -> Any:
        """The answer to one command or script.

        Raises:
            TransientError: Redis is away, slow or full.
        """
        try:
            async with self.breaker.guard():
                return await question()
        except (RedisError, OSError, TimeoutError) as error:
            raise TransientError(f"redis: {type(error).__name__}") from error

    async def start(self) -> None:
        """Begin to look."""
        await self._upkeep.start()

    async def stop(self) -> None:
        """Close the connections."""
        await self._upkeep.stop()
        await self.client.aclose()

    async def _look(self) -> bool:
        with contextlib.suppress(CircuitOpenError):  # noted when it opened
            await self.ask(lambda: self.client.execute_command("PING"))  # type: ignore[no-untyped-call]
        return False
