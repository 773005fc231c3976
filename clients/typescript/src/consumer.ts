/** For consumers: the envelope, and which records are repeats. */

/** The headers of a record, as kafkajs has them. */
export type Headers = Record<string, Uint8Array | string | (Uint8Array | string)[] | undefined>;

/** Where positions rise, and the highest there: what is to be stored with the work. */
export interface Kept {
  topic: string;
  partition: number;
  source: string;
  position: string;
}

/**
 * The highest `factlib_position` of each topic, partition and `factlib_source`, which is what tells a repeat.
 *
 * Ask `isRepeat`, do the work, then `keep`. What is kept here is gone when the process ends: store what `keep` returns
 * with the work, in one transaction, and `restore` it when the partition is assigned. Redriven dead letters have no
 * position, and are told apart by their ids.
 */
export class Positions {
  readonly #highest = new Map<string, string>();
  readonly redriven: Set<string>;

  constructor(redriven: Iterable<string> = []) {
    this.redriven = new Set(redriven);
  }

  /** Whether it was kept already. What neither has a position nor was redriven never is. */
  isRepeat(topic: string, partition: number, headers: Headers = {}): boolean {
    const position = header(headers, "factlib_position");
    if (position !== undefined) {
      return position <= (this.#highest.get(place(topic, partition, header(headers, "factlib_source"))) ?? "");
    }
    return header(headers, "factlib_redrive") !== undefined && this.redriven.has(header(headers, "event_id") ?? "");
  }

  /** Remembers the record, once its work is done. Undefined where it has no position. */
  keep(topic: string, partition: number, headers: Headers = {}): Kept | undefined {
    const position = header(headers, "factlib_position");
    if (position !== undefined) {
      const kept = { topic, partition, source: header(headers, "factlib_source") ?? "", position };
      this.restore(kept);
      return kept;
    }
    if (header(headers, "factlib_redrive") !== undefined) {
      this.redriven.add(header(headers, "event_id") ?? "");
    }
    return undefined;
  }

  /** Puts back what was stored. A lower position than the one that is known changes nothing. */
  restore(kept: Kept): void {
    const where = place(kept.topic, kept.partition, kept.source);
    if (kept.position > (this.#highest.get(where) ?? "")) {
      this.#highest.set(where, kept.position);
    }
  }
}

function place(topic: string, partition: number, source = ""): string {
  return `${topic} ${partition} ${source}`;
}

function header(headers: Headers, name: string): string | undefined {
  const given = headers[name];
  const value = Array.isArray(given) ? given[0] : given;
  return value === undefined || typeof value === "string" ? value : Buffer.from(value).toString();
}

/** What was emitted. */
export interface OutboxEvent {
  id: string;
  aggregateType: string;
  aggregateId: string;
  eventType: string;
  payload: Uint8Array;
  /** Microseconds since 1970, if `factlib.emit` wrote it. */
  createdAt: bigint;
  metadata: Record<string, string>;
  traceId: string;
  spanId: string;
  /** `traceparent`, `tracestate`. */
  traceMetadata: Record<string, string>;
}

/**
 * Reads an envelope as `factlib.emit` writes it (protobuf).
 *
 * @throws {RangeError} if it is none.
 */
export function decode(envelope: Uint8Array): OutboxEvent {
  const [metadata, traceMetadata] = [dictionary(), dictionary()];
  const event: OutboxEvent = {
    id: "", aggregateType: "", aggregateId: "", eventType: "", payload: new Uint8Array(), createdAt: 0n, metadata,
    traceId: "", spanId: "", traceMetadata,
  };
  for (const [number, value] of fields(envelope)) {
    if (typeof value === "bigint") {
      if (number === 6) event.createdAt = BigInt.asIntN(64, value);
    } else if (number === 1) event.id = text(value);
    else if (number === 2) event.aggregateType = text(value);
    else if (number === 3) event.aggregateId = text(value);
    else if (number === 4) event.eventType = text(value);
    else if (number === 5) event.payload = value;
    else if (number === 7) pair(value, metadata);
    else if (number === 8) {
      for (const [part, inner] of fields(value)) {
        if (typeof inner === "bigint") continue;
        if (part === 1) event.traceId = text(inner);
        else if (part === 2) event.spanId = text(inner);
        else if (part === 3) pair(inner, traceMetadata);
      }
    }
  }
  return event;
}

/** Without a prototype: keys are the emitter's, `__proto__` is one like any other. */
function dictionary(): Record<string, string> {
  return Object.create(null) as Record<string, string>;
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function text(bytes: Uint8Array): string {
  try {
    return utf8.decode(bytes);
  } catch (cause) {
    throw new RangeError("no envelope: a text is not UTF-8", { cause });
  }
}

function pair(entry: Uint8Array, into: Record<string, string>): void {
  let [key, value] = ["", ""];
  for (const [number, bytes] of fields(entry)) {
    if (typeof bytes === "bigint") continue;
    if (number === 1) key = text(bytes);
    else if (number === 2) value = text(bytes);
  }
  into[key] = value;
}

/** A protobuf message's fields: https://protobuf.dev/programming-guides/encoding. */
function* fields(message: Uint8Array): Generator<[number, bigint | Uint8Array]> {
  let at = 0;
  const varint = (): bigint => {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      const byte = message[at++];
      if (byte === undefined) throw new RangeError("no envelope: it ends inside of a number");
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return BigInt.asUintN(64, value);
    }
    throw new RangeError("no envelope: a number has more than ten bytes");
  };
  while (at < message.length) {
    const tag = varint();
    const [number, wire] = [Number(tag >> 3n), Number(tag & 7n)];
    if (wire === 0) {
      yield [number, varint()];
      continue;
    }
    if (wire !== 1 && wire !== 2 && wire !== 5) throw new RangeError(`no envelope: wire type ${wire}`);
    const length = wire === 2 ? Number(varint()) : wire === 1 ? 8 : 4;
    if (length > message.length - at) throw new RangeError("no envelope: it ends inside of a field");
    at += length;
    yield [number, message.subarray(at - length, at)];
  }
}
