-- factlib.sql: emit facts from SQL, in the transaction that makes them true.
--
--   psql -v ON_ERROR_STOP=1 -d app -f factlib.sql        (or: owlpost init --with-sql)
--
--   BEGIN;
--   UPDATE orders SET paid = true WHERE id = 42;
--   SELECT factlib.emit('order', '42', 'paid', '{"by": "card"}', prefix => 'orders');
--   COMMIT;
--
-- PostgreSQL 14 to 18; no extension. Run it again at any time, also over an older version: what is
-- there is replaced in place, grants and the guard's state stay. It needs CREATE on the database the
-- first time, and to be run by the schema's owner later. remove.sql removes it.
--
-- How it is written. The functions that do something are PL/pgSQL, in which every name is qualified, so
-- that no search_path of a caller can put another in its place. What computes is SQL with a body
-- (RETURN ...), whose names are bound here, under the search_path of the next lines, and which the
-- planner puts into the expression that calls it: it costs no call.

BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;

DO $$
DECLARE
  owner name := (SELECT nspowner::regrole FROM pg_namespace WHERE nspname = 'factlib');
BEGIN
  IF current_setting('server_version_num')::int < 140000 THEN
    RAISE EXCEPTION 'factlib needs PostgreSQL 14 or later' USING ERRCODE = 'feature_not_supported';
  ELSIF owner IS NULL THEN
    CREATE SCHEMA factlib;
    -- Later runs leave grants alone.
    GRANT USAGE ON SCHEMA factlib TO PUBLIC;
  ELSIF owner <> current_user THEN
    RAISE EXCEPTION 'schema factlib belongs to role %, and only that role may install factlib into it', owner
      USING ERRCODE = 'insufficient_privilege', HINT = format('SET ROLE %s', owner);
  END IF;
END $$;

COMMENT ON SCHEMA factlib IS 'Facts for OwlPost, emitted from SQL: see factlib.emit';

---------------------------------------------------------------------------------------------------
-- The envelope: protobuf's wire format, https://protobuf.dev/programming-guides/encoding/

CREATE OR REPLACE FUNCTION factlib.varint(n int) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
  WHEN n < 1 << 7 THEN set_byte('\x00', 0, n)
  WHEN n < 1 << 14 THEN set_byte(set_byte('\x0000', 0, n & 127 | 128), 1, n >> 7)
  WHEN n < 1 << 21 THEN
    set_byte(set_byte(set_byte('\x000000', 0, n & 127 | 128), 1, (n >> 7) & 127 | 128), 2, n >> 14)
  WHEN n < 1 << 28 THEN
    set_byte(set_byte(set_byte(set_byte('\x00000000', 0, n & 127 | 128), 1, (n >> 7) & 127 | 128),
                      2, (n >> 14) & 127 | 128), 3, n >> 21)
  ELSE
    set_byte(set_byte(set_byte(set_byte(set_byte('\x0000000000', 0, n & 127 | 128), 1, (n >> 7) & 127 | 128),
                               2, (n >> 14) & 127 | 128), 3, (n >> 21) & 127 | 128), 4, n >> 28)
END;
COMMENT ON FUNCTION factlib.varint(int) IS 'A number from 0 to 2^31 - 1 in base 128, least significant group first';

-- Times of this century have 50 to 56 bits, so eight bytes, which are computed at once.
CREATE OR REPLACE FUNCTION factlib.varint8(n bigint) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN int8send(
  (((n & 127) | 128) << 56) | ((((n >> 7) & 127) | 128) << 48) | ((((n >> 14) & 127) | 128) << 40)
  | ((((n >> 21) & 127) | 128) << 32) | ((((n >> 28) & 127) | 128) << 24) | ((((n >> 35) & 127) | 128) << 16)
  | ((((n >> 42) & 127) | 128) << 8) | (n >> 49));
COMMENT ON FUNCTION factlib.varint8 IS 'A number from 2^49 to 2^56 - 1 in base 128';

CREATE OR REPLACE FUNCTION factlib.varint(n bigint) RETURNS bytea LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  -- A negative number is its two's complement of 64 bits: ten bytes.
  bytes bytea := '';
  rest bigint := n;
BEGIN
  LOOP
    -- A shift keeps the sign; the mask takes it away.
    IF rest & ~127::bigint = 0 THEN
      RETURN bytes || set_byte('\x00', 0, rest::int);
    END IF;
    bytes := bytes || set_byte('\x00', 0, (rest & 127)::int | 128);
    rest := (rest >> 7) & 144115188075855871;
  END LOOP;
END $$;
COMMENT ON FUNCTION factlib.varint(bigint) IS 'Any number in base 128, as protobuf has an int64';

CREATE OR REPLACE FUNCTION factlib.field(tag bytea, value bytea) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN octet_length(value) > 0 THEN tag || factlib.varint(octet_length(value)) || value ELSE '' END;
COMMENT ON FUNCTION factlib.field IS 'A field of bytes or text; nothing where the value is empty or null';

CREATE OR REPLACE FUNCTION factlib.created_at(t timestamptz) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
  WHEN t >= '1990-01-01 00:00:00+00' AND t < '4000-01-01 00:00:00+00' THEN
    '\x30' || factlib.varint8((extract(epoch FROM t) * 1000000)::bigint)
  WHEN t <> '1970-01-01 00:00:00+00' THEN
    '\x30' || factlib.varint((extract(epoch FROM t) * 1000000)::bigint)
  ELSE ''
END;
COMMENT ON FUNCTION factlib.created_at IS 'Field 6: microseconds since 1970';

CREATE OR REPLACE FUNCTION factlib.map(tag bytea, entries jsonb) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT coalesce(string_agg(
      tag || factlib.varint(octet_length(pair)) || pair, ''::bytea ORDER BY key), '')
    FROM (SELECT convert_to(key, 'UTF8') AS key,
                 factlib.field('\x0a', convert_to(key, 'UTF8')) || factlib.field('\x12', convert_to(value, 'UTF8')) AS pair
            FROM jsonb_each_text(entries)) AS entry;
END;
COMMENT ON FUNCTION factlib.map IS 'A map of strings, sorted by the bytes of its keys';

CREATE OR REPLACE FUNCTION factlib.trace(traceparent text, tracestate text) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
  WHEN traceparent ~ '^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$' THEN
    factlib.field('\x42',
      factlib.field('\x0a', convert_to(substr(traceparent, 4, 32), 'UTF8'))
      || factlib.field('\x12', convert_to(substr(traceparent, 37, 16), 'UTF8'))
      || factlib.map('\x1a', CASE WHEN tracestate <> ''
           THEN jsonb_build_object('traceparent', traceparent, 'tracestate', tracestate)
           ELSE jsonb_build_object('traceparent', traceparent) END))
  ELSE ''
END;
COMMENT ON FUNCTION factlib.trace IS 'Field 8, of W3C trace context; nothing where that is malformed, as W3C says';

CREATE OR REPLACE FUNCTION factlib.envelope(
  id text, aggregate_type text, aggregate_id text, event_type text, payload bytea, created_at timestamptz,
  metadata jsonb, traceparent text, tracestate text
) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE
RETURN factlib.field('\x0a', convert_to(id, 'UTF8'))
  || factlib.field('\x12', convert_to(aggregate_type, 'UTF8'))
  || factlib.field('\x1a', convert_to(aggregate_id, 'UTF8'))
  || factlib.field('\x22', convert_to(event_type, 'UTF8'))
  || factlib.field('\x2a', payload)
  || (factlib.created_at(created_at)
      || CASE WHEN metadata <> '{}' THEN factlib.map('\x3a', metadata) ELSE '' END
      || CASE WHEN traceparent <> '' THEN factlib.trace(traceparent, tracestate) ELSE '' END);
COMMENT ON FUNCTION factlib.envelope IS 'The protobuf message OutboxEvent, fields in order, empty ones left out';

---------------------------------------------------------------------------------------------------
-- Ids: UUIDs of version 7, https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-7

CREATE OR REPLACE FUNCTION factlib.uuid_v7(t timestamptz) RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN encode(
  overlay(overlay(uuid_send(gen_random_uuid())
    PLACING substring(int8send((extract(epoch FROM t) * 1000)::bigint) FROM 3) FROM 1 FOR 6)
    PLACING '\x70' FROM 7 FOR 1), 'hex')::uuid;
COMMENT ON FUNCTION factlib.uuid_v7 IS 'A new UUID of version 7';

---------------------------------------------------------------------------------------------------
-- What is refused

CREATE OR REPLACE FUNCTION factlib.setting(name text) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(current_setting('factlib.' || name, true), '');
COMMENT ON FUNCTION factlib.setting IS 'The setting factlib.<name>; null where it is not set';

CREATE OR REPLACE FUNCTION factlib.cut(value text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN left(value, 100) || CASE WHEN length(value) > 100 THEN '…' ELSE '' END;

CREATE OR REPLACE FUNCTION factlib.is_valid(
  prefix text, aggregate_type text, aggregate_id text, event_type text, metadata jsonb, created_at timestamptz
) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce(
  prefix ~ '^[A-Za-z0-9._-]+$' AND aggregate_type ~ '^[A-Za-z0-9._-]+$'
  AND aggregate_id <> '' AND event_type <> ''
  AND length(prefix) + length(aggregate_type) < 249
  AND (metadata IS NULL OR metadata = '{}'
       OR jsonb_typeof(metadata) = 'object'
          AND NOT jsonb_path_exists(metadata, 'strict $.* ? (@.type() == "null" || @.type() == "object" || @.type() == "array")'))
  AND (created_at IS NULL OR isfinite(created_at)), false);

CREATE OR REPLACE FUNCTION factlib.refuse(
  prefix text, aggregate_type text, aggregate_id text, event_type text, metadata jsonb, created_at timestamptz
) RETURNS void LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  topic CONSTANT text := concat(prefix, '.', aggregate_type);
  wanted CONSTANT text := 'metadata must be a JSON object of strings, numbers and booleans';
  reason text;
BEGIN
  reason := CASE
    WHEN prefix IS NULL OR prefix = '' THEN 'prefix is empty: pass it, or set factlib.prefix'
    WHEN prefix !~ '^[A-Za-z0-9._-]+$' THEN
      format('prefix "%s" cannot be part of a topic''s name: only letters, digits, ''.'', ''_'' and ''-'' can', factlib.cut(prefix))
    WHEN aggregate_type !~ '^[A-Za-z0-9._-]*$' THEN
      format('aggregate_type "%s" cannot be part of a topic''s name: only letters, digits, ''.'', ''_'' and ''-'' can', factlib.cut(aggregate_type))
    WHEN coalesce(aggregate_type, '') = '' THEN 'aggregate_type is empty'
    WHEN coalesce(aggregate_id, '') = '' THEN 'aggregate_id is empty'
    WHEN coalesce(event_type, '') = '' THEN 'event_type is empty'
    WHEN length(topic) > 249 THEN
      format('topic "%s" has %s characters, and Kafka takes at most 249', factlib.cut(topic), length(topic))
    WHEN jsonb_typeof(metadata) <> 'object' THEN
      wanted || ': it is ' || factlib.kind(metadata)
    WHEN created_at IN ('infinity', '-infinity') THEN
      format('created_at is %s, which is no time', created_at)
    ELSE (
      SELECT format('%s: key "%s" is %s', wanted, factlib.cut(key), factlib.kind(value))
        FROM jsonb_each(metadata) WHERE jsonb_typeof(value) IN ('null', 'object', 'array')
        ORDER BY convert_to(key, 'UTF8') LIMIT 1)
  END;
  RAISE EXCEPTION USING MESSAGE = reason, ERRCODE = 'invalid_parameter_value';
END $$;

CREATE OR REPLACE FUNCTION factlib.kind(value jsonb) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE jsonb_typeof(value)
  WHEN 'null' THEN 'null' WHEN 'object' THEN 'an object' WHEN 'array' THEN 'an array'
  ELSE 'a ' || jsonb_typeof(value) END;

CREATE OR REPLACE FUNCTION factlib.max_record_bytes() RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(nullif(current_setting('factlib.max_record_bytes', true), '')::bigint, 1048576);

CREATE OR REPLACE FUNCTION factlib.refuse_size(bytes bigint) RETURNS void LANGUAGE plpgsql STABLE AS $$
BEGIN
  RAISE EXCEPTION 'fact of % bytes as a Kafka record, more than factlib.max_record_bytes (%)', bytes, factlib.max_record_bytes()
    USING ERRCODE = 'program_limit_exceeded';
END $$;

CREATE OR REPLACE FUNCTION factlib.refuse_role(prefix text) RETURNS void LANGUAGE plpgsql STABLE AS $$
BEGIN
  RAISE EXCEPTION 'role "%" may not emit with prefix "%"', session_user, factlib.cut(prefix)
    USING ERRCODE = 'insufficient_privilege';
END $$;

---------------------------------------------------------------------------------------------------
-- The guard: which role may emit with which prefix

CREATE TABLE IF NOT EXISTS factlib.prefix_grant (
  role name NOT NULL,
  prefix text NOT NULL,
  PRIMARY KEY (role, prefix)
);
COMMENT ON TABLE factlib.prefix_grant IS 'Who may emit with which prefix, while factlib.guard is on: the role, and its members';

-- Is it SECURITY DEFINER, the guard is on: a later run of this file finds it so, and keeps it.
DO $$
BEGIN
  IF to_regprocedure('factlib.may_emit(text)') IS NULL THEN
    CREATE FUNCTION factlib.may_emit(prefix text) RETURNS boolean LANGUAGE sql STABLE RETURN true;
  END IF;
END $$;

CREATE OR REPLACE FUNCTION factlib.guarded() RETURNS boolean LANGUAGE sql STABLE
RETURN (SELECT prosecdef FROM pg_proc WHERE oid = 'factlib.may_emit(text)'::regprocedure);
COMMENT ON FUNCTION factlib.guarded IS 'Whether factlib.guard is on';

CREATE OR REPLACE FUNCTION factlib.guard("on" boolean) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $do$
BEGIN
  IF "on" THEN
    CREATE OR REPLACE FUNCTION factlib.may_emit(prefix text) RETURNS boolean
      LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
      RETURN EXISTS (
        SELECT FROM factlib.prefix_grant AS g JOIN pg_roles AS r ON r.rolname = g.role
         WHERE g.prefix = may_emit.prefix AND pg_has_role(session_user, r.oid, 'MEMBER'));
    END $$;
    ALTER FUNCTION factlib.emit(text, text, text, bytea, jsonb, text, text, timestamptz) SECURITY DEFINER;
    ALTER FUNCTION factlib.emit_envelope(text, bytea) SECURITY DEFINER;
  ELSE
    CREATE OR REPLACE FUNCTION factlib.may_emit(prefix text) RETURNS boolean LANGUAGE sql STABLE RETURN true;
    ALTER FUNCTION factlib.emit(text, text, text, bytea, jsonb, text, text, timestamptz) SECURITY INVOKER;
    ALTER FUNCTION factlib.emit_envelope(text, bytea) SECURITY INVOKER;
  END IF;
END $do$;
COMMENT ON FUNCTION factlib.guard IS 'Turns on or off that only roles of factlib.prefix_grant may emit, by their prefixes';

---------------------------------------------------------------------------------------------------
-- Emitting

DO $$
BEGIN
  IF to_regtype('factlib.emitted') IS NULL THEN
    CREATE TYPE factlib.emitted AS (id text, lsn pg_lsn);
  END IF;
END $$;
COMMENT ON TYPE factlib.emitted IS 'What factlib.emit returns: the id of the fact, and the LSN of its message, for tracing';

CREATE OR REPLACE FUNCTION factlib.record_bytes(envelope bytea, payload bytea) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 2 * octet_length(envelope)::bigint - coalesce(octet_length(payload), 0) + 1024;

CREATE OR REPLACE FUNCTION factlib.exceeds(bytes bigint, most bigint) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN bytes > most;

CREATE OR REPLACE FUNCTION factlib.or_setting(value text, name text) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN value <> '' THEN value ELSE nullif(current_setting('factlib.' || name, true), '') END;

CREATE OR REPLACE FUNCTION factlib.or_new_id(value text) RETURNS text LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN CASE WHEN value <> '' THEN value ELSE factlib.uuid_v7(clock_timestamp())::text END;

CREATE OR REPLACE FUNCTION factlib.emit(
  aggregate_type text, aggregate_id text, event_type text, payload bytea,
  metadata jsonb DEFAULT '{}', prefix text DEFAULT NULL, id text DEFAULT NULL, created_at timestamptz DEFAULT NULL
) RETURNS factlib.emitted LANGUAGE plpgsql AS $$
DECLARE
  content pg_catalog.bytea;
  bytes pg_catalog.int8;
BEGIN
  prefix := factlib.or_setting(prefix, 'prefix');
  IF NOT factlib.is_valid(prefix, aggregate_type, aggregate_id, event_type, metadata, created_at) THEN
    PERFORM factlib.refuse(prefix, aggregate_type, aggregate_id, event_type, metadata, created_at);
  ELSIF NOT factlib.may_emit(prefix) THEN
    PERFORM factlib.refuse_role(prefix);
  END IF;
  created_at := coalesce(created_at, pg_catalog.clock_timestamp());
  id := factlib.or_new_id(id);
  content := factlib.envelope(id, aggregate_type, aggregate_id, event_type, payload, created_at, metadata,
    factlib.setting('traceparent'), factlib.setting('tracestate'));
  bytes := factlib.record_bytes(content, payload);
  IF factlib.exceeds(bytes, factlib.max_record_bytes()) THEN
    PERFORM factlib.refuse_size(bytes);
  END IF;
  RETURN ROW(id, pg_catalog.pg_logical_emit_message(true, prefix, content))::factlib.emitted;
END $$;
COMMENT ON FUNCTION factlib.emit(text, text, text, bytea, jsonb, text, text, timestamptz) IS
  'Emits a fact in this transaction. id, lsn: SELECT id, lsn FROM factlib.emit(...). Settings: factlib.prefix, factlib.traceparent, factlib.tracestate, factlib.max_record_bytes';

CREATE OR REPLACE FUNCTION factlib.emit(
  aggregate_type text, aggregate_id text, event_type text, payload text,
  metadata jsonb DEFAULT '{}', prefix text DEFAULT NULL, id text DEFAULT NULL, created_at timestamptz DEFAULT NULL
) RETURNS factlib.emitted LANGUAGE sql
RETURN factlib.emit(aggregate_type, aggregate_id, event_type, convert_to(payload, 'UTF8'), metadata, prefix, id, created_at);
COMMENT ON FUNCTION factlib.emit(text, text, text, text, jsonb, text, text, timestamptz) IS
  'Emits a fact whose payload is this text, in UTF-8';

CREATE OR REPLACE FUNCTION factlib.emit(
  aggregate_type text, aggregate_id text, event_type text, payload jsonb,
  metadata jsonb DEFAULT '{}', prefix text DEFAULT NULL, id text DEFAULT NULL, created_at timestamptz DEFAULT NULL
) RETURNS factlib.emitted LANGUAGE sql
RETURN factlib.emit(aggregate_type, aggregate_id, event_type, convert_to(payload::text, 'UTF8'), metadata, prefix, id, created_at);
COMMENT ON FUNCTION factlib.emit(text, text, text, jsonb, jsonb, text, text, timestamptz) IS
  'Emits a fact whose payload is this JSON, as its text in UTF-8';

CREATE OR REPLACE FUNCTION factlib.is_valid_prefix(prefix text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce(prefix ~ '^[A-Za-z0-9._-]+$' AND length(prefix) < 248, false);

CREATE OR REPLACE FUNCTION factlib.emit_envelope(prefix text, envelope bytea) RETURNS pg_lsn LANGUAGE plpgsql AS $$
DECLARE
  bytes CONSTANT pg_catalog.int8 := factlib.record_bytes(envelope, envelope);
BEGIN
  prefix := factlib.or_setting(prefix, 'prefix');
  IF NOT factlib.is_valid_prefix(prefix) THEN
    PERFORM factlib.refuse(prefix, 'x', 'x', 'x', '{}', NULL);
  ELSIF NOT factlib.may_emit(prefix) THEN
    PERFORM factlib.refuse_role(prefix);
  ELSIF factlib.exceeds(bytes, factlib.max_record_bytes()) THEN
    PERFORM factlib.refuse_size(bytes);
  END IF;
  RETURN pg_catalog.pg_logical_emit_message(true, prefix, envelope);
END $$;
COMMENT ON FUNCTION factlib.emit_envelope IS 'Emits an envelope that was encoded elsewhere, in this transaction; it is not looked into';

---------------------------------------------------------------------------------------------------
-- And then

CREATE OR REPLACE FUNCTION factlib.published(lsn pg_lsn, slot text DEFAULT 'factlib_slot') RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  confirmed pg_lsn := (SELECT confirmed_flush_lsn FROM pg_replication_slots
                        WHERE slot_name = slot AND database = current_database());
BEGIN
  IF confirmed IS NULL THEN
    RAISE EXCEPTION 'this database has no logical replication slot "%"', factlib.cut(slot)
      USING ERRCODE = 'undefined_object';
  END IF;
  RETURN confirmed >= lsn;
END $$;
COMMENT ON FUNCTION factlib.published IS
  'Whether everything committed before lsn is in Kafka: give it pg_current_wal_insert_lsn(), read after COMMIT';

CREATE OR REPLACE FUNCTION factlib.version() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN '1.0';
COMMENT ON FUNCTION factlib.version IS 'The version of these functions';

SELECT factlib.guard(factlib.guarded());

COMMIT;
