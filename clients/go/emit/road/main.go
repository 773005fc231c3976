// Command road emits facts, as JSON lines on standard input, each in one transaction, by the adapter that is named.
// Driven by tests/it/clients.rs.
//
//	road emit pgx commit      (DATABASE_URL)
package main

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib"

	"factlib.dev/clients/go/emit"
)

type line struct {
	AggregateType string `json:"aggregate_type"`
	AggregateID   string `json:"aggregate_id"`
	EventType     string `json:"event_type"`
	Payload       struct {
		Bytes []byte          `json:"bytes"`
		Text  *string         `json:"text"`
		JSON  json.RawMessage `json:"json"`
	} `json:"payload"`
	Metadata    map[string]string `json:"metadata"`
	Prefix      string            `json:"prefix"`
	ID          string            `json:"id"`
	CreatedAt   moment            `json:"created_at"`
	Traceparent string            `json:"traceparent"`
	Tracestate  string            `json:"tracestate"`
}

// moment is a time in a line. Its year may have more digits than encoding/json takes.
type moment struct{ time.Time }

func (m *moment) UnmarshalJSON(quoted []byte) error {
	year, rest, _ := strings.Cut(strings.Trim(string(quoted), `"`), "-")
	number, err := strconv.Atoi(year)
	if err != nil {
		return err
	}
	// A leap year has every day.
	at, err := time.Parse(time.RFC3339Nano, "2000-"+rest)
	m.Time = time.Date(number, at.Month(), at.Day(), at.Hour(), at.Minute(), at.Second(), at.Nanosecond(), at.Location())
	return err
}

func (l line) fact() emit.Fact {
	fact := emit.Fact{AggregateType: l.AggregateType, AggregateID: l.AggregateID, EventType: l.EventType,
		Metadata: l.Metadata, Prefix: l.Prefix, ID: l.ID, CreatedAt: l.CreatedAt.Time,
		Traceparent: l.Traceparent, Tracestate: l.Tracestate}
	switch {
	case l.Payload.Bytes != nil:
		fact.Payload = l.Payload.Bytes
	case l.Payload.Text != nil:
		fact.Payload = *l.Payload.Text
	case l.Payload.JSON != nil:
		fact.Payload = l.Payload.JSON
	}
	return fact
}

func main() {
	ctx := context.Background()
	adapter, commit := os.Args[2], os.Args[3] == "commit"
	road := map[string]func(context.Context, bool) func(emit.Fact) (emit.Emitted, string, error){
		"pgx": byPgx, "sql": bySQL,
	}[adapter](ctx, commit)
	out := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var l line
		must(json.Unmarshal(lines.Bytes(), &l))
		emitted, wait, err := road(l.fact())
		var refused *pgconn.PgError
		switch {
		case errors.As(err, &refused):
			must(out.Encode(map[string]string{"sqlstate": refused.Code, "message": refused.Message}))
		case err != nil:
			log.Fatal(err)
		default:
			must(out.Encode(map[string]string{"id": emitted.ID, "lsn": emitted.LSN, "wait": wait}))
		}
	}
	must(lines.Err())
}

func byPgx(ctx context.Context, commit bool) func(emit.Fact) (emit.Emitted, string, error) {
	connection, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	must(err)
	if _, err := emit.Pgx(ctx, connection, emit.Fact{}); !errors.Is(err, emit.ErrNoTransaction) {
		log.Fatalf("a connection was taken for a transaction: %v", err)
	}
	return func(fact emit.Fact) (emitted emit.Emitted, wait string, err error) {
		tx, err := connection.Begin(ctx)
		must(err)
		defer tx.Rollback(ctx)
		if emitted, err = emit.Pgx(ctx, tx, fact); err != nil {
			return
		}
		if commit {
			must(tx.Commit(ctx))
		} else {
			must(tx.Rollback(ctx))
		}
		wait, err = emit.WaitLSN(ctx, connection)
		return
	}
}

func bySQL(ctx context.Context, commit bool) func(emit.Fact) (emit.Emitted, string, error) {
	db, err := sql.Open("pgx", os.Getenv("DATABASE_URL"))
	must(err)
	if _, err := emit.SQL(ctx, db, emit.Fact{}); !errors.Is(err, emit.ErrNoTransaction) {
		log.Fatalf("a pool was taken for a transaction: %v", err)
	}
	return func(fact emit.Fact) (emitted emit.Emitted, wait string, err error) {
		tx, err := db.BeginTx(ctx, nil)
		must(err)
		defer tx.Rollback()
		if emitted, err = emit.SQL(ctx, tx, fact); err != nil {
			return
		}
		if commit {
			must(tx.Commit())
		} else {
			must(tx.Rollback())
		}
		wait, err = emit.WaitLSNSQL(ctx, db)
		return
	}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
