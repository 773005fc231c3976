// Command facts prints the facts of topics as JSON lines, each once, from the beginning on. It is the smallest whole
// consumer: a program that works on facts does its work where this one prints.
//
//	go run factlib.dev/clients/go/consumer/cmd/facts -brokers localhost:9092 orders.order
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"factlib.dev/clients/go/consumer"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A line is what is printed of a fact. Bytes are base64.
type line struct {
	Topic         string            `json:"topic"`
	Partition     int32             `json:"partition"`
	Offset        int64             `json:"offset"`
	Position      string            `json:"position"`
	Source        string            `json:"source"`
	Key           []byte            `json:"key"`
	ID            string            `json:"id"`
	AggregateType string            `json:"aggregate_type"`
	AggregateID   string            `json:"aggregate_id"`
	EventType     string            `json:"event_type"`
	Payload       []byte            `json:"payload"`
	CreatedAt     int64             `json:"created_at"`
	Metadata      map[string]string `json:"metadata"`
	TraceID       string            `json:"trace_id"`
	SpanID        string            `json:"span_id"`
	TraceMetadata map[string]string `json:"trace_metadata"`
}

func main() {
	brokers := flag.String("brokers", "localhost:9092", "brokers to ask first, comma separated")
	records := flag.Int("records", 0, "end after so many records, repeats included; 0 goes on until SIGTERM")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, strings.Split(*brokers, ","), flag.Args(), *records); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, brokers, topics []string, records int) error {
	if len(topics) == 0 {
		return fmt.Errorf("no topic is named")
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(brokers...),
		kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	)
	if err != nil {
		return err
	}
	defer client.Close()

	var positions consumer.Positions
	out := json.NewEncoder(os.Stdout)
	read, repeats := 0, 0
	defer func() { fmt.Fprintf(os.Stderr, "read %d records, %d of them repeats\n", read, repeats) }()
	for records == 0 || read < records {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		// Only what the client cannot get over by itself is told.
		if errs := fetches.Errors(); len(errs) > 0 {
			return fmt.Errorf("partition %d of topic %q: %w", errs[0].Partition, errs[0].Topic, errs[0].Err)
		}
		for _, record := range fetches.Records() {
			read++
			if positions.IsRepeat(record) {
				repeats++
				continue
			}
			fact, err := consumer.Read(record)
			if err != nil {
				return err
			}
			// The work.
			if err := out.Encode(toLine(fact)); err != nil {
				return err
			}
			positions.Keep(record)
		}
	}
	return nil
}

func toLine(fact *consumer.Fact) line {
	event, trace := fact.Event, fact.Event.GetTraceInfo()
	return line{
		Topic:         fact.Record.Topic,
		Partition:     fact.Record.Partition,
		Offset:        fact.Record.Offset,
		Position:      fact.Position,
		Source:        fact.Source,
		Key:           fact.Record.Key,
		ID:            fact.ID,
		AggregateType: event.GetAggregateType(),
		AggregateID:   event.GetAggregateId(),
		EventType:     event.GetEventType(),
		Payload:       event.GetPayload(),
		CreatedAt:     event.GetCreatedAt(),
		Metadata:      event.GetMetadata(),
		TraceID:       trace.GetTraceId(),
		SpanID:        trace.GetSpanId(),
		TraceMetadata: trace.GetMetadata(),
	}
}
