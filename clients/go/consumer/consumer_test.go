package consumer

import (
	"testing"

	"factlib.dev/clients/go/outboxpb"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
)

func record(partition int32, source, position string) *kgo.Record {
	headers := []kgo.RecordHeader{{Key: HeaderSource, Value: []byte(source)}}
	if position != "" {
		headers = append(headers, kgo.RecordHeader{Key: HeaderPosition, Value: []byte(position)})
	}
	return &kgo.Record{Topic: "orders.order", Partition: partition, Headers: headers}
}

func TestARepeatIsWhatIsNotAboveTheHighestOfItsPlace(t *testing.T) {
	const low, high = "00000001.0000000001922b80.1.00000001", "00000001.0000000001922c00.1.00000000"
	var positions Positions
	steps := []struct {
		record   *kgo.Record
		isRepeat bool
	}{
		{record(0, "7/5", low), false},
		{record(0, "7/5", low), true},
		{record(0, "7/5", high), false},
		{record(0, "7/5", low), true},
		{record(0, "7/5", high), true},
		{record(1, "7/5", low), false},
		{record(0, "8/5", low), false},
		// What was redriven has no position, and leaves the others alone.
		{record(0, "7/5", ""), false},
		{record(0, "7/5", ""), false},
		{record(0, "7/5", high), true},
		// A failover goes on at a lower LSN of a later timeline.
		{record(0, "7/5", "00000002.0000000001000000.1.00000000"), false},
	}
	for step, expected := range steps {
		if isRepeat := positions.IsRepeat(expected.record); isRepeat != expected.isRepeat {
			t.Errorf("step %d: a repeat: %v", step, isRepeat)
		} else if !isRepeat {
			positions.Keep(expected.record)
		}
	}
}

func TestPositionsAreKeptFromOneProcessToTheNext(t *testing.T) {
	var before, after Positions
	kept := record(3, "7/5", "00000001.0000000001922b80.1.00000001")
	where, position := before.Keep(kept)
	if where != (Place{"orders.order", 3, "7/5"}) || position != Header(kept, HeaderPosition) {
		t.Errorf("%v %v", where, position)
	}
	after.Restore(where, position)
	after.Restore(where, "00000001.0000000000000000.1.00000000")
	if !after.IsRepeat(kept) {
		t.Error("what was restored is forgotten")
	}
}

func TestJSONAndProtobufSayTheSame(t *testing.T) {
	expected := &outboxpb.OutboxEvent{
		Id:            "f-1",
		AggregateType: "order",
		AggregateId:   "42",
		EventType:     "paid",
		Payload:       []byte(`{"by": [1, "card"]}`),
		CreatedAt:     1_764_000_000_000_000,
		Metadata:      map[string]string{"tenant": "a"},
		TraceInfo:     &outboxpb.TraceInfo{TraceId: "t", SpanId: "s", Metadata: map[string]string{"k": "v"}},
	}
	bytes, err := proto.Marshal(expected)
	if err != nil {
		t.Fatal(err)
	}
	envelopes := [][]byte{
		bytes,
		[]byte(`{"id":"f-1","aggregate_type":"order","aggregate_id":"42","event_type":"paid",
			"payload":{"by": [1, "card"]},"created_at":1764000000000000,"metadata":{"tenant":"a"},
			"trace_info":{"trace_id":"t","span_id":"s","metadata":{"k":"v"}},"unknown":1}`),
		[]byte(`{"id":"f-1","aggregate_type":"order","aggregate_id":"42","event_type":"paid",
			"payload_base64":"eyJieSI6IFsx\nLCAiY2FyZCJdfQ==","created_at":1764000000000000,"metadata":{"tenant":"a"},
			"trace_info":{"trace_id":"t","span_id":"s","metadata":{"k":"v"}}}`),
	}
	for _, envelope := range envelopes {
		event, err := Envelope(envelope)
		if err != nil || !proto.Equal(event, expected) {
			t.Errorf("%s\n%v %v", envelope, event, err)
		}
	}
}

func TestAnEmptyPayloadIsEmptyHoweverItIsSaid(t *testing.T) {
	for _, member := range []string{``, `,"payload":null`, `,"payload_base64":""`, `,"created_at":"yesterday"`} {
		event, err := Envelope([]byte(`{"aggregate_type":"order"` + member + `}`))
		if err != nil || len(event.GetPayload()) != 0 || event.GetCreatedAt() != 0 {
			t.Errorf("%s: %v %v", member, event, err)
		}
	}
}

func TestWhatIsNoEnvelopeIsAnError(t *testing.T) {
	for _, content := range []string{"", "junk", "{", `{"id":1}`, `{"payload_base64":"*"}`} {
		if _, err := Read(&kgo.Record{Value: []byte(content)}); err == nil {
			t.Errorf("%q was read", content)
		}
	}
}
