// Package emit commits facts with your rows, or not at all: a thin call of the SQL function factlib.emit.
//
//	emitted, err := emit.Pgx(ctx, tx, emit.Fact{AggregateType: "order", AggregateID: "42", EventType: "paid"})
//
// It imports no driver: Pgx takes pgx's transactions, SQL those of database/sql.
package emit

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
)

// Fact is what is emitted. Its zero fields are left to the server.
type Fact struct {
	AggregateType string // names the topic, together with the prefix
	AggregateID   string // the record's key
	EventType     string // what happened
	// Payload is as it is if it is []byte or string, and absent if it is nil. Anything else becomes JSON by
	// json.Marshal, as jsonb writes it; JSON that you have already is a json.RawMessage.
	Payload     any
	Metadata    map[string]string
	Prefix      string    // none: the setting factlib.prefix
	ID          string    // none: a UUIDv7
	CreatedAt   time.Time // none: now
	Traceparent string    // W3C; holds for the rest of the transaction
	Tracestate  string
}

// Emitted is what the server says of an emitted fact.
type Emitted struct {
	ID string
	// LSN is where its message lies in the log: for tracing. To wait for publication take WaitLSN after the commit.
	LSN string
}

// Row is a row of pgx or of database/sql.
type Row interface{ Scan(dest ...any) error }

// Querier is a transaction of pgx, or what wraps one.
type Querier[R Row] interface {
	QueryRow(ctx context.Context, sql string, args ...any) R
}

// SQLQuerier is a transaction of database/sql, or what wraps one.
type SQLQuerier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// ErrNoTransaction says that a pool or a connection was given where a transaction is needed: the fact would have
// been committed alone, whatever becomes of your rows.
var ErrNoTransaction = errors.New("emit needs the transaction that changes your rows, and this is a connection or a pool")

// Pgx emits a fact in a transaction of pgx (pgx.Tx). Errors of the server are *pgconn.PgError.
func Pgx[R Row](ctx context.Context, tx Querier[R], fact Fact) (Emitted, error) {
	return emit(tx, fact, func(query string, args []any) Row { return tx.QueryRow(ctx, query, args...) })
}

// SQL emits a fact in a transaction of database/sql (*sql.Tx). Errors of the server are the driver's.
func SQL(ctx context.Context, tx SQLQuerier, fact Fact) (Emitted, error) {
	return emit(tx, fact, func(query string, args []any) Row { return tx.QueryRowContext(ctx, query, args...) })
}

const waitLSN = "SELECT pg_current_wal_insert_lsn()::text"

// WaitLSN is the position up to which to wait, with `owlpost wait --lsn` or /wait, for what is committed by now. Call
// it after the commit, on the connection or the pool: before it, the position does not cover the transaction.
func WaitLSN[R Row](ctx context.Context, connection Querier[R]) (lsn string, err error) {
	err = connection.QueryRow(ctx, waitLSN).Scan(&lsn)
	return lsn, err
}

// WaitLSNSQL is WaitLSN for database/sql.
func WaitLSNSQL(ctx context.Context, connection SQLQuerier) (lsn string, err error) {
	err = connection.QueryRowContext(ctx, waitLSN).Scan(&lsn)
	return lsn, err
}

func emit(tx any, fact Fact, query func(string, []any) Row) (Emitted, error) {
	if !inTransaction(tx) {
		return Emitted{}, ErrNoTransaction
	}
	statement, args, err := fact.statement()
	if err != nil {
		return Emitted{}, err
	}
	var emitted Emitted
	err = query(statement, args).Scan(&emitted.ID, &emitted.LSN)
	return emitted, err
}

// inTransaction is false for what can begin a transaction and cannot commit one: pools and connections.
func inTransaction(tx any) bool {
	switch tx.(type) {
	case interface{ Commit() error }, interface{ Commit(context.Context) error }:
		return true
	case interface {
		BeginTx(context.Context, *sql.TxOptions) (*sql.Tx, error)
	}, interface{ Ping(context.Context) error }:
		return false
	}
	return true
}

func (fact Fact) statement() (string, []any, error) {
	var payload any
	kind := "text"
	switch given := fact.Payload.(type) {
	case nil:
	case []byte:
		if given != nil {
			payload, kind = given, "bytea"
		}
	case string:
		payload = given
	default:
		text, err := json.Marshal(given)
		if err != nil {
			return "", nil, fmt.Errorf("payload as JSON: %w", err)
		}
		payload, kind = string(text), "text::jsonb"
	}
	metadata, err := metadataJSON(fact.Metadata)
	if err != nil {
		return "", nil, err
	}
	args := []any{fact.AggregateType, fact.AggregateID, fact.EventType, payload, metadata,
		orNull(fact.Prefix, fact.Prefix == ""), orNull(fact.ID, fact.ID == ""), orNull(fact.CreatedAt, fact.CreatedAt.IsZero())}
	first := "$1::text"
	if fact.Traceparent != "" {
		// Arguments are evaluated before the function runs, and it reads these settings.
		first = `CASE WHEN set_config('factlib.traceparent', $9::text, true) ||
			set_config('factlib.tracestate', $10::text, true) IS NOT NULL THEN $1::text END`
		args = append(args, fact.Traceparent, fact.Tracestate)
	}
	return fmt.Sprintf(`SELECT id, lsn::text FROM factlib.emit(%s, $2::text, $3::text, $4::%s, $5::text::jsonb,
		$6::text, $7::text, $8::timestamptz)`, first, kind), args, nil
}

func metadataJSON(metadata map[string]string) (string, error) {
	if len(metadata) == 0 {
		return "{}", nil
	}
	for key, value := range metadata {
		// json.Marshal would put other characters in their place.
		if !utf8.ValidString(key) || !utf8.ValidString(value) {
			return "", fmt.Errorf("metadata is not UTF-8: %q: %q", key, value)
		}
	}
	text, err := json.Marshal(metadata)
	return string(text), err
}

func orNull(value any, null bool) any {
	if null {
		return nil
	}
	return value
}
