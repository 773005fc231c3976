package dev.factlib;

import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.common.header.Header;

/**
 * The highest {@code factlib_position} of each topic, partition and {@code factlib_source}, which is what tells a repeat.
 *
 * <p>Ask {@link #isRepeat}, do the work, then {@link #keep}. What is kept here is gone when the process ends: store it
 * with the work, in one transaction, and {@link #restore} it when the partition is assigned. Redriven dead letters have no
 * position, and are told apart by their ids. For one thread.
 */
public final class Positions {
    /** Where positions rise. */
    public record Place(String topic, int partition, String source) {}

    private final Map<Place, String> highest = new HashMap<>();
    private final Set<String> redriven = new HashSet<>();

    /** Whether it was kept already. What neither has a position nor was redriven never is. */
    public boolean isRepeat(ConsumerRecord<?, ?> message) {
        String position = header(message, "factlib_position");
        if (position != null) {
            return position.compareTo(highest.getOrDefault(place(message), "")) <= 0;
        }
        return header(message, "factlib_redrive") != null && redriven.contains(header(message, "event_id"));
    }

    /** Remembers the record, once its work is done. */
    public void keep(ConsumerRecord<?, ?> message) {
        String position = header(message, "factlib_position");
        if (position != null) {
            restore(place(message), position);
        } else if (header(message, "factlib_redrive") != null) {
            restoreRedriven(header(message, "event_id"));
        }
    }

    /** Puts back what was stored. A lower position than the one that is known changes nothing. */
    public void restore(Place place, String position) {
        highest.merge(place, position, (one, other) -> one.compareTo(other) >= 0 ? one : other);
    }

    /** Puts back the id of a redriven record. */
    public void restoreRedriven(String eventId) {
        redriven.add(eventId);
    }

    /** What is to be stored: the highest position of each place. */
    public Map<Place, String> highest() {
        return Map.copyOf(highest);
    }

    private static Place place(ConsumerRecord<?, ?> message) {
        String source = header(message, "factlib_source");
        return new Place(message.topic(), message.partition(), source == null ? "" : source);
    }

    private static String header(ConsumerRecord<?, ?> message, String name) {
        for (Header header : message.headers().headers(name)) {
            return header.value() == null ? "" : new String(header.value(), StandardCharsets.UTF_8);
        }
        return null;
    }
}
