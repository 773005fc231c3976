/**
 * Facts as JSON lines on standard input, emitted each in one transaction, by the adapter that is named; or a topic, read
 * to its end, each fact once. Driven by tests/it/clients.rs.
 *
 *     road.js emit pg commit      (DATABASE_URL)
 *     road.js consume BOOTSTRAP TOPIC
 */

import assert from "node:assert/strict";
import { buffer } from "node:stream/consumers";
import { sql } from "drizzle-orm";
import { drizzle } from "drizzle-orm/node-postgres";
import { Kafka, logLevel } from "kafkajs";
import knex from "knex";
import pg from "pg";
import postgres from "postgres";
import { emit, waitLsn, type Emitted, type Fact } from "../src/index.js";
import { decode, Positions } from "../src/consumer.js";

interface Line {
  aggregate_type: string;
  aggregate_id: string;
  event_type: string;
  payload?: { bytes?: string; text?: string; json?: unknown };
  metadata?: Record<string, string>;
  prefix?: string;
  id?: string;
  created_at?: string;
  traceparent?: string;
  tracestate?: string;
}

const url = process.env["DATABASE_URL"] ?? "";
const say = (said: unknown) => process.stdout.write(`${JSON.stringify(said)}\n`);

async function* facts(): AsyncGenerator<Fact> {
  // Not by node:readline, to which U+2028 ends a line.
  for (const text of (await buffer(process.stdin)).toString().split("\n").filter((line) => line !== "")) {
    const line = JSON.parse(text) as Line;
    const { bytes, text: string, json } = line.payload ?? {};
    const fact: Record<string, unknown> = {
      aggregateType: line.aggregate_type,
      aggregateId: line.aggregate_id,
      eventType: line.event_type,
      payload: bytes === undefined ? (string ?? json) : Buffer.from(bytes, "base64"),
      metadata: line.metadata,
      prefix: line.prefix,
      id: line.id,
      createdAt: line.created_at,
      traceparent: line.traceparent,
      tracestate: line.tracestate,
    };
    yield Object.fromEntries(Object.entries(fact).filter(([, value]) => value !== undefined)) as unknown as Fact;
  }
}

/** Runs each fact in a transaction of this road. */
async function each(road: (fact: Fact) => Promise<Emitted & { wait: string }>): Promise<void> {
  for await (const fact of facts()) {
    try {
      const { id, lsn, wait } = await road(fact);
      say({ id, lsn, wait });
    } catch (error) {
      // Drizzle puts it into one of its own.
      const refused = error instanceof Error && error.cause ? error.cause : error;
      const { code, message } = refused as { code?: string; message: string };
      if (code === undefined) throw error;
      // knex puts the statement before it.
      say({ sqlstate: code, message: message.split("::timestamptz) - ").at(-1) });
    }
  }
}

class Undo extends Error {}

async function undone<T>(transaction: Promise<T>): Promise<void> {
  await transaction.catch((error: unknown) => {
    if (!(error instanceof Undo)) throw error;
  });
}

const roads: Record<string, (commit: boolean) => Promise<void>> = {
  async pg(commit) {
    const pool = new pg.Pool({ connectionString: url });
    await assert.rejects(emit(pool, { aggregateType: "order", aggregateId: "1", eventType: "on a pool" }), TypeError);
    const client = await pool.connect();
    await each(async (fact) => {
      await client.query("BEGIN");
      try {
        const emitted = await emit(client, fact);
        await client.query(commit ? "COMMIT" : "ROLLBACK");
        return { ...emitted, wait: await waitLsn(client) };
      } catch (error) {
        await client.query("ROLLBACK");
        throw error;
      }
    });
    client.release();
    await pool.end();
  },

  async postgres(commit) {
    const connections = postgres(url, { max: 1 });
    await each(async (fact) => {
      let emitted!: Emitted;
      await undone(
        connections.begin(async (tx) => {
          emitted = await emit({ query: (text, values) => tx.unsafe(text, values as never[]) }, fact);
          if (!commit) throw new Undo();
        }),
      );
      return { ...emitted, wait: await waitLsn({ query: (text) => connections.unsafe(text) }) };
    });
    await connections.end();
  },

  async drizzle(commit) {
    const pool = new pg.Pool({ connectionString: url });
    const db = drizzle(pool);
    await each(async (fact) => {
      let emitted!: Emitted;
      await undone(
        db.transaction(async (tx) => {
          const pieces = (text: string, values: unknown[]) =>
            text.split(/\$\d+/).flatMap((part, n) => (n ? [sql`${values[n - 1]}`, sql.raw(part)] : sql.raw(part)));
          emitted = await emit({ query: (text, values) => tx.execute(sql.join(pieces(text, values))) }, fact);
          if (!commit) throw new Undo();
        }),
      );
      return { ...emitted, wait: await waitLsn({ query: (text) => db.execute(text) }) };
    });
    await pool.end();
  },

  async knex(commit) {
    const db = knex({ client: "pg", connection: url });
    await each(async (fact) => {
      let emitted!: Emitted;
      await undone(
        db.transaction(async (trx) => {
          emitted = await emit({ query: (text, values) => trx.raw(text.replace(/\$\d+/g, "?"), values as never[]) }, fact);
          if (!commit) throw new Undo();
        }),
      );
      return { ...emitted, wait: await waitLsn({ query: (text) => db.raw(text) }) };
    });
    await db.destroy();
  },
};

async function consume(bootstrap: string, topic: string): Promise<void> {
  const kafka = new Kafka({ brokers: bootstrap.split(","), logLevel: logLevel.ERROR });
  const admin = kafka.admin();
  await admin.connect();
  const offsets = await admin.fetchTopicOffsets(topic);
  await admin.disconnect();
  const unread = new Map(offsets.filter(({ high }) => high !== "0").map(({ partition, high }) => [partition, BigInt(high)]));
  const consumer = kafka.consumer({ groupId: `road-${process.pid}` });
  const positions = new Positions();
  await consumer.connect();
  await consumer.subscribe({ topic, fromBeginning: true });
  await new Promise<void>((resolve, reject) => {
    consumer.on("consumer.crash", ({ payload }) => reject(payload.error));
    const run = consumer.run({
      eachMessage: async ({ partition, message }) => {
        if (!positions.isRepeat(topic, partition, message.headers)) {
          const event = decode(message.value ?? Buffer.of());
          say({
            partition,
            id: event.id,
            aggregate_type: event.aggregateType,
            aggregate_id: event.aggregateId,
            event_type: event.eventType,
            payload: Buffer.from(event.payload).toString("base64"),
            created_at: Number(event.createdAt),
            metadata: event.metadata,
            trace_id: event.traceId,
            span_id: event.spanId,
            trace_metadata: event.traceMetadata,
          });
          positions.keep(topic, partition, message.headers);
        }
        if (BigInt(message.offset) + 1n >= (unread.get(partition) ?? 0n)) unread.delete(partition);
        if (unread.size === 0) resolve();
      },
    });
    run.catch(reject);
  });
  await consumer.disconnect();
}

const [command, first = "", second = ""] = process.argv.slice(2);
if (command === "consume") await consume(first, second);
else await roads[first]!(second === "commit");
