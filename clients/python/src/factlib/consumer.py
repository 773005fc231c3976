"""For consumers: the envelope, and which records are repeats."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

__all__ = ["OutboxEvent", "Positions", "decode"]

Headers = Iterable[tuple[str, bytes | None]] | None


class Positions:
    """The highest ``factlib_position`` of each topic, partition and ``factlib_source``, which is what tells a repeat.

    Ask ``is_repeat``, do the work, then ``keep``. What is kept here is gone when the process ends: store it with the
    work, in one transaction, and give it to the next consumer of the partition. Redriven dead letters have no position,
    and are told apart by their ids.
    """

    def __init__(
        self, highest: Mapping[tuple[str, int, str], str] | None = None, redriven: Iterable[str] = ()
    ) -> None:
        self.highest = dict(highest or {})
        self.redriven = set(redriven)

    def is_repeat(self, topic: str, partition: int, headers: Headers) -> bool:
        """Whether it was kept already. What neither has a position nor was redriven never is."""
        place, position, redriven = _place(topic, partition, headers)
        if position is not None:
            return position <= self.highest.get(place, "")
        return redriven in self.redriven

    def keep(self, topic: str, partition: int, headers: Headers) -> None:
        """Remembers the record, once its work is done."""
        place, position, redriven = _place(topic, partition, headers)
        if position is not None:
            self.highest[place] = max(position, self.highest.get(place, ""))
        elif redriven is not None:
            self.redriven.add(redriven)


def _place(topic: str, partition: int, headers: Headers) -> tuple[tuple[str, int, str], str | None, str | None]:
    found = {name: (value or b"").decode() for name, value in headers or () if name in _OURS}
    redriven = found.get("event_id") if "factlib_redrive" in found else None
    return (topic, partition, found.get("factlib_source", "")), found.get("factlib_position"), redriven


_OURS = {"event_id", "factlib_position", "factlib_redrive", "factlib_source"}


@dataclass(slots=True)
class OutboxEvent:
    """What was emitted."""

    id: str = ""
    aggregate_type: str = ""
    aggregate_id: str = ""
    event_type: str = ""
    payload: bytes = b""
    #: Microseconds since 1970, if ``factlib.emit`` wrote it.
    created_at: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    trace_id: str = ""
    span_id: str = ""
    #: ``traceparent``, ``tracestate``.
    trace_metadata: dict[str, str] = field(default_factory=dict)


def decode(envelope: bytes) -> OutboxEvent:
    """Reads an envelope as ``factlib.emit`` writes it (protobuf). ``ValueError`` if it is none."""
    event = OutboxEvent()
    for number, value in _fields(envelope):
        match number, value:
            case 1, bytes():
                event.id = value.decode()
            case 2, bytes():
                event.aggregate_type = value.decode()
            case 3, bytes():
                event.aggregate_id = value.decode()
            case 4, bytes():
                event.event_type = value.decode()
            case 5, bytes():
                event.payload = value
            case 6, int():
                event.created_at = value - (1 << 64) if value >> 63 else value
            case 7, bytes():
                _pair(value, event.metadata)
            case 8, bytes():
                for part, inner in _fields(value):
                    match part, inner:
                        case 1, bytes():
                            event.trace_id = inner.decode()
                        case 2, bytes():
                            event.span_id = inner.decode()
                        case 3, bytes():
                            _pair(inner, event.trace_metadata)
    return event


def _pair(entry: bytes, into: dict[str, str]) -> None:
    parts = {number: value for number, value in _fields(entry) if isinstance(value, bytes)}
    into[parts.get(1, b"").decode()] = parts.get(2, b"").decode()


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """A protobuf message's fields: https://protobuf.dev/programming-guides/encoding."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            if at >= len(message):
                raise ValueError("no envelope: it ends inside of a number")
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF
        raise ValueError("no envelope: a number has more than ten bytes")

    while at < len(message):
        tag = varint()
        wire = tag & 7
        if wire == 0:
            yield tag >> 3, varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"no envelope: wire type {wire}")
        length = varint() if wire == 2 else {1: 8, 5: 4}[wire]
        if length > len(message) - at:
            raise ValueError("no envelope: it ends inside of a field")
        at += length
        yield tag >> 3, message[at - length : at]
