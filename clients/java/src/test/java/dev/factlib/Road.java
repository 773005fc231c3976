package dev.factlib;

import com.google.gson.Gson;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.time.Duration;
import java.time.OffsetDateTime;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.postgresql.util.PSQLException;

/**
 * Facts as JSON lines on standard input, emitted each in one transaction; or a topic, read to its end, each fact once.
 * Driven by tests/it/clients.rs.
 *
 * <pre>
 * Road emit jdbc commit      (JDBC_URL)
 * Road consume BOOTSTRAP TOPIC
 * </pre>
 */
public final class Road {
    private Road() {}

    public static void main(String[] arguments) throws Exception {
        if (arguments[0].equals("consume")) {
            consume(arguments[1], arguments[2]);
        } else {
            emit(arguments[2].equals("commit"));
        }
    }

    private static void emit(boolean commit) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        try (Connection connection = DriverManager.getConnection(System.getenv("JDBC_URL"))) {
            try {
                Facts.emit(connection, new Fact("order", "1", "in auto-commit mode"));
                throw new AssertionError("a fact was emitted outside of a transaction");
            } catch (IllegalStateException expected) {
                connection.setAutoCommit(false);
            }
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                Fact fact = fact(JsonParser.parseString(line).getAsJsonObject());
                try {
                    Facts.Emitted emitted = Facts.emit(connection, fact);
                    if (commit) {
                        connection.commit();
                    } else {
                        connection.rollback();
                    }
                    String wait = Facts.waitLsn(connection);
                    say(Map.of("id", emitted.id(), "lsn", emitted.lsn(), "wait", wait));
                } catch (PSQLException e) {
                    say(Map.of("sqlstate", e.getSQLState(), "message", e.getServerErrorMessage().getMessage()));
                } catch (SQLException e) {
                    throw new AssertionError("not the server's", e);
                }
                connection.rollback();
            }
        }
    }

    private static Fact fact(JsonObject line) {
        Fact fact = new Fact(text(line, "aggregate_type"), text(line, "aggregate_id"), text(line, "event_type"));
        JsonElement payload = line.get("payload");
        if (payload != null) {
            JsonObject of = payload.getAsJsonObject();
            if (of.has("bytes")) {
                fact.payload(Base64.getDecoder().decode(text(of, "bytes")));
            } else if (of.has("text")) {
                fact.payload(text(of, "text"));
            } else if (of.has("json")) {
                fact.json(of.get("json").toString());
            }
        }
        if (line.has("metadata")) {
            line.getAsJsonObject("metadata").asMap().forEach((key, value) -> fact.metadata(key, value.getAsString()));
        }
        String createdAt = text(line, "created_at");
        return fact.prefix(text(line, "prefix"))
                .id(text(line, "id"))
                .createdAt(createdAt == null ? null : time(createdAt).toInstant())
                .trace(text(line, "traceparent"), text(line, "tracestate"));
    }

    private static OffsetDateTime time(String text) {
        // Years of more than four digits have a sign.
        return OffsetDateTime.parse(text.indexOf('-') > 4 ? "+" + text : text);
    }

    private static String text(JsonObject object, String name) {
        return object.has(name) ? object.get(name).getAsString() : null;
    }

    private static void consume(String bootstrap, String topic) {
        Map<String, Object> settings = Map.of("bootstrap.servers", bootstrap);
        ByteArrayDeserializer bytes = new ByteArrayDeserializer();
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(settings, bytes, bytes)) {
            List<TopicPartition> partitions = consumer.partitionsFor(topic).stream()
                    .map(partition -> new TopicPartition(topic, partition.partition()))
                    .toList();
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            Positions positions = new Positions();
            while (partitions.stream().anyMatch(partition -> consumer.position(partition) < ends.get(partition))) {
                for (ConsumerRecord<byte[], byte[]> message : consumer.poll(Duration.ofSeconds(1))) {
                    if (!positions.isRepeat(message)) {
                        say(said(message.partition(), OutboxEvent.decode(message.value())));
                        positions.keep(message);
                    }
                }
            }
        }
    }

    private static Map<String, Object> said(int partition, OutboxEvent event) {
        Map<String, Object> said = new LinkedHashMap<>();
        said.put("partition", partition);
        said.put("id", event.id);
        said.put("aggregate_type", event.aggregateType);
        said.put("aggregate_id", event.aggregateId);
        said.put("event_type", event.eventType);
        said.put("payload", Base64.getEncoder().encodeToString(event.payload));
        said.put("created_at", event.createdAt);
        said.put("metadata", event.metadata);
        said.put("trace_id", event.traceId);
        said.put("span_id", event.spanId);
        said.put("trace_metadata", event.traceMetadata);
        return said;
    }

    private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);

    private static void say(Map<String, ?> said) {
        OUT.println(new Gson().toJson(said));
    }
}
