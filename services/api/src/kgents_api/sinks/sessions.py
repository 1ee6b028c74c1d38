"""Sessions in Redis: one key for each, gone when it expires. Losing Redis ends sessions and nothing else."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from kgents_api.model.sessions import Session
from kgents_api.sinks.shared_redis import SharedRedis

PREFIX = "session:"
_DECODER = msgspec.json.Decoder(Session)


class RedisSessions:
    """See `Sessions`."""

    def __init__(self, redis: SharedRedis) -> None:
        self._redis = redis

    async def keep(self, session: Session, lifetime: timedelta) -> None:
        """See `Sessions.keep`."""
        body = msgspec.json.encode(session)
        await self._redis.ask(lambda: self._redis.client.set(PREFIX + session.id, body, px=lifetime))

    async def find(self, session_id: str) -> Session | None:
        """See `Sessions.find`."""
        body = await self._redis.ask(lambda: self._redis.client.get(PREFIX + session_id))
        try:
            return None if body is None else _DECODER.decode(body)
        except msgspec.DecodeError:  # not written by us
            return None

    async def end(self, session_id: str) -> None:
        """See `Sessions.end`."""
        await self._redis.ask(lambda: self._redis.client.delete(PREFIX + session_id))
