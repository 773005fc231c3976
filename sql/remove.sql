-- remove.sql: takes away what factlib.sql made.
--
--   psql -v ON_ERROR_STOP=1 -d app -f remove.sql
--
-- Where something of the application depends on it (a view, a function with an SQL body), that is said and
-- nothing is removed; DROP SCHEMA factlib CASCADE removes both. Facts that are committed will be published
-- all the same.

BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL search_path = pg_catalog, pg_temp;

DO $$
DECLARE
  drops text;
BEGIN
  IF to_regnamespace('factlib') IS NULL THEN
    RETURN;
  END IF;
  -- In one statement, because they depend on one another.
  SELECT string_agg(oid::regprocedure::text, ', ') INTO drops
    FROM pg_proc WHERE pronamespace = 'factlib'::regnamespace AND prokind = 'f';
  IF drops IS NOT NULL THEN
    EXECUTE 'DROP FUNCTION ' || drops;
  END IF;
  DROP TYPE IF EXISTS factlib.emitted;
  DROP TABLE IF EXISTS factlib.prefix_grant;
  DROP SCHEMA factlib;
END $$;

COMMIT;
