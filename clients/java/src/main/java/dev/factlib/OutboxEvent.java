package dev.factlib;

import java.nio.BufferUnderflowException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;

/** What was emitted, as a consumer reads it. */
public final class OutboxEvent {
    public String id = "";
    public String aggregateType = "";
    public String aggregateId = "";
    public String eventType = "";
    public byte[] payload = {};

    /** Microseconds since 1970, if {@code factlib.emit} wrote it. */
    public long createdAt;

    public final Map<String, String> metadata = new HashMap<>();
    public String traceId = "";
    public String spanId = "";

    /** {@code traceparent}, {@code tracestate}. */
    public final Map<String, String> traceMetadata = new HashMap<>();

    private OutboxEvent() {}

    private interface Field {
        void read(int number, long value, ByteBuffer bytes);
    }

    /**
     * Reads an envelope as {@code factlib.emit} writes it (protobuf).
     *
     * @throws IllegalArgumentException if it is none
     */
    public static OutboxEvent decode(byte[] envelope) {
        OutboxEvent event = new OutboxEvent();
        fields(ByteBuffer.wrap(envelope), (number, value, bytes) -> {
            switch (number) {
                case 1 -> event.id = text(bytes);
                case 2 -> event.aggregateType = text(bytes);
                case 3 -> event.aggregateId = text(bytes);
                case 4 -> event.eventType = text(bytes);
                case 5 -> event.payload = array(bytes);
                case 6 -> event.createdAt = value;
                case 7 -> pair(bytes, event.metadata);
                case 8 -> fields(bytes, (part, ignored, inner) -> {
                    switch (part) {
                        case 1 -> event.traceId = text(inner);
                        case 2 -> event.spanId = text(inner);
                        case 3 -> pair(inner, event.traceMetadata);
                        default -> {}
                    }
                });
                default -> {}
            }
        });
        return event;
    }

    private static void pair(ByteBuffer entry, Map<String, String> into) {
        String[] parts = {"", ""};
        fields(entry, (number, value, bytes) -> {
            if (number == 1 || number == 2) {
                parts[number - 1] = text(bytes);
            }
        });
        into.put(parts[0], parts[1]);
    }

    /** A protobuf message's fields: https://protobuf.dev/programming-guides/encoding. */
    private static void fields(ByteBuffer message, Field field) {
        message.order(ByteOrder.LITTLE_ENDIAN);
        try {
            while (message.hasRemaining()) {
                long tag = varint(message);
                int wire = (int) tag & 7;
                long value = wire == 0 ? varint(message) : 0;
                long length = switch (wire) {
                    case 0 -> 0;
                    case 1 -> 8;
                    case 2 -> varint(message);
                    case 5 -> 4;
                    default -> throw new IllegalArgumentException("no envelope: wire type " + wire);
                };
                if (length < 0 || length > message.remaining()) {
                    throw new BufferUnderflowException();
                }
                ByteBuffer bytes = message.slice(message.position(), (int) length);
                message.position(message.position() + (int) length);
                field.read((int) (tag >>> 3), value, bytes);
            }
        } catch (BufferUnderflowException e) {
            throw new IllegalArgumentException("no envelope: it ends inside of a field", e);
        }
    }

    private static long varint(ByteBuffer message) {
        long value = 0;
        for (int shift = 0; shift < 70; shift += 7) {
            byte next = message.get();
            value |= (long) (next & 0x7f) << shift;
            if (next >= 0) {
                return value;
            }
        }
        throw new IllegalArgumentException("no envelope: a number has more than ten bytes");
    }

    private static byte[] array(ByteBuffer bytes) {
        byte[] array = new byte[bytes.remaining()];
        bytes.get(array);
        return array;
    }

    private static String text(ByteBuffer bytes) {
        try {
            return StandardCharsets.UTF_8.newDecoder().decode(bytes).toString();
        } catch (CharacterCodingException e) {
            throw new IllegalArgumentException("no envelope: a text is not UTF-8", e);
        }
    }
}
