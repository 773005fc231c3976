-- factlib.sql: emit facts from SQL, in the transaction that makes them true.
--
--   psql -v ON_ERROR_STOP=1 -d app -f factlib.sql        (or: owlpost init --with-sql)
--
--   BEGIN;
--   UPDATE orders SET paid = true WHERE id = 42;
--   SELECT factlib.emit('order', '42', 'paid', '{"by": "card"}', prefix => 'orders');
--   COMMIT;
--
-- PostgreSQL 14 to 18, no extension. Run it again at any time, also over an older version: functions are
-- replaced in place, and grants and the guard stay as they are. The first time it needs CREATE on the
-- database, later the role that owns the schema. remove.sql takes everything away again.
--
-- How it is written. What acts is PL/pgSQL in which every name is qualified and no operator stands, or which
-- has a search_path of its own, so that no caller's can put something else in its place. Bytes are
-- written E'\\x0a', which means the same whatever standard_conforming_strings is. What computes is
-- SQL with a RETURN: its names are bound here and now, under the search_path below, and the planner puts it
-- into the expression that calls it, so that it costs no call. (It must then be no less volatile than what is
-- in it, and no parameter that it uses twice may be an expensive or volatile expression.) Names that begin
-- with an underscore are for these functions only.

BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;

DO $$
DECLARE
  owner CONSTANT name := (SELECT rolname FROM pg_namespace JOIN pg_roles ON pg_roles.oid = nspowner WHERE nspname = 'factlib');
BEGIN
  IF current_setting('server_version_num')::int < 140000 THEN
    RAISE EXCEPTION 'factlib needs PostgreSQL 14 or later' USING ERRCODE = 'feature_not_supported';
  ELSIF owner IS NULL THEN
    CREATE SCHEMA factlib;
    PERFORM set_config('factlib.is_new', 'true', true);
  ELSIF owner <> current_user THEN
    -- Functions of somebody else may stand in it.
    RAISE EXCEPTION 'schema factlib belongs to role "%", and only that role may install into it', owner
      USING ERRCODE = 'insufficient_privilege', HINT = format('SET ROLE %I; and then again', owner);
  END IF;
END $$;
-- owlpost reads the version here, so as to run no function that it does not know.
COMMENT ON SCHEMA factlib IS 'factlib 1.0.0: facts for OwlPost, emitted from SQL; see \df+ factlib.emit';

CREATE OR REPLACE FUNCTION factlib.version() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '1.0.0';
COMMENT ON FUNCTION factlib.version() IS 'The version of these functions';

---------------------------------------------------------------------------------------------------
-- The envelope, in protobuf's wire format: https://protobuf.dev/programming-guides/encoding/
--
--   OutboxEvent { string id=1; string aggregate_type=2; string aggregate_id=3; string event_type=4;
--                 bytes payload=5; int64 created_at=6; map<string,string> metadata=7;
--                 optional TraceInfo trace_info=8 }
--   TraceInfo   { string trace_id=1; string span_id=2; map<string,string> metadata=3 }

CREATE OR REPLACE FUNCTION factlib._varint(n bigint) RETURNS bytea LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  bytes bytea := '';
  rest bigint := n;
BEGIN
  WHILE rest NOT BETWEEN 0 AND 127 LOOP
    bytes := bytes || set_byte(E'\\x00', 0, ((rest & 127) | 128)::int);
    rest := (rest >> 7) & ((1::bigint << 57) - 1);  -- a shift alone would keep the sign
  END LOOP;
  RETURN bytes || set_byte(E'\\x00', 0, rest::int);
END $$;
COMMENT ON FUNCTION factlib._varint(bigint) IS 'A number in base 128, as protobuf writes an int64';

CREATE OR REPLACE FUNCTION factlib._length(n int) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
  WHEN n < 128 THEN set_byte(E'\\x00', 0, n)
  WHEN n < 16384 THEN set_byte(set_byte(E'\\x0000', 0, (n & 127) | 128), 1, n >> 7)
  ELSE factlib._varint(n)
END;
COMMENT ON FUNCTION factlib._length(int) IS 'The same, fast where the number is small';

CREATE OR REPLACE FUNCTION factlib._delimited(tag bytea, value bytea) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN tag || factlib._length(octet_length(value)) || value;
COMMENT ON FUNCTION factlib._delimited(bytea, bytea) IS 'A field of text or bytes';

CREATE OR REPLACE FUNCTION factlib._field(tag bytea, value bytea) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN octet_length(value) > 0 THEN factlib._delimited(tag, value) ELSE '' END;
COMMENT ON FUNCTION factlib._field(bytea, bytea) IS 'A field of text or bytes; nothing where the value is empty or null';

-- Not inlined: what makes the pair would stand in it for each use of its length.
CREATE OR REPLACE FUNCTION factlib._entry(tag bytea, key bytea, value bytea) RETURNS bytea
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
  pair CONSTANT pg_catalog.bytea := pg_catalog.byteacat(factlib._field(E'\\x0a', key), factlib._field(E'\\x12', value));
BEGIN
  RETURN factlib._delimited(tag, pair);
END $$;
COMMENT ON FUNCTION factlib._entry(bytea, bytea, bytea) IS 'An entry of a map of strings';

-- Fields 1 to 4 in UTF-8. In the usual case each is as long as it is in the server's encoding and its
-- length is one ASCII character, so that all of it is one text.
CREATE OR REPLACE FUNCTION factlib._is_short(id text, aggregate_type text, aggregate_id text, event_type text) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN octet_length(id) < 128 AND octet_length(aggregate_type) < 128 AND octet_length(aggregate_id) < 128
  AND octet_length(event_type) < 128 AND getdatabaseencoding() = 'UTF8';

CREATE OR REPLACE FUNCTION factlib._short_names(id text, aggregate_type text, aggregate_id text, event_type text) RETURNS bytea
LANGUAGE sql STABLE PARALLEL SAFE
RETURN convert_to(
  chr(10) || chr(octet_length(id)) || id || chr(18) || chr(octet_length(aggregate_type)) || aggregate_type
  || chr(26) || chr(octet_length(aggregate_id)) || aggregate_id || chr(34) || chr(octet_length(event_type)) || event_type, 'UTF8');

CREATE OR REPLACE FUNCTION factlib._long_names(id text, aggregate_type text, aggregate_id text, event_type text) RETURNS bytea
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  bytes bytea := '';
  value bytea;
BEGIN
  value := convert_to(id, 'UTF8');
  bytes := bytes || factlib._field(E'\\x0a', value);
  value := convert_to(aggregate_type, 'UTF8');
  bytes := bytes || factlib._field(E'\\x12', value);
  value := convert_to(aggregate_id, 'UTF8');
  bytes := bytes || factlib._field(E'\\x1a', value);
  value := convert_to(event_type, 'UTF8');
  RETURN bytes || factlib._field(E'\\x22', value);
END $$;

CREATE OR REPLACE FUNCTION factlib._micros(t timestamptz) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE
RETURN (extract(epoch FROM t) * 1000000)::bigint;
COMMENT ON FUNCTION factlib._micros(timestamptz) IS 'Microseconds since 1970';

-- Of today's microseconds there are eight groups of seven bits: they go into eight bytes at once.
CREATE OR REPLACE FUNCTION factlib._created_at(micros bigint) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
  WHEN micros >> 49 BETWEEN 1 AND 127 THEN
    E'\\x30' || int8send(x'8080808080808000'::bigint
      | ((micros & (127::bigint      )) << 56) | ((micros & (127::bigint <<  7)) << 41)
      | ((micros & (127::bigint << 14)) << 26) | ((micros & (127::bigint << 21)) << 11)
      | ((micros & (127::bigint << 28)) >>  4) | ((micros & (127::bigint << 35)) >> 19)
      | ((micros & (127::bigint << 42)) >> 34) | (micros >> 49))
  WHEN micros <> 0 THEN E'\\x30' || factlib._varint(micros)
  ELSE ''
END;
COMMENT ON FUNCTION factlib._created_at(bigint) IS 'Field 6';

CREATE OR REPLACE FUNCTION factlib._entries(metadata jsonb) RETURNS TABLE (key bytea, value bytea, kind text, is_valid boolean)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT convert_to(key, 'UTF8'), convert_to(value #>> '{}', 'UTF8'), jsonb_typeof(value),
         jsonb_typeof(value) IN ('string', 'number', 'boolean')
    FROM jsonb_each(metadata) ORDER BY 1;
END;

CREATE OR REPLACE FUNCTION factlib._is_object(metadata jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN jsonb_typeof(metadata) = 'object';

CREATE OR REPLACE FUNCTION factlib._say_metadata(metadata jsonb) RETURNS void LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  wanted CONSTANT text := 'metadata must be a JSON object of strings, numbers and booleans: ';
BEGIN
  IF NOT factlib._is_object(metadata) THEN
    PERFORM factlib._refuse(wanted || 'it is ' || factlib._article(jsonb_typeof(metadata)));
  END IF;
  PERFORM factlib._refuse(wanted || format('key "%s" is %s', left(convert_from(e.key, 'UTF8'), 100), factlib._article(e.kind)))
     FROM factlib._entries(metadata) AS e WHERE NOT e.is_valid LIMIT 1;
END $$;

CREATE OR REPLACE FUNCTION factlib._metadata(metadata jsonb) RETURNS bytea LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
DECLARE
  bytes pg_catalog.bytea;
  is_valid pg_catalog.bool := false;
BEGIN
  IF factlib._is_object(metadata) THEN
    SELECT pg_catalog.string_agg(factlib._entry(E'\\x3a', e.key, e.value), ''), pg_catalog.bool_and(e.is_valid)
      INTO bytes, is_valid FROM factlib._entries(metadata) AS e;
  END IF;
  IF NOT is_valid THEN
    PERFORM factlib._say_metadata(metadata);
  END IF;
  RETURN bytes;
END $$;
COMMENT ON FUNCTION factlib._metadata(jsonb) IS 'Field 7, sorted by the bytes of its keys';

-- 00 - trace id - span id - flags; https://www.w3.org/TR/trace-context/#traceparent-header
-- (Counting in the regular expression would take ten times as long as the rest of it.)
CREATE OR REPLACE FUNCTION factlib._is_traceparent(traceparent text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN octet_length(traceparent) = 55 AND traceparent COLLATE "C" ~ '^00-[0-9a-f]+-[0-9a-f]+-[0-9a-f]+$'
  AND substr(traceparent, 36, 1) = '-' AND substr(traceparent, 53, 1) = '-'
  AND substr(traceparent, 4, 32) <> repeat('0', 32) AND substr(traceparent, 37, 16) <> repeat('0', 16);

-- All its lengths are known, and are letters: field 8 of 124 bytes is "B|".
CREATE OR REPLACE FUNCTION factlib._traceparent(traceparent text) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN factlib._is_traceparent(traceparent) THEN
  convert_to('B|' || chr(10) || ' ' || substr(traceparent, 4, 32) || chr(18) || chr(16) || substr(traceparent, 37, 16)
    || chr(26) || 'F' || chr(10) || chr(11) || 'traceparent' || chr(18) || '7' || traceparent, 'UTF8')
  ELSE '' END;
COMMENT ON FUNCTION factlib._traceparent(text) IS 'Field 8; nothing where it is no trace context';

CREATE OR REPLACE FUNCTION factlib._traceparent(traceparent text, tracestate text) RETURNS bytea
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  bytes bytea;
BEGIN
  IF NOT factlib._is_traceparent(traceparent) THEN
    RETURN '';
  END IF;
  bytes := factlib._field(E'\\x0a', convert_to(substr(traceparent, 4, 32), 'UTF8'))
    || factlib._field(E'\\x12', convert_to(substr(traceparent, 37, 16), 'UTF8'))
    || factlib._entry(E'\\x1a', 'traceparent', convert_to(traceparent, 'UTF8'))
    || factlib._entry(E'\\x1a', 'tracestate', convert_to(tracestate, 'UTF8'));
  RETURN factlib._delimited(E'\\x42', bytes);
END $$;
COMMENT ON FUNCTION factlib._traceparent(text, text) IS 'The same with a state';

CREATE OR REPLACE FUNCTION factlib._has_trace() RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE
RETURN octet_length(current_setting('factlib.traceparent', true)) > 0;

CREATE OR REPLACE FUNCTION factlib._trace() RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN octet_length(current_setting('factlib.tracestate', true)) > 0
  THEN factlib._traceparent(current_setting('factlib.traceparent', true), current_setting('factlib.tracestate', true))
  ELSE factlib._traceparent(current_setting('factlib.traceparent', true)) END;
COMMENT ON FUNCTION factlib._trace() IS 'Field 8, of the settings';

CREATE OR REPLACE FUNCTION factlib._is_empty(metadata jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN metadata IS NULL OR metadata = '{}';

CREATE OR REPLACE FUNCTION factlib._is_empty(envelope bytea) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce(octet_length(envelope), 0) = 0;

CREATE OR REPLACE FUNCTION factlib._envelope(names bytea, payload bytea, micros bigint, metadata bytea, trace bytea) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN names || factlib._field(E'\\x2a', payload) || (factlib._created_at(micros) || metadata || trace);

---------------------------------------------------------------------------------------------------
-- Ids: UUIDs of version 7, https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-7
--
-- 48 bits of milliseconds, the version, 1/4096 of a millisecond in 12 bits; then random bits.

CREATE OR REPLACE FUNCTION factlib._uuid7(micros bigint) RETURNS text LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN (
  lpad(to_hex((micros / 1000 << 16) | ((micros % 1000) * 512 / 125) | x'7000'::bigint), 16, '0')
  || substr(gen_random_uuid()::text, 20)
)::uuid::text;
COMMENT ON FUNCTION factlib._uuid7(bigint) IS 'A UUID of version 7 at this time';

CREATE OR REPLACE FUNCTION factlib._is_empty(id text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce(octet_length(id), 0) = 0;

---------------------------------------------------------------------------------------------------
-- Checks: one expression says whether all is well; which sentence it is, is found out only if not.

CREATE OR REPLACE FUNCTION factlib._refuse(message text, errcode text DEFAULT 'invalid_parameter_value') RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION USING MESSAGE = message, ERRCODE = errcode;
END $$;

CREATE OR REPLACE FUNCTION factlib._article(kind text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE kind WHEN 'null' THEN 'null' WHEN 'object' THEN 'an object' WHEN 'array' THEN 'an array' ELSE 'a ' || kind END;

-- Bytes are counted and collations are named, because under some of those an empty text equals others.
CREATE OR REPLACE FUNCTION factlib._is_valid(
  prefix text, aggregate_type text, aggregate_id text, event_type text, created_at timestamptz
) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce(
  prefix COLLATE "C" ~ '^[A-Za-z0-9._-]+$' AND aggregate_type COLLATE "C" ~ '^[A-Za-z0-9._-]+$'
  AND octet_length(aggregate_id) > 0 AND octet_length(event_type) > 0
  AND octet_length(prefix) + octet_length(aggregate_type) < 249
  AND (created_at IS NULL OR created_at < '294247-01-01 00:00:00+00' AND isfinite(created_at)), false);

CREATE OR REPLACE FUNCTION factlib._say_why(
  prefix text, aggregate_type text, aggregate_id text, event_type text, created_at timestamptz
) RETURNS void LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  letters CONSTANT text := '%s "%s" cannot be part of a topic''s name: only letters, digits, ''.'', ''_'' and ''-'' can';
  topic CONSTANT text := concat(prefix, '.', aggregate_type);
BEGIN
  PERFORM factlib._refuse(CASE
    WHEN coalesce(octet_length(prefix), 0) = 0 THEN
      'prefix is empty: pass it, or set factlib.prefix'
    WHEN prefix COLLATE "C" !~ '^[A-Za-z0-9._-]+$' THEN
      format(letters, 'prefix', left(prefix, 100))
    WHEN aggregate_type COLLATE "C" !~ '^[A-Za-z0-9._-]*$' THEN
      format(letters, 'aggregate_type', left(aggregate_type, 100))
    WHEN coalesce(octet_length(aggregate_type), 0) = 0 THEN
      'aggregate_type is empty'
    WHEN coalesce(octet_length(aggregate_id), 0) = 0 THEN
      'aggregate_id is empty'
    WHEN coalesce(octet_length(event_type), 0) = 0 THEN
      'event_type is empty'
    WHEN length(topic) > 249 THEN
      format('topic "%s" has %s characters, and Kafka takes at most 249', left(topic, 100), length(topic))
    ELSE
      'created_at is out of range: a time before the year 294247 is wanted'
  END);
END $$;

CREATE OR REPLACE FUNCTION factlib._prefix(prefix text) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN octet_length(prefix) > 0 THEN prefix ELSE current_setting('factlib.prefix', true) END;

CREATE OR REPLACE FUNCTION factlib._set_max_record_bytes() RETURNS bigint LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  setting CONSTANT text COLLATE "C" := current_setting('factlib.max_record_bytes', true);
BEGIN
  IF setting !~ '^[0-9]{1,18}$' THEN
    PERFORM factlib._refuse(format('factlib.max_record_bytes is "%s": a number of bytes is wanted', left(setting, 100)));
  END IF;
  RETURN setting;
END $$;

CREATE OR REPLACE FUNCTION factlib._max_record_bytes() RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN octet_length(current_setting('factlib.max_record_bytes', true)) > 0
  THEN factlib._set_max_record_bytes()
  -- Kafka's max.message.bytes is 1048588 unless said.
  ELSE 1048576 END;

-- Key and headers repeat what is in the envelope, but for the payload; names and lengths take the rest.
CREATE OR REPLACE FUNCTION factlib._record_bytes(envelope bytea, payload bytea) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 2 * octet_length(envelope)::bigint - coalesce(octet_length(payload), 0) + 1024;
COMMENT ON FUNCTION factlib._record_bytes(bytea, bytea) IS 'So many bytes at most has the record in Kafka';

-- Nothing at all does not fit either: pg_logical_emit_message would pass it over without a word.
CREATE OR REPLACE FUNCTION factlib._fits(envelope bytea, payload bytea) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(factlib._record_bytes(envelope, payload) <= factlib._max_record_bytes(), false);

CREATE OR REPLACE FUNCTION factlib._say_size(envelope bytea, payload bytea) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM factlib._refuse(
    format('fact of %s bytes as a Kafka record, more than factlib.max_record_bytes (%s)',
           factlib._record_bytes(envelope, payload), factlib._max_record_bytes()),
    'program_limit_exceeded');
END $$;

---------------------------------------------------------------------------------------------------
-- The guard: which role may emit with which prefix. Off unless factlib.guard(true) is called.

CREATE TABLE IF NOT EXISTS factlib.prefix_grant (
  role name NOT NULL,
  prefix text COLLATE "C" NOT NULL,
  PRIMARY KEY (role, prefix)
);
COMMENT ON TABLE factlib.prefix_grant IS 'Who may emit with which prefix while factlib.guard is on: the role and its members';

-- guard() replaces it: here it is only made, so that a later run of this file leaves the guard on.
DO $$
BEGIN
  IF to_regprocedure('factlib._may_emit(text)') IS NULL THEN
    CREATE FUNCTION factlib._may_emit(prefix text) RETURNS boolean LANGUAGE sql STABLE RETURN true;
  END IF;
END $$;

CREATE OR REPLACE FUNCTION factlib.guard() RETURNS boolean LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT prosecdef FROM pg_proc WHERE oid = 'factlib._may_emit(text)'::regprocedure;
END;
COMMENT ON FUNCTION factlib.guard() IS 'Whether only roles in factlib.prefix_grant may emit, each with its prefixes';

-- SECURITY DEFINER, so that those who emit need no right to call pg_logical_emit_message.
CREATE OR REPLACE FUNCTION factlib.guard("on" boolean) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $guard$
BEGIN
  IF "on" THEN
    CREATE OR REPLACE FUNCTION factlib._may_emit(prefix text) RETURNS boolean LANGUAGE plpgsql STABLE
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
      RETURN EXISTS (
        SELECT FROM factlib.prefix_grant AS g JOIN pg_roles AS r ON r.rolname = g.role
         WHERE g.prefix = _may_emit.prefix AND pg_has_role(session_user, r.oid, 'MEMBER'));
    END $$;
    ALTER FUNCTION factlib.emit(text, text, text, bytea, jsonb, text, text, timestamptz) SECURITY DEFINER;
    ALTER FUNCTION factlib.emit_envelope(text, bytea) SECURITY DEFINER;
  ELSE
    CREATE OR REPLACE FUNCTION factlib._may_emit(prefix text) RETURNS boolean LANGUAGE sql STABLE RETURN true;
    ALTER FUNCTION factlib.emit(text, text, text, bytea, jsonb, text, text, timestamptz) SECURITY INVOKER;
    ALTER FUNCTION factlib.emit_envelope(text, bytea) SECURITY INVOKER;
  END IF;
END $guard$;
COMMENT ON FUNCTION factlib.guard(boolean) IS 'From now on only roles in factlib.prefix_grant may emit, each with its prefixes; or all roles again';

CREATE OR REPLACE FUNCTION factlib._say_role(prefix text) RETURNS void LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM factlib._refuse(format('role "%s" may not emit with prefix "%s"', session_user, left(prefix, 100)),
    'insufficient_privilege');
END $$;

---------------------------------------------------------------------------------------------------
-- Emitting

DO $$
BEGIN
  IF to_regtype('factlib.emitted') IS NULL THEN
    CREATE TYPE factlib.emitted AS (id text, lsn pg_lsn);
  END IF;
END $$;
COMMENT ON TYPE factlib.emitted IS 'The id of the fact, and where its message lies in the write-ahead log, for tracing';

CREATE OR REPLACE FUNCTION factlib.emit(
  aggregate_type text, aggregate_id text, event_type text, payload bytea,
  metadata jsonb DEFAULT '{}', prefix text DEFAULT NULL, id text DEFAULT NULL, created_at timestamptz DEFAULT NULL
) RETURNS factlib.emitted LANGUAGE plpgsql AS $$
DECLARE
  now CONSTANT pg_catalog.int8 := factlib._micros(pg_catalog.clock_timestamp());
  created pg_catalog.int8 := now;
  names pg_catalog.bytea;
  entries pg_catalog.bytea := '';
  trace pg_catalog.bytea := '';
  envelope pg_catalog.bytea;
BEGIN
  -- What is seldom there has a statement of its own: an expression costs each transaction what stands in it,
  -- whether it is come by or not.
  prefix := factlib._prefix(prefix);
  IF NOT factlib._is_valid(prefix, aggregate_type, aggregate_id, event_type, created_at) THEN
    PERFORM factlib._say_why(prefix, aggregate_type, aggregate_id, event_type, created_at);
  END IF;
  IF NOT factlib._is_empty(metadata) THEN
    entries := factlib._metadata(metadata);
  END IF;
  IF NOT factlib._may_emit(prefix) THEN
    PERFORM factlib._say_role(prefix);
  END IF;
  IF created_at IS NOT NULL THEN
    created := factlib._micros(created_at);
  END IF;
  IF factlib._is_empty(id) THEN
    id := factlib._uuid7(now);
  END IF;
  IF factlib._is_short(id, aggregate_type, aggregate_id, event_type) THEN
    names := factlib._short_names(id, aggregate_type, aggregate_id, event_type);
  ELSE
    names := factlib._long_names(id, aggregate_type, aggregate_id, event_type);
  END IF;
  IF factlib._has_trace() THEN
    trace := factlib._trace();
  END IF;
  envelope := factlib._envelope(names, payload, created, entries, trace);
  IF NOT factlib._fits(envelope, payload) THEN
    PERFORM factlib._say_size(envelope, payload);
  END IF;
  RETURN ROW(id, pg_catalog.pg_logical_emit_message(true, prefix, envelope))::factlib.emitted;
END $$;

CREATE OR REPLACE FUNCTION factlib.emit(
  aggregate_type text, aggregate_id text, event_type text, payload text,
  metadata jsonb DEFAULT '{}', prefix text DEFAULT NULL, id text DEFAULT NULL, created_at timestamptz DEFAULT NULL
) RETURNS factlib.emitted LANGUAGE sql
RETURN factlib.emit(aggregate_type, aggregate_id, event_type, convert_to(payload, 'UTF8'), metadata, prefix, id, created_at);

CREATE OR REPLACE FUNCTION factlib.emit(
  aggregate_type text, aggregate_id text, event_type text, payload jsonb,
  metadata jsonb DEFAULT '{}', prefix text DEFAULT NULL, id text DEFAULT NULL, created_at timestamptz DEFAULT NULL
) RETURNS factlib.emitted LANGUAGE sql
RETURN factlib.emit(aggregate_type, aggregate_id, event_type, convert_to(payload::text, 'UTF8'), metadata, prefix, id, created_at);

CREATE OR REPLACE FUNCTION factlib.emit(
  aggregate_type text, aggregate_id text, event_type text, payload json,
  metadata jsonb DEFAULT '{}', prefix text DEFAULT NULL, id text DEFAULT NULL, created_at timestamptz DEFAULT NULL
) RETURNS factlib.emitted LANGUAGE sql
RETURN factlib.emit(aggregate_type, aggregate_id, event_type, convert_to(payload::text, 'UTF8'), metadata, prefix, id, created_at);

CREATE OR REPLACE FUNCTION factlib.emit_envelope(prefix text, envelope bytea) RETURNS pg_lsn LANGUAGE plpgsql AS $$
BEGIN
  prefix := factlib._prefix(prefix);
  IF NOT factlib._is_valid(prefix, '-', '-', '-', NULL) THEN
    PERFORM factlib._say_why(prefix, '-', '-', '-', NULL);
  ELSIF factlib._is_empty(envelope) THEN
    PERFORM factlib._refuse('envelope is empty');
  ELSIF NOT factlib._may_emit(prefix) THEN
    PERFORM factlib._say_role(prefix);
  ELSIF NOT factlib._fits(envelope, envelope) THEN
    PERFORM factlib._say_size(envelope, envelope);
  END IF;
  RETURN pg_catalog.pg_logical_emit_message(true, prefix, envelope);
END $$;
COMMENT ON FUNCTION factlib.emit_envelope(text, bytea) IS
  'Emits an envelope that the caller has encoded, in this transaction, without looking into it; its LSN, for tracing';

DO $$
DECLARE
  emit regprocedure;
BEGIN
  FOR emit IN SELECT oid FROM pg_proc WHERE pronamespace = 'factlib'::regnamespace AND proname = 'emit' LOOP
    EXECUTE format('COMMENT ON FUNCTION %s IS %L', emit, $c$Emits a fact in this transaction: SELECT id, lsn FROM factlib.emit(...)

payload     bytes as they are; text, json and jsonb as text in UTF-8; null: none
metadata    an object of strings, numbers and booleans
prefix      none: the setting factlib.prefix
id          none: a UUID of version 7
created_at  none: now
trace       the settings factlib.traceparent and factlib.tracestate, of this transaction's span

What no relay could publish is refused: empty fields, what cannot be a topic's name, and a fact
that may be larger in Kafka than factlib.max_record_bytes (1048576).$c$);
  END LOOP;
END $$;

---------------------------------------------------------------------------------------------------
-- And then

-- The next record begins behind its page's header, while what is confirmed ends with the last record, which may be
-- the page before: on an idle server nothing is ever confirmed behind the header.
CREATE OR REPLACE FUNCTION factlib._end_before(lsn pg_lsn, page bigint, segment bigint) RETURNS pg_lsn
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN lsn - CASE WHEN (lsn - '0/0') % page = CASE WHEN (lsn - '0/0') % segment < page THEN 40 ELSE 24 END
  THEN (lsn - '0/0') % page ELSE 0 END;
COMMENT ON FUNCTION factlib._end_before(pg_lsn, bigint, bigint) IS 'Where the record before this position ends';

CREATE OR REPLACE FUNCTION factlib.published(lsn pg_lsn, slot text DEFAULT 'factlib_slot') RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  confirmed CONSTANT pg_lsn := (
    SELECT s.confirmed_flush_lsn FROM pg_replication_slots AS s
     WHERE s.slot_name = slot AND s.database = current_database());
BEGIN
  IF confirmed IS NULL THEN
    PERFORM factlib._refuse(format('this database has no logical replication slot "%s"', left(slot, 100)), 'undefined_object');
  END IF;
  RETURN confirmed >= factlib._end_before(lsn, current_setting('wal_block_size')::bigint,
    pg_size_bytes(current_setting('wal_segment_size')));
END $$;
COMMENT ON FUNCTION factlib.published(pg_lsn, text) IS
  'Is everything that was committed before lsn in Kafka? Give it pg_current_wal_insert_lsn(), read after COMMIT';

-- Later runs leave alone what was granted and revoked since; what is only for these functions has no rights to give.
DO $$
DECLARE
  name regprocedure;
BEGIN
  IF current_setting('factlib.is_new', true) = 'true' THEN
    GRANT USAGE ON SCHEMA factlib TO PUBLIC;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA factlib TO PUBLIC;
    REVOKE EXECUTE ON FUNCTION factlib.guard(boolean) FROM PUBLIC;
  END IF;
  FOR name IN SELECT oid FROM pg_proc WHERE pronamespace = 'factlib'::regnamespace AND proname LIKE E'\\_%' LOOP
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', name);
  END LOOP;
  -- The functions were made anew, without what it changes in them.
  PERFORM factlib.guard(factlib.guard());
END $$;

COMMIT;
