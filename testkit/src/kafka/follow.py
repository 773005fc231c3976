"""What Follow.java does, with librdkafka: see there."""

import os
import struct
import sys
import threading
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

# Between two looks at which partitions there are, in seconds.
LOOK = 1.0
# A broker that is silent is not waited for.
PATIENCE = 4.0
# Who is lost in a log ends, and does not begin anew.
FINAL = {KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION, KafkaError._FATAL}

asked = 0


def count_questions():
    global asked
    for _ in sys.stdin.buffer:
        asked += 1
    # Whoever asks is gone.
    os._exit(0)


def packed(data):
    return struct.pack(">i", -1) if data is None else struct.pack(">i", len(data)) + data


def write(out, topic, record):
    _, timestamp = record.timestamp()
    out.write(b"r" + struct.pack(">iiqq", topic, record.partition(), record.offset(), timestamp))
    out.write(packed(record.key()))
    out.write(packed(record.value()))
    headers = record.headers() or []
    out.write(struct.pack(">i", len(headers)))
    for name, value in headers:
        out.write(packed(name.encode()) + packed(value))


def follow(consumer, topics, out):
    # The next offset of each partition, of which what is aborted and what ends transactions is no record.
    following = {}
    looked, ends, answered = 0.0, None, 0

    def look():
        described = [(topic, consumer.list_topics(topic, timeout=PATIENCE).topics[topic]) for topic in topics]
        found = {(topic, partition) for topic, it in described for partition in it.partitions}
        if found - following.keys():
            for place in found:
                following.setdefault(place, OFFSET_BEGINNING)
            consumer.assign([TopicPartition(*place, offset) for place, offset in following.items()])

    def end(place):
        _, offset = consumer.get_watermark_offsets(TopicPartition(*place), timeout=PATIENCE)
        return offset

    while True:
        asks = ends is None and asked > answered
        try:
            if asks or time.monotonic() >= looked + LOOK:
                look()
                looked = time.monotonic()
            if asks:
                ends = {place: end(place) for place in list(following)}
        except KafkaException as away:
            print(away, file=sys.stderr)
        for record in consumer.consume(500, timeout=0.1):
            error, place = record.error(), (record.topic(), record.partition())
            if error is None:
                write(out, topics.index(record.topic()), record)
                following[place] = record.offset() + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                following[place] = max(following[place], record.offset())
            elif error.code() in FINAL:
                sys.exit(f"{place}: {error}")
            else:
                print(place, error, file=sys.stderr)
        if ends is not None and all(following[place] >= offset for place, offset in ends.items()):
            ends = None
            answered += 1
            out.write(b"e")
        out.flush()


if __name__ == "__main__":
    threading.Thread(target=count_questions, daemon=True).start()
    bootstrap, isolation, *names = sys.argv[1:]
    settings = {
        "bootstrap.servers": bootstrap,
        "group.id": "follow",
        "isolation.level": isolation,
        "auto.offset.reset": "error",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "fetch.wait.max.ms": 100,
        "fetch.message.max.bytes": 4 << 20,
        "queued.max.messages.kbytes": 16 << 10,
        "socket.timeout.ms": int(PATIENCE * 1000),
        "reconnect.backoff.max.ms": 500,
        "topic.metadata.refresh.interval.ms": 1000,
        # What it says of brokers that are away fills the disk.
        "log_level": 2,
    }
    follow(Consumer(settings), names, sys.stdout.buffer)
