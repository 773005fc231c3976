package dev.factlib;

import java.time.Instant;
import java.util.HashMap;
import java.util.Map;

/**
 * What is emitted: {@code new Fact("order", "42", "paid").json("{\"by\": \"card\"}")}. What is not said is left to the
 * server.
 */
public final class Fact {
    final String aggregateType;
    final String aggregateId;
    final String eventType;
    final Map<String, String> metadata = new HashMap<>();
    byte[] bytes;
    String text;
    String payloadType = "text";
    String prefix;
    String id;
    Instant createdAt;
    String traceparent;
    String tracestate;

    /**
     * @param aggregateType names the topic, together with the prefix
     * @param aggregateId the record's key
     * @param eventType what happened
     */
    public Fact(String aggregateType, String aggregateId, String eventType) {
        this.aggregateType = aggregateType;
        this.aggregateId = aggregateId;
        this.eventType = eventType;
    }

    /** The payload: bytes as they are. */
    public Fact payload(byte[] bytes) {
        this.bytes = bytes;
        payloadType = "bytea";
        return this;
    }

    /** The payload: text as it is, in UTF-8. */
    public Fact payload(String text) {
        this.text = text;
        payloadType = "text";
        return this;
    }

    /** The payload: JSON as text, which arrives as {@code jsonb} writes it. */
    public Fact json(String json) {
        this.text = json;
        payloadType = "jsonb";
        return this;
    }

    /** One more entry of the metadata, or another value for one. */
    public Fact metadata(String key, String value) {
        metadata.put(key, value);
        return this;
    }

    /** The prefix, and not the server's setting {@code factlib.prefix}. */
    public Fact prefix(String prefix) {
        this.prefix = prefix;
        return this;
    }

    /** The id, and not a UUIDv7. */
    public Fact id(String id) {
        this.id = id;
        return this;
    }

    /** The time, to the microsecond, and not now. */
    public Fact createdAt(Instant createdAt) {
        this.createdAt = createdAt;
        return this;
    }

    /**
     * W3C trace context, which holds for the rest of the transaction.
     *
     * @param tracestate may be null
     */
    public Fact trace(String traceparent, String tracestate) {
        this.traceparent = traceparent;
        this.tracestate = tracestate;
        return this;
    }
}
