/** Facts that are committed with your rows, or not at all: a thin call of the SQL function `factlib.emit`. */

export interface Fact {
  /** Names the topic, together with the prefix. */
  aggregateType: string;
  /** The record's key. */
  aggregateId: string;
  /** What happened. */
  eventType: string;
  /** Bytes and text as they are; anything else becomes JSON, as `jsonb` writes it. Null is an absent one. */
  payload?: unknown;
  metadata?: Record<string, string | number | boolean>;
  /** None: the server's setting `factlib.prefix`. */
  prefix?: string;
  /** None: a UUIDv7. */
  id?: string;
  /** None: now. As text it may have microseconds: `2026-11-29T19:40:00.000001Z`. */
  createdAt?: Date | string;
  /** W3C; holds for the rest of the transaction. */
  traceparent?: string;
  tracestate?: string;
}

/** What the server says of an emitted fact. */
export interface Emitted {
  id: string;
  /** Where its message lies in the log: for tracing. To wait for publication take `waitLsn` after the commit. */
  lsn: string;
}

/** A client of `pg` with an open transaction, or anything that can run a statement in yours. */
export interface Queryable {
  query(text: string, values: unknown[]): Promise<unknown>;
}

/**
 * Emits a fact in the client's open transaction. Errors are the driver's own: with `pg`, `error.code` is the SQLSTATE.
 *
 * @throws {TypeError} for a pool of `pg`, on which each statement is a transaction of its own.
 */
export async function emit(client: Queryable, fact: Fact): Promise<Emitted> {
  if ("totalCount" in client && "idleCount" in client) {
    throw new TypeError("emit needs the client of the transaction that changes your rows, and this is a pool");
  }
  let [payload, kind]: [unknown, string] = [fact.payload ?? null, "text"];
  if (payload instanceof Uint8Array) {
    [payload, kind] = [Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength), "bytea"];
  } else if (payload !== null && typeof payload !== "string") {
    [payload, kind] = [json(payload), "text::jsonb"];
  }
  let values: unknown[] = [fact.aggregateType, fact.aggregateId, fact.eventType, payload, json(fact.metadata ?? {})];
  const createdAt = fact.createdAt instanceof Date ? fact.createdAt.toISOString() : fact.createdAt;
  values.push(fact.prefix ?? null, fact.id ?? null, createdAt ?? null);
  let first = "$::text";
  if (fact.traceparent !== undefined) {
    // Arguments are evaluated before the function runs, and it reads these settings.
    first =
      "CASE WHEN set_config('factlib.traceparent', $::text, true) || set_config('factlib.tracestate', $::text, true) " +
      "IS NOT NULL THEN $::text END";
    values = [fact.traceparent, fact.tracestate ?? "", ...values];
  }
  // JSON and times go as text: some drivers would encode the one once more, and cut the other to milliseconds.
  let parameters = 0;
  const statement = (
    `SELECT id, lsn::text AS lsn FROM factlib.emit(${first}, $::text, $::text, $::${kind}, ` +
    "$::text::jsonb, $::text, $::text, $::text::timestamptz)"
  ).replaceAll("$", () => `$${++parameters}`);
  const { id, lsn } = await row(client, statement, values);
  return { id: String(id), lsn: String(lsn) };
}

/**
 * The position up to which to wait, with `owlpost wait --lsn` or `/wait`, for what is committed by now. Call it after
 * the commit: before it, the position does not cover the transaction.
 */
export async function waitLsn(client: Queryable): Promise<string> {
  return String((await row(client, "SELECT pg_current_wal_insert_lsn()::text AS lsn", [])).lsn);
}

/** The one row, of drivers that return rows and of those that return a result with `rows`. */
async function row(client: Queryable, text: string, values: unknown[]): Promise<Record<string, unknown>> {
  const result = await client.query(text, values);
  const rows = Array.isArray(result) ? result : (result as { rows: unknown[] }).rows;
  return rows[0] as Record<string, unknown>;
}

function json(value: unknown): string {
  const text: string | undefined = JSON.stringify(value);
  if (text === undefined) {
    throw new TypeError(`a ${typeof value} has no JSON`);
  }
  return text;
}
