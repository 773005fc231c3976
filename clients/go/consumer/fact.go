// Package consumer reads the facts that owlpost publishes: what they say, and which of them are repeats.
package consumer

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"factlib.dev/clients/go/outboxpb"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
)

// Names of the headers that the relay writes, beside those of the trace.
const (
	HeaderEventID   = "event_id"
	HeaderEventType = "event_type"
	HeaderLSN       = "LSN"
	HeaderPosition  = "factlib_position"
	HeaderSource    = "factlib_source"
	HeaderRedrive   = "factlib_redrive"
	HeaderTraceID   = "trace_id"
	HeaderSpanID    = "span_id"
)

// A Fact is a record of the relay, read.
type Fact struct {
	// ID is the header event_id: the emitter's, or what the relay made where the emitter gave none. It is the same in
	// every repeat, and in what was redriven from dead letters.
	ID string
	// Event is the envelope as it was emitted; its Id may be empty, and its CreatedAt has the emitter's own unit.
	Event *outboxpb.OutboxEvent
	// Position and Source are empty in records of other relays, and in what was redriven.
	Position string
	Source   string
	// Record is where it comes from.
	Record *kgo.Record
}

// Read reads a record whose value is an envelope (KAFKA_VALUE=envelope, the default), protobuf or JSON.
func Read(record *kgo.Record) (*Fact, error) {
	event, err := Envelope(record.Value)
	if err != nil {
		return nil, fmt.Errorf("record %d of partition %d of %s: %w", record.Offset, record.Partition, record.Topic, err)
	}
	fact := &Fact{
		ID:       Header(record, HeaderEventID),
		Event:    event,
		Position: Header(record, HeaderPosition),
		Source:   Header(record, HeaderSource),
		Record:   record,
	}
	if fact.ID == "" {
		fact.ID = event.GetId()
	}
	return fact, nil
}

// Header is the first header of this name, or nothing.
func Header(record *kgo.Record, name string) string {
	for _, header := range record.Headers {
		if header.Key == name {
			return string(header.Value)
		}
	}
	return ""
}

// Envelope reads what pg_logical_emit_message was given. The first byte tells JSON from protobuf.
func Envelope(content []byte) (*outboxpb.OutboxEvent, error) {
	event := &outboxpb.OutboxEvent{}
	switch {
	case len(content) == 0:
		return nil, errors.New("the envelope is empty")
	case content[0] == '{':
		return fromJSON(content)
	}
	if err := proto.Unmarshal(content, event); err != nil {
		return nil, fmt.Errorf("not a protobuf OutboxEvent: %w", err)
	}
	return event, nil
}

type jsonEnvelope struct {
	ID            string            `json:"id"`
	AggregateType string            `json:"aggregate_type"`
	AggregateID   string            `json:"aggregate_id"`
	EventType     string            `json:"event_type"`
	Payload       json.RawMessage   `json:"payload"`
	PayloadBase64 string            `json:"payload_base64"`
	CreatedAt     json.RawMessage   `json:"created_at"`
	Metadata      map[string]string `json:"metadata"`
	TraceInfo     *struct {
		TraceID  string            `json:"trace_id"`
		SpanID   string            `json:"span_id"`
		Metadata map[string]string `json:"metadata"`
	} `json:"trace_info"`
}

// In JSON the payload is any value, passed on as its own text, or bytes in payload_base64.
func fromJSON(content []byte) (*outboxpb.OutboxEvent, error) {
	var envelope jsonEnvelope
	if err := json.Unmarshal(content, &envelope); err != nil {
		return nil, fmt.Errorf("not a JSON envelope: %w", err)
	}
	event := &outboxpb.OutboxEvent{
		Id:            envelope.ID,
		AggregateType: envelope.AggregateType,
		AggregateId:   envelope.AggregateID,
		EventType:     envelope.EventType,
		Metadata:      envelope.Metadata,
	}
	switch {
	case envelope.PayloadBase64 != "":
		// PostgreSQL's encode(..., 'base64') breaks lines.
		payload, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(envelope.PayloadBase64), ""))
		if err != nil {
			return nil, fmt.Errorf("not a JSON envelope: payload_base64: %w", err)
		}
		event.Payload = payload
	case string(envelope.Payload) != "null":
		event.Payload = envelope.Payload
	}
	// Emitters may write a time as text: it is in the record's value for whoever knows how to read it.
	if err := json.Unmarshal(envelope.CreatedAt, &event.CreatedAt); err != nil {
		event.CreatedAt = 0
	}
	if trace := envelope.TraceInfo; trace != nil {
		event.TraceInfo = &outboxpb.TraceInfo{TraceId: trace.TraceID, SpanId: trace.SpanID, Metadata: trace.Metadata}
	}
	return event, nil
}
