//! One server for all tests; each has a prefix and a slot of its own.

use std::path::Path;
use std::sync::OnceLock;
use testkit::Postgres;
use testkit::envelope::OutboxEvent;

/// The server, with `sql/factlib.sql` in it.
pub(crate) fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = Postgres::builder().start();
        install(&server);
        server
            .client()
            .batch_execute("CREATE TABLE orders (id text PRIMARY KEY); CREATE PUBLICATION facts")
            .unwrap();
        server
    })
}

/// Makes the SQL functions.
pub(crate) fn install(server: &Postgres) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql/factlib.sql");
    let sql = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    server.client().batch_execute(&sql).unwrap();
}

pub(crate) fn url() -> String {
    server().url()
}

/// A slot, and what it tells of one prefix.
pub(crate) struct Slot {
    name: String,
}

/// A message as the slot tells it.
#[derive(Debug, PartialEq)]
pub(crate) struct Told {
    pub(crate) lsn: String,
    pub(crate) transactional: bool,
    pub(crate) content: Vec<u8>,
}

impl Told {
    /// Read by somebody else's protobuf library.
    pub(crate) fn event(&self) -> OutboxEvent {
        OutboxEvent::from_bytes(&self.content).unwrap()
    }
}

impl Slot {
    /// The name is the prefix, too.
    pub(crate) fn new(name: &str) -> Self {
        let sql = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')::text";
        server().client().query_one(sql, &[&name]).unwrap();
        Self { name: name.to_owned() }
    }

    /// What was committed since the last call, of this prefix. It is confirmed with that.
    pub(crate) fn told(&self) -> Vec<Told> {
        let sql = "SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL,
                       'proto_version', '1', 'publication_names', 'facts', 'messages', 'true')";
        let rows = server().client().query(sql, &[&self.name]).unwrap();
        let mut told = Vec::new();
        for row in &rows {
            // Byte1('M') Int8 flags, Int64 LSN, String prefix, Int32 length, content.
            let data: &[u8] = row.get(0);
            let Some((b'M', rest)) = data.split_first() else { continue };
            let (flags, rest) = rest.split_first().unwrap();
            let (lsn, rest) = rest.split_first_chunk().unwrap();
            let nul = rest.iter().position(|byte| *byte == 0).unwrap();
            if rest[..nul] == *self.name.as_bytes() {
                let lsn = u64::from_be_bytes(*lsn);
                told.push(Told {
                    lsn: format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff),
                    transactional: *flags == 1,
                    content: rest[nul + 5..].to_vec(),
                });
            }
        }
        told
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // A test that has failed says why itself.
        if let Ok(mut client) = server().try_client() {
            let _ = client.execute("SELECT pg_drop_replication_slot($1)", &[&self.name]);
        }
    }
}

/// How many orders have this id.
pub(crate) fn orders(id: &str) -> i64 {
    let sql = "SELECT count(*) FROM orders WHERE id = $1";
    server().client().query_one(sql, &[&id]).unwrap().get(0)
}
