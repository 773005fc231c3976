"""Facts that are committed with your rows, or not at all: a thin call of the SQL function ``factlib.emit``.

``emit(connection, "order", "42", "paid", {"by": "card"})`` in the transaction that changes the rows.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

__all__ = ["Emitted", "emit", "emit_async", "wait_lsn", "wait_lsn_async"]

Json = Mapping[str, Any] | list[Any] | tuple[Any, ...] | int | float | bool
Payload = bytes | bytearray | memoryview | str | Json | None


class Emitted(NamedTuple):
    """What the server says of an emitted fact."""

    id: str
    #: Where its message lies in the log: for tracing. To wait for publication take ``wait_lsn`` after the commit.
    lsn: str


def emit(
    connection: Any,
    aggregate_type: str,
    aggregate_id: str,
    event_type: str,
    payload: Payload = None,
    *,
    metadata: Mapping[str, str | int | float | bool] | None = None,
    prefix: str | None = None,
    id: str | None = None,
    created_at: datetime | None = None,
    traceparent: str | None = None,
    tracestate: str | None = None,
) -> Emitted:
    """Emits a fact in the connection's open transaction.

    ``connection`` is psycopg's or psycopg2's, SQLAlchemy's ``Connection`` or ``Session``, or Django's inside of
    ``transaction.atomic``. Bytes and text are the payload as they are; anything else becomes JSON, as ``jsonb`` writes it.
    Without ``prefix`` the server's setting ``factlib.prefix`` is taken, without ``id`` a UUIDv7 is made, without
    ``created_at`` it is now. ``traceparent`` and ``tracestate`` (W3C) hold for the rest of the transaction.

    Errors are the driver's own. ``RuntimeError`` is raised where no transaction could be open.
    """
    fact = _Fact(
        aggregate_type, aggregate_id, event_type, payload, metadata, prefix, id, created_at, traceparent, tracestate
    )
    if hasattr(connection, "get_bind") or hasattr(connection, "exec_driver_sql"):
        return Emitted(*connection.execute(*fact.sqlalchemy()).one())
    if _autocommits(connection):
        raise RuntimeError("emit needs the transaction that changes your rows, and none is open: begin one")
    with _cursor(connection) as cursor:
        cursor.execute(*fact.positional())
        return Emitted(*cursor.fetchone())


async def emit_async(
    connection: Any,
    aggregate_type: str,
    aggregate_id: str,
    event_type: str,
    payload: Payload = None,
    *,
    metadata: Mapping[str, str | int | float | bool] | None = None,
    prefix: str | None = None,
    id: str | None = None,
    created_at: datetime | None = None,
    traceparent: str | None = None,
    tracestate: str | None = None,
) -> Emitted:
    """The same for psycopg's ``AsyncConnection``, asyncpg's connection, SQLAlchemy's ``AsyncConnection``, ``AsyncSession``.

    Where the task is cancelled, roll the transaction back: whether the fact is in it is unknown.
    """
    fact = _Fact(
        aggregate_type, aggregate_id, event_type, payload, metadata, prefix, id, created_at, traceparent, tracestate
    )
    if hasattr(connection, "get_bind") or hasattr(connection, "exec_driver_sql"):
        return Emitted(*(await connection.execute(*fact.sqlalchemy())).one())
    if _autocommits(connection):
        raise RuntimeError("emit needs the transaction that changes your rows, and none is open: begin one")
    if hasattr(connection, "fetchrow"):
        return Emitted(*await connection.fetchrow(*fact.numbered()))
    async with _async_cursor(connection) as cursor:
        await cursor.execute(*fact.positional())
        return Emitted(*await cursor.fetchone())


_WAIT_LSN = "SELECT CAST(pg_current_wal_insert_lsn() AS text)"


def wait_lsn(connection: Any) -> str:
    """The position up to which to wait, with ``owlpost wait --lsn`` or ``/wait``, for what is committed by now.

    Call it after the commit: before it, the position does not cover the transaction. Where the driver begins
    transactions by itself, this statement begins one: end it before you wait.
    """
    if hasattr(connection, "get_bind") or hasattr(connection, "exec_driver_sql"):
        return str(connection.execute(_text(_WAIT_LSN)).scalar_one())
    with _cursor(connection) as cursor:
        cursor.execute(_WAIT_LSN)
        return str(cursor.fetchone()[0])


async def wait_lsn_async(connection: Any) -> str:
    """The same for asynchronous connections."""
    if hasattr(connection, "get_bind") or hasattr(connection, "exec_driver_sql"):
        return str((await connection.execute(_text(_WAIT_LSN))).scalar_one())
    if hasattr(connection, "fetchrow"):
        return str(await connection.fetchval(_WAIT_LSN))
    async with _async_cursor(connection) as cursor:
        await cursor.execute(_WAIT_LSN)
        return str((await cursor.fetchone())[0])


class _Fact:
    """The statement and its values, in each of the ways in which drivers take them."""

    def __init__(
        self,
        aggregate_type: str,
        aggregate_id: str,
        event_type: str,
        payload: Payload,
        metadata: Mapping[str, str | int | float | bool] | None,
        prefix: str | None,
        id: str | None,
        created_at: datetime | None,
        traceparent: str | None,
        tracestate: str | None,
    ) -> None:
        if created_at is not None and created_at.utcoffset() is None:
            raise ValueError("created_at has no time zone")
        content: bytes | str | None
        if isinstance(payload, bytes | bytearray | memoryview):
            content, kind = bytes(payload), "bytea"
        elif payload is None or isinstance(payload, str):
            content, kind = payload, "text"
        else:
            content, kind = json.dumps(payload, allow_nan=False), "jsonb"
        pairs = json.dumps({} if metadata is None else metadata, allow_nan=False)
        time = None if created_at is None else created_at.isoformat()
        self.values: list[Any] = [aggregate_type, aggregate_id, event_type, content, pairs, prefix, id, time]
        first = "CAST({} AS text)"
        if traceparent is not None:
            # Arguments are evaluated before the function runs, and it reads these settings.
            first = (
                "CASE WHEN set_config('factlib.traceparent', {}, true) || set_config('factlib.tracestate', {}, true) "
                "IS NOT NULL THEN CAST({} AS text) END"
            )
            self.values = [traceparent, tracestate or "", *self.values]
        # JSON and times go as text: connections may have codecs of their own for JSON, which would encode it once more,
        # and asyncpg takes the first of all times for -infinity.
        payload_cast = "CAST(CAST({} AS text) AS jsonb)" if kind == "jsonb" else f"CAST({{}} AS {kind})"
        self.statement = (
            f"SELECT id, CAST(lsn AS text) FROM factlib.emit({first}, CAST({{}} AS text), CAST({{}} AS text), "
            f"{payload_cast}, CAST(CAST({{}} AS text) AS jsonb), CAST({{}} AS text), CAST({{}} AS text), "
            "CAST(CAST({} AS text) AS timestamptz))"
        )

    def positional(self) -> tuple[str, list[Any]]:
        return self.statement.format(*["%s"] * len(self.values)), self.values

    def numbered(self) -> tuple[Any, ...]:
        return (self.statement.format(*[f"${n}" for n, _ in enumerate(self.values, 1)]), *self.values)

    def sqlalchemy(self) -> tuple[Any, dict[str, Any]]:
        values = {f"p{n}": value for n, value in enumerate(self.values)}
        return _text(self.statement.format(*[f":{name}" for name in values])), values


def _cursor(connection: Any) -> Any:
    """A cursor that takes %s and gives tuples, whatever the connection's own are like."""
    if hasattr(connection, "row_factory"):  # psycopg
        from psycopg import Cursor
        from psycopg.rows import tuple_row

        return Cursor(connection, row_factory=tuple_row)
    if hasattr(connection, "cursor_factory"):  # psycopg2
        from psycopg2.extensions import cursor  # type: ignore[import-untyped]

        return connection.cursor(cursor_factory=cursor)
    return connection.cursor()


def _async_cursor(connection: Any) -> Any:
    from psycopg import AsyncCursor
    from psycopg.rows import tuple_row

    return AsyncCursor(connection, row_factory=tuple_row)


def _text(statement: str) -> Any:
    from sqlalchemy import text

    return text(statement)


def _autocommits(connection: Any) -> bool:
    """Whether a statement would be a transaction of its own."""
    if hasattr(connection, "in_atomic_block"):  # Django
        return not connection.in_atomic_block and connection.get_autocommit()
    if hasattr(connection, "fetchrow"):  # asyncpg; its pool takes another connection for each statement
        return not (hasattr(connection, "is_in_transaction") and connection.is_in_transaction())
    # psycopg and psycopg2; 0 is IDLE.
    return bool(getattr(connection, "autocommit", False)) and connection.info.transaction_status == 0
