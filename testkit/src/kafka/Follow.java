import java.io.BufferedOutputStream;
import java.io.DataOutputStream;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.RetriableException;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Follows topics from their beginning, in what is visible at this isolation level, while brokers come and go. Writes each record, and for
 * each line that it reads, once everything is written that was visible then, a mark. Numbers are big-endian; bytes follow
 * their length, which is -1 for null.
 */
class Follow {
    private static final DataOutputStream OUT =
        new DataOutputStream(new BufferedOutputStream(new FileOutputStream(FileDescriptor.out), 1 << 16));

    public static void main(String[] arguments) throws IOException {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", arguments[0]);
        settings.put("isolation.level", arguments[1]);
        // Who is lost in a log ends, and does not begin anew.
        settings.put("auto.offset.reset", "none");
        settings.put("metadata.max.age.ms", "1000");
        // A broker that is silent is not waited for.
        settings.put("request.timeout.ms", "4000");
        settings.put("default.api.timeout.ms", "4000");
        settings.put("reconnect.backoff.max.ms", "500");
        settings.put("fetch.max.bytes", 16 << 20);
        settings.put("max.partition.fetch.bytes", 4 << 20);
        List<String> topics = List.of(arguments).subList(2, arguments.length);
        AtomicInteger asked = new AtomicInteger();
        Thread questions = new Thread(() -> {
            try {
                for (int next; (next = System.in.read()) >= 0; ) {
                    asked.addAndGet(next == '\n' ? 1 : 0);
                }
            } catch (IOException e) {
                System.err.println(e);
            }
            // Whoever asks is gone.
            Runtime.getRuntime().halt(0);
        });
        questions.setDaemon(true);
        questions.start();
        ByteArrayDeserializer bytes = new ByteArrayDeserializer();
        try (var consumer = new KafkaConsumer<byte[], byte[]>(settings, bytes, bytes)) {
            follow(consumer, topics, asked);
        }
    }

    private static void follow(KafkaConsumer<byte[], byte[]> consumer, List<String> topics, AtomicInteger asked)
        throws IOException {
        Set<TopicPartition> known = new HashSet<>();
        Map<TopicPartition, Long> ends = null;
        int answered = 0;
        while (true) {
            try {
                look(consumer, topics, known);
                if (ends == null && asked.get() > answered) {
                    ends = consumer.endOffsets(known);
                }
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(100))) {
                    write(topics.indexOf(record.topic()), record);
                }
                if (ends != null && ends.entrySet().stream().allMatch(end -> consumer.position(end.getKey()) >= end.getValue())) {
                    ends = null;
                    answered += 1;
                    OUT.writeByte('e');
                }
            } catch (RetriableException e) {
                // A broker is away.
                System.err.println(e);
            }
            OUT.flush();
        }
    }

    /** Goes on with the partitions that there are, from the beginning of new ones. */
    private static void look(KafkaConsumer<?, ?> consumer, List<String> topics, Set<TopicPartition> known) {
        Set<TopicPartition> added = new HashSet<>();
        for (String topic : topics) {
            consumer.partitionsFor(topic).forEach(info -> added.add(new TopicPartition(topic, info.partition())));
        }
        added.removeAll(known);
        if (!added.isEmpty()) {
            known.addAll(added);
            consumer.assign(known);
            consumer.seekToBeginning(added);
        }
    }

    private static void write(int topic, ConsumerRecord<byte[], byte[]> record) throws IOException {
        OUT.writeByte('r');
        OUT.writeInt(topic);
        OUT.writeInt(record.partition());
        OUT.writeLong(record.offset());
        OUT.writeLong(record.timestamp());
        write(record.key());
        write(record.value());
        Header[] headers = record.headers().toArray();
        OUT.writeInt(headers.length);
        for (Header header : headers) {
            write(header.key().getBytes(StandardCharsets.UTF_8));
            write(header.value());
        }
    }

    private static void write(byte[] bytes) throws IOException {
        OUT.writeInt(bytes == null ? -1 : bytes.length);
        if (bytes != null) {
            OUT.write(bytes);
        }
    }
}
