"""Facts as JSON lines on standard input, emitted each in one transaction, by the adapter that is named;
or a topic, read to its end, each fact once. Driven by tests/it/clients.rs.

    road.py emit psycopg commit      (DATABASE_URL)
    road.py consume BOOTSTRAP TOPIC
"""

import asyncio
import base64
import json
import os
import sys
from datetime import datetime

import factlib
from factlib.consumer import Positions, decode

URL = os.environ.get("DATABASE_URL", "")


class Undo(Exception):
    """Rolls a transaction back."""


def facts():
    for line in sys.stdin:
        fact = json.loads(line)
        match fact.pop("payload", None):
            case {"bytes": text}:
                fact["payload"] = base64.b64decode(text)
            case {"text": text}:
                fact["payload"] = text
            case {"json": value}:
                fact["payload"] = value
        if "created_at" in fact:
            fact["created_at"] = datetime.fromisoformat(fact["created_at"])
        yield fact


def say(said):
    print(json.dumps(said), flush=True)


def emitted(fact, wait):
    say({"id": fact.id, "lsn": fact.lsn, "wait": wait})


def refused(error):
    """What the server said, whoever has wrapped it; or a driver, of a NUL that it does not send."""
    error = getattr(error, "orig", None) or error
    while error.__cause__ is not None:
        error = error.__cause__
    sqlstate = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if sqlstate is None and "NUL" not in str(error):
        raise error
    diag = getattr(error, "diag", None)
    say({"sqlstate": sqlstate, "message": (diag and diag.message_primary) or str(error)})


ALONE = ("order", "1", "outside of a transaction")


def refuses_alone(connection):
    try:
        factlib.emit(connection, *ALONE)
    except RuntimeError:
        return
    raise AssertionError("a fact was emitted outside of a transaction")


async def refuses_alone_async(connection):
    try:
        await factlib.emit_async(connection, *ALONE)
    except RuntimeError:
        return
    raise AssertionError("a fact was emitted outside of a transaction")


def by_psycopg(commit):
    import psycopg

    # What an application has set for its own queries changes nothing here.
    from psycopg.rows import dict_row

    with psycopg.connect(URL, autocommit=True, row_factory=dict_row) as connection:
        refuses_alone(connection)
        for fact in facts():
            try:
                with connection.transaction(force_rollback=not commit):
                    done = factlib.emit(connection, **fact)
                emitted(done, factlib.wait_lsn(connection))
            except psycopg.Error as error:
                refused(error)


def by_psycopg2(commit):
    import psycopg2

    from psycopg2.extras import RealDictCursor

    connection = psycopg2.connect(URL, cursor_factory=RealDictCursor)
    connection.autocommit = True
    refuses_alone(connection)
    connection.autocommit = False
    for fact in facts():
        try:
            done = factlib.emit(connection, **fact)
            connection.commit() if commit else connection.rollback()
            emitted(done, factlib.wait_lsn(connection))
        except (psycopg2.Error, ValueError) as error:
            refused(error)
        connection.rollback()


def by_sqlalchemy(commit):
    from sqlalchemy import create_engine, exc
    from sqlalchemy.orm import Session

    engine = create_engine(URL.replace("postgres://", "postgresql+psycopg://"))
    for fact in facts():
        try:
            with Session(engine) as session:
                done = factlib.emit(session, **fact)
                session.commit() if commit else session.rollback()
                emitted(done, factlib.wait_lsn(session))
        except exc.DBAPIError as error:
            refused(error)


def by_django(commit):
    import django
    from django.conf import settings
    from django.db import DatabaseError, connection, transaction
    from django.db.backends.postgresql.psycopg_any import is_psycopg3
    from urllib.parse import urlsplit

    url = urlsplit(URL)
    database = {"ENGINE": "django.db.backends.postgresql", "NAME": url.path[1:], "USER": url.username}
    settings.configure(DATABASES={"default": {**database, "HOST": url.hostname, "PORT": url.port}})
    django.setup()
    assert is_psycopg3
    refuses_alone(connection)
    for fact in facts():
        try:
            try:
                with transaction.atomic():
                    done = factlib.emit(connection, **fact)
                    if not commit:
                        raise Undo
            except Undo:
                pass
            emitted(done, factlib.wait_lsn(connection))
        except DatabaseError as error:
            refused(error)


async def by_psycopg_async(commit):
    import psycopg

    from psycopg.rows import dict_row

    async with await psycopg.AsyncConnection.connect(URL, autocommit=True, row_factory=dict_row) as connection:
        await refuses_alone_async(connection)
        for fact in facts():
            try:
                async with connection.transaction(force_rollback=not commit):
                    done = await factlib.emit_async(connection, **fact)
                emitted(done, await factlib.wait_lsn_async(connection))
            except psycopg.Error as error:
                refused(error)


async def by_asyncpg(commit):
    import asyncpg

    connection = await asyncpg.connect(URL)
    await refuses_alone_async(connection)
    for fact in facts():
        try:
            transaction = connection.transaction()
            await transaction.start()
            try:
                done = await factlib.emit_async(connection, **fact)
            except BaseException:
                await transaction.rollback()
                raise
            await (transaction.commit() if commit else transaction.rollback())
            emitted(done, await factlib.wait_lsn_async(connection))
        except asyncpg.PostgresError as error:
            refused(error)
    await connection.close()


async def by_sqlalchemy_async(commit):
    from sqlalchemy import exc
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    engine = create_async_engine(URL.replace("postgres://", "postgresql+psycopg://"))
    for fact in facts():
        try:
            async with AsyncSession(engine) as session:
                done = await factlib.emit_async(session, **fact)
                await (session.commit() if commit else session.rollback())
                emitted(done, await factlib.wait_lsn_async(session))
        except exc.DBAPIError as error:
            refused(error)
    await engine.dispose()


def consume(bootstrap, topic):
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "road", "enable.partition.eof": True})
    open_partitions = set(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, partition, 0) for partition in open_partitions])
    positions = Positions()
    while open_partitions:
        record = consumer.poll(30)
        if record is None:
            raise TimeoutError("no record and no end within 30 s")
        if record.error():
            if record.error().code() != KafkaError._PARTITION_EOF:
                raise RuntimeError(record.error())
            open_partitions.discard(record.partition())
            continue
        place = (record.topic(), record.partition(), record.headers())
        if positions.is_repeat(*place):
            continue
        event = decode(record.value())
        said = {name: getattr(event, name) for name in event.__slots__}
        say({**said, "partition": record.partition(), "payload": base64.b64encode(event.payload).decode()})
        positions.keep(*place)
    consumer.close()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["emit", adapter, mode]:
            done = globals()[f"by_{adapter}"](mode == "commit")
            if asyncio.iscoroutine(done):
                asyncio.run(done)
        case ["consume", bootstrap, topic]:
            consume(bootstrap, topic)
