"""A stand-in for the PostgreSQL client that answers NDIF's one question: which tags does this key carry?

With it on the path of the API alone, NDIF's own key check runs (401, 400 and 403 included) without a database.
NDIF_STACK_KEYS holds the table as JSON: key -> tags.
"""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class _Connection:
    def __init__(self, tags_of: dict[str, list[str]]) -> None:
        self._tags_of = tags_of

    async def fetch(self, query: str, key: Any) -> list[dict[str, Any]]:
        if "FROM keys" not in query:
            raise NotImplementedError(query)
        tags = self._tags_of.get(str(key))
        if tags is None:
            return []
        # The query is a left join: a key without tags has one row.
        return [{"user_id": 1, "email": "someone@example.org", "user_tag": tag} for tag in tags or [None]]


class _Pool:
    def __init__(self) -> None:
        self._connection = _Connection(json.loads(os.environ["NDIF_STACK_KEYS"]))

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[_Connection]:
        yield self._connection

    async def close(self) -> None: ...


async def create_pool(**options: Any) -> _Pool:
    """Answer in the place of asyncpg.create_pool."""
    del options
    return _Pool()
