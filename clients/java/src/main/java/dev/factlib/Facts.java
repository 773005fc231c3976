package dev.factlib;

import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.time.ZoneOffset;
import java.util.Map;

/** Facts that are committed with your rows, or not at all: a thin call of the SQL function {@code factlib.emit}. */
public final class Facts {
    /**
     * What the server says of an emitted fact.
     *
     * @param lsn where its message lies in the log: for tracing. To wait for publication take {@link #waitLsn} after the
     *     commit
     */
    public record Emitted(String id, String lsn) {}

    private Facts() {}

    /**
     * Emits a fact in the connection's transaction.
     *
     * @throws SQLException what the server says; {@code getSQLState()} tells errors apart
     * @throws IllegalStateException if the connection is in auto-commit mode, so that the fact would have been committed
     *     alone, whatever becomes of your rows
     */
    public static Emitted emit(Connection connection, Fact fact) throws SQLException {
        if (connection.getAutoCommit()) {
            throw new IllegalStateException("emit needs the transaction that changes your rows: setAutoCommit(false)");
        }
        // Arguments are evaluated before the function runs, and it reads these settings.
        String first = fact.traceparent == null
                ? "CAST(? AS text)"
                : "CASE WHEN set_config('factlib.traceparent', ?, true) || set_config('factlib.tracestate', ?, true)"
                        + " IS NOT NULL THEN CAST(? AS text) END";
        String statement = "SELECT id, CAST(lsn AS text) FROM factlib.emit(" + first
                + ", CAST(? AS text), CAST(? AS text), CAST(? AS " + fact.payloadType
                + "), jsonb_object(?, ?), CAST(? AS text), CAST(? AS text), CAST(? AS timestamptz))";
        try (PreparedStatement prepared = connection.prepareStatement(statement)) {
            int n = 0;
            if (fact.traceparent != null) {
                prepared.setString(++n, fact.traceparent);
                prepared.setString(++n, fact.tracestate == null ? "" : fact.tracestate);
            }
            prepared.setString(++n, fact.aggregateType);
            prepared.setString(++n, fact.aggregateId);
            prepared.setString(++n, fact.eventType);
            if (fact.payloadType.equals("bytea")) {
                prepared.setBytes(++n, fact.bytes);
            } else {
                prepared.setString(++n, fact.text);
            }
            Map<String, String> metadata = fact.metadata;
            prepared.setArray(++n, connection.createArrayOf("text", metadata.keySet().toArray()));
            prepared.setArray(++n, connection.createArrayOf("text", metadata.values().toArray()));
            prepared.setString(++n, fact.prefix);
            prepared.setString(++n, fact.id);
            prepared.setObject(++n, fact.createdAt == null ? null : fact.createdAt.atOffset(ZoneOffset.UTC));
            try (ResultSet result = prepared.executeQuery()) {
                result.next();
                return new Emitted(result.getString(1), result.getString(2));
            }
        }
    }

    /**
     * The position up to which to wait, with {@code owlpost wait --lsn} or {@code /wait}, for what is committed by now.
     * Call it after the commit: before it, the position does not cover the transaction. It begins a transaction, unless
     * the connection is in auto-commit mode: end it before you wait.
     */
    public static String waitLsn(Connection connection) throws SQLException {
        try (PreparedStatement prepared = connection.prepareStatement("SELECT CAST(pg_current_wal_insert_lsn() AS text)");
                ResultSet result = prepared.executeQuery()) {
            result.next();
            return result.getString(1);
        }
    }
}
