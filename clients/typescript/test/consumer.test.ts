import assert from "node:assert/strict";
import test from "node:test";
import { decode, Positions } from "../src/consumer.js";

const at = (position: string, source = "1/2") => ({ factlib_position: Buffer.from(position), factlib_source: source });

test("what is not above the highest position of its place is a repeat, once it was kept", () => {
  const positions = new Positions();
  assert.equal(positions.isRepeat("t", 0, at("02")), false);
  assert.equal(positions.isRepeat("t", 0, at("02")), false, "asking keeps nothing: the work may fail");
  const kept = positions.keep("t", 0, at("02"));
  assert.deepEqual(kept, { topic: "t", partition: 0, source: "1/2", position: "02" });
  positions.keep("t", 0, at("01"));
  for (const [position, repeat] of [["01", true], ["02", true], ["03", false]] as const) {
    assert.equal(positions.isRepeat("t", 0, at(position)), repeat, position);
  }
  assert.equal(positions.isRepeat("u", 0, at("01")), false);
  assert.equal(positions.isRepeat("t", 1, at("01")), false);
  assert.equal(positions.isRepeat("t", 0, at("01", "1/3")), false);
  const next = new Positions();
  next.restore(kept!);
  assert.equal(next.isRepeat("t", 0, at("02")), true);
});

test("what was redriven is told by its id, and what others produced is never a repeat", () => {
  const positions = new Positions(["stored"]);
  const redriven = (event_id: string) => ({ event_id, factlib_redrive: "01" });
  assert.equal(positions.isRepeat("t", 0, redriven("stored")), true);
  assert.equal(positions.isRepeat("t", 0, redriven("a")), false);
  assert.equal(positions.keep("t", 0, redriven("a")), undefined);
  assert.equal(positions.isRepeat("t", 0, redriven("a")), true);
  positions.keep("t", 0, { event_id: "other" });
  assert.equal(positions.isRepeat("t", 0, { event_id: "other" }), false);
  assert.equal(positions.isRepeat("t", 0), false);
});

test("what is no envelope is refused, and unknown fields are passed over", () => {
  assert.throws(() => decode(Buffer.from('{"id":"1"}')), RangeError);
  assert.throws(() => decode(Uint8Array.of(0x0a, 5, 65)), RangeError);
  assert.throws(() => decode(new Uint8Array(11).fill(0xff)), RangeError);
  assert.throws(() => decode(Uint8Array.of(0x0a, 1, 0xff)), RangeError);
  const event = decode(Uint8Array.of(0x0a, 1, 65, 0x52, 1, 66, 0x60, 7, 0x69, 1, 2, 3, 4, 5, 6, 7, 8));
  assert.equal(event.id, "A");
  assert.equal(Object.keys(event.metadata).length, 0);
});
