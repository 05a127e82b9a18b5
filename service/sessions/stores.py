"""The store that the settings name."""

from __future__ import annotations

from service.sessions.session import Store


def open_store(url: str) -> Store:
    """Connect to a store when it is first used. Raises ValueError for what is no store, or is not installed."""
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError(f"session_store: redis://…, rediss://… or unix://… is expected, got {url.split('://')[0]!r}")
    try:
        from service.sessions.redis_store import RedisStore
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise ValueError("session_store needs the package redis: pip install 'serpentine[redis]'") from None
    return RedisStore(url)
