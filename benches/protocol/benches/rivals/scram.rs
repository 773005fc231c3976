//! A SCRAM exchange, from the server's first message to the proof that it knows the password.

use base64::{Engine, prelude::BASE64_STANDARD};
use criterion::Criterion;
use factlib_protocol::auth::scram::ClientFirst;
use factlib_protocol_bench::{OURS, PGWIRE, POSTGRES, SCRAM};
use hmac::{Hmac, Mac};
use pgwire_replication::auth::scram::ScramClient;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use sha2::Sha256;

use crate::{group, keep, measure, seen};

const PASSWORD: &str = "pencil";
const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
const SALT: [u8; 16] = *b"sixteen of salt.";
const ITERATIONS: u32 = 4096;

/// What the server says: each side's proof is over the nonces, and only ours is fixed.
struct Server {
    key: Vec<u8>,
}

impl Server {
    fn new() -> Self {
        let mut block = hmac(PASSWORD.as_bytes(), &[&SALT[..], &[0, 0, 0, 1]].concat());
        let mut salted = block.clone();
        for _ in 1..ITERATIONS {
            block = hmac(PASSWORD.as_bytes(), &block);
            salted.iter_mut().zip(&block).for_each(|(salted, byte)| *salted ^= byte);
        }
        Self { key: hmac(&salted, b"Server Key") }
    }

    /// The server's first and final message to a client that began with `client_first`.
    fn answers(&self, client_first: &[u8]) -> (String, String) {
        let bare = std::str::from_utf8(client_first).unwrap().strip_prefix("n,,").unwrap();
        let nonce = format!("{}server", bare.strip_prefix("n=,r=").unwrap());
        let first = format!("r={nonce},s={},i={ITERATIONS}", BASE64_STANDARD.encode(SALT));
        let signature = hmac(&self.key, format!("{bare},{first},c=biws,r={nonce}").as_bytes());
        (first, format!("v={}", BASE64_STANDARD.encode(signature)))
    }
}

fn hmac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.chain_update(data).finalize().into_bytes().to_vec()
}

pub(crate) fn exchange(c: &mut Criterion) {
    let server = Server::new();

    // postgres-protocol draws its nonce itself: it begins, and the others repeat.
    let mut theirs = postgres_first();
    let (first, last) = server.answers(theirs.message());
    let nonce = std::str::from_utf8(theirs.message()).unwrap().strip_prefix("n,,n=,r=").unwrap();
    let (ours, pgwire) =
        (ClientFirst::new(PASSWORD.as_bytes(), nonce).unwrap(), pgwire_first(nonce));
    let proof = seen(|see| finish(ours, &first, &last, see));
    assert_eq!(seen(|see| finish_pgwire(&pgwire, &first, &last, see)), proof);
    assert_eq!(seen(|see| finish_postgres(&mut theirs, &first, &last, see)), proof);

    let mut group = group(c, SCRAM, 1, 0);
    let input = || {
        let ours = ClientFirst::new(PASSWORD.as_bytes(), NONCE).unwrap();
        let (first, last) = server.answers(ours.message());
        (Some(ours), first, last)
    };
    measure(
        &mut group,
        OURS,
        &mut input(),
        |all| *all = input(),
        |(ours, first, last)| finish(ours.take().unwrap(), first, last, &mut keep),
    );
    let input = || {
        let pgwire = pgwire_first(NONCE);
        let (first, last) = server.answers(pgwire.client_first.as_bytes());
        (pgwire, first, last)
    };
    measure(
        &mut group,
        PGWIRE,
        &mut input(),
        |all| *all = input(),
        |(pgwire, first, last)| finish_pgwire(pgwire, first, last, &mut keep),
    );
    let input = || {
        let postgres = postgres_first();
        let (first, last) = server.answers(postgres.message());
        (postgres, first, last)
    };
    measure(
        &mut group,
        POSTGRES,
        &mut input(),
        |all| *all = input(),
        |(postgres, first, last)| finish_postgres(postgres, first, last, &mut keep),
    );
}

fn finish(client: ClientFirst, first: &str, last: &str, see: &mut (impl FnMut(&[u8]) + ?Sized)) {
    let client = client.server_first(first.as_bytes()).unwrap();
    see(client.message());
    let _verified = client.server_final(last.as_bytes()).unwrap();
}

fn pgwire_first(nonce: &str) -> ScramClient {
    ScramClient {
        client_nonce_b64: nonce.to_owned(),
        client_first_bare: format!("n=,r={nonce}"),
        client_first: format!("n,,n=,r={nonce}"),
    }
}

/// Keys the HMAC anew in every round, with a `Vec` for its result. No limit of rounds.
fn finish_pgwire(
    client: &ScramClient,
    first: &str,
    last: &str,
    see: &mut (impl FnMut(&[u8]) + ?Sized),
) {
    let (message, auth_message, salted_password) = client.client_final(PASSWORD, first).unwrap();
    see(message.as_bytes());
    ScramClient::verify_server_final(last, &salted_password, &auth_message).unwrap();
}

fn postgres_first() -> ScramSha256 {
    ScramSha256::new(PASSWORD.as_bytes(), ChannelBinding::unsupported())
}

/// Keys the HMAC anew in every round.
fn finish_postgres(
    client: &mut ScramSha256,
    first: &str,
    last: &str,
    see: &mut (impl FnMut(&[u8]) + ?Sized),
) {
    client.update(first.as_bytes()).unwrap();
    see(client.message());
    client.finish(last.as_bytes()).unwrap();
}
