package dev.factlib;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.junit.jupiter.api.Test;

class ConsumerTest {
    private static ConsumerRecord<byte[], byte[]> message(String topic, int partition, String... headers) {
        ConsumerRecord<byte[], byte[]> message = new ConsumerRecord<>(topic, partition, 0, null, null);
        for (int n = 0; n < headers.length; n += 2) {
            message.headers().add(headers[n], headers[n + 1].getBytes(StandardCharsets.UTF_8));
        }
        return message;
    }

    private static ConsumerRecord<byte[], byte[]> at(String topic, int partition, String position, String source) {
        return message(topic, partition, "factlib_position", position, "factlib_source", source);
    }

    private static ConsumerRecord<byte[], byte[]> redriven(String id) {
        return message("t", 0, "event_id", id, "factlib_redrive", "01");
    }

    @Test
    void whatIsNotAboveTheHighestPositionOfItsPlaceIsARepeatOnceItWasKept() {
        Positions positions = new Positions();
        assertFalse(positions.isRepeat(at("t", 0, "02", "1/2")));
        assertFalse(positions.isRepeat(at("t", 0, "02", "1/2")), "asking keeps nothing: the work may fail");
        positions.keep(at("t", 0, "02", "1/2"));
        positions.keep(at("t", 0, "01", "1/2"));
        assertTrue(positions.isRepeat(at("t", 0, "01", "1/2")));
        assertTrue(positions.isRepeat(at("t", 0, "02", "1/2")));
        assertFalse(positions.isRepeat(at("t", 0, "03", "1/2")));
        assertFalse(positions.isRepeat(at("u", 0, "01", "1/2")));
        assertFalse(positions.isRepeat(at("t", 1, "01", "1/2")));
        assertFalse(positions.isRepeat(at("t", 0, "01", "1/3")));
        Positions next = new Positions();
        positions.highest().forEach(next::restore);
        assertTrue(next.isRepeat(at("t", 0, "02", "1/2")));
    }

    @Test
    void whatWasRedrivenIsToldByItsIdAndWhatOthersProducedIsNeverARepeat() {
        Positions positions = new Positions();
        positions.restoreRedriven("stored");
        assertTrue(positions.isRepeat(redriven("stored")));
        assertFalse(positions.isRepeat(redriven("a")));
        positions.keep(redriven("a"));
        assertTrue(positions.isRepeat(redriven("a")));
        positions.keep(message("t", 0, "event_id", "other"));
        assertFalse(positions.isRepeat(message("t", 0, "event_id", "other")));
        assertFalse(positions.isRepeat(message("t", 0)));
    }

    @Test
    void whatIsNoEnvelopeIsRefusedAndUnknownFieldsArePassedOver() {
        for (String envelope : new String[] {"{\"id\":\"1\"}", "\n\5A", "\377".repeat(11), "\n\1\377"}) {
            byte[] bytes = envelope.getBytes(StandardCharsets.ISO_8859_1);
            assertThrows(IllegalArgumentException.class, () -> OutboxEvent.decode(bytes), envelope);
        }
        String more = "\n\1A\122\1B\140\7\151\1\2\3\4\5\6\7\10";
        OutboxEvent event = OutboxEvent.decode(more.getBytes(StandardCharsets.ISO_8859_1));
        assertEquals("A", event.id);
        assertTrue(event.metadata.isEmpty());
    }
}
