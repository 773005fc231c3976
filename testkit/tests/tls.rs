//! Log-ins of the protocol crate over real TLS, held to what a real server makes of them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use bytes::{Buf as _, BytesMut};
use factlib_protocol::{
    Frame,
    auth::channel_binding::{
        Channel,
        ChannelBinding::{self, Disable, Prefer, Require},
        EndPointHash,
    },
    backend::{Authentication, Message, SqlState, Strings},
    frontend,
    handshake::{
        AuthMethod, AuthMethods, BODY_LEN_MAX, Credentials, Handshake, HandshakeError, Progress,
        ProtocolVersion, Session, Startup, Unbound,
    },
    tls::{self, Answer},
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use testkit::Postgres;

const RSA_SHA256: &str = "-newkey rsa:2048 -sha256";
const RSA_PSS_SHA384: &str = "-newkey rsa:2048 -sha384 -sigopt rsa_padding_mode:pss";
const ECDSA_SHA384: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-384 -sha384";
const ED25519: &str = "-newkey ed25519";

/// Without TLS.
const PENCIL: Credentials<'_> = Credentials {
    password: Some(b"pencil"),
    allow: AuthMethods::ALL,
    channel_binding: Prefer,
    channel: Channel::Plain,
};

/// A server with a certificate of this kind, and a role for each method: `owl` (SCRAM), `hashed` (md5),
/// `plain` (password) and `trusty`; the password is `pencil`.
fn server(kind: &str) -> Postgres {
    let postgres = Postgres::builder()
        .hba(&[
            "host all owl 127.0.0.1/32 scram-sha-256",
            "host all hashed 127.0.0.1/32 md5",
            "host all plain 127.0.0.1/32 password",
        ])
        .start();
    // The server makes its own key, in its folder and as its user: it takes no other's. Its libraries are
    // not openssl's.
    let openssl = format!(
        "cat >/dev/null; env -u LD_LIBRARY_PATH openssl req -x509 -nodes -days 2 -subj /CN=localhost \
         -keyout server.key -out server.crt {kind} 2>/dev/null"
    );
    let mut client = postgres.client();
    for sql in [
        &format!("COPY (SELECT) TO PROGRAM '{openssl}'"),
        "ALTER SYSTEM SET ssl = on",
        "CREATE ROLE owl LOGIN PASSWORD 'pencil'",
        "SET password_encryption = md5; CREATE ROLE hashed LOGIN PASSWORD 'pencil'",
        "CREATE ROLE plain LOGIN PASSWORD 'pencil'",
        "CREATE ROLE trusty LOGIN",
        "SELECT pg_reload_conf()",
    ] {
        client.batch_execute(sql).unwrap();
    }
    testkit::wait::poll("TLS to be on", testkit::wait::LIMIT, || {
        (postgres.ask("SHOW ssl") == "on").then_some(())
    })
    .unwrap();
    postgres
}

/// What a log-in does otherwise than it should.
#[derive(Clone, Copy, PartialEq)]
enum Tamper {
    Nothing,
    /// The certificate's hash is not the one of this connection.
    Hash,
    /// Somebody in between takes PLUS off the server's offer.
    Offer,
}

fn log_in(
    postgres: &Postgres,
    user: &str,
    channel_binding: ChannelBinding,
) -> Result<Session, HandshakeError> {
    log_in_with(postgres, user, channel_binding, Tamper::Nothing)
}

fn log_in_with(
    postgres: &Postgres,
    user: &str,
    channel_binding: ChannelBinding,
    tamper: Tamper,
) -> Result<Session, HandshakeError> {
    let mut socket = TcpStream::connect(("127.0.0.1", postgres.port())).unwrap();
    assert_eq!(ask_for_tls(&mut socket), Answer::Tls);
    let (mut stream, certificate) = encrypt(socket, &[]).unwrap();
    let mut hash = EndPointHash::of_certificate(&certificate).map(|hash| hash.digest(&certificate));
    if let (Some(hash), Tamper::Hash) = (&mut hash, tamper) {
        hash[0] ^= 1;
    }
    let channel = Channel::Tls { server_end_point: hash.as_deref() };
    talk(&mut stream, user, Credentials { channel_binding, channel, ..PENCIL }, tamper)
}

fn ask_for_tls(socket: &mut TcpStream) -> Answer {
    let mut out = BytesMut::new();
    frontend::ssl_request(&mut out);
    socket.write_all(&out).unwrap();
    let mut answer = [0; tls::ANSWER_LEN];
    socket.read_exact(&mut answer).unwrap();
    Answer::read(&answer).unwrap().unwrap()
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

fn encrypt(mut socket: TcpStream, alpn: &[&[u8]]) -> io::Result<(Stream, CertificateDer<'static>)> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    let certificate = connection.peer_certificates().unwrap()[0].clone().into_owned();
    Ok((StreamOwned::new(connection, socket), certificate))
}

fn talk(
    stream: &mut (impl Read + Write),
    user: &str,
    credentials: Credentials<'_>,
    tamper: Tamper,
) -> Result<Session, HandshakeError> {
    let startup = Startup {
        user,
        database: Some("app"),
        protocol: ProtocolVersion::V3_2,
        ..Startup::default()
    };
    let mut out = BytesMut::new();
    let mut handshake =
        Handshake::start(startup, credentials, "fyko+d2lbbFgONRv9qkx".into(), &mut out)?;
    let mut received = BytesMut::new();
    loop {
        stream.write_all(&out.split()).unwrap();
        stream.flush().unwrap();
        let mut piece = [0; 4096];
        let len = stream.read(&mut piece).unwrap();
        assert!(len > 0, "the server closes the connection without a word");
        received.extend_from_slice(&piece[..len]);
        while let Some(frame) = Frame::decode(&received, BODY_LEN_MAX).unwrap() {
            let message = match Message::decode(frame).unwrap() {
                Message::Authentication(Authentication::Sasl(_)) if tamper == Tamper::Offer => {
                    let robbed = Strings::new(b"SCRAM-SHA-256\0").unwrap();
                    Message::Authentication(Authentication::Sasl(robbed))
                }
                message => message,
            };
            if handshake.handle(message, &mut out)? == Progress::Ready {
                return Ok(handshake.into_session());
            }
            let len = frame.encoded_len();
            received.advance(len);
        }
    }
}

/// Takes any certificate: what it is signed with matters here, and not by whom.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is built in".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[track_caller]
fn is_bound(postgres: &Postgres, channel_binding: ChannelBinding) -> bool {
    let session = log_in(postgres, "owl", channel_binding).unwrap();
    assert_eq!(session.parameter("session_authorization"), Some("owl"));
    assert!(session.scram_iterations.is_some());
    session.channel_bound
}

#[track_caller]
fn refused(result: Result<Session, HandshakeError>) -> (SqlState, String) {
    match result {
        Err(HandshakeError::Server(error)) => (error.code, error.message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_log_in_is_bound_to_a_certificate_signed_with_rsa_and_sha_256() {
    let postgres = server(RSA_SHA256);
    assert!(is_bound(&postgres, Prefer));
    assert!(is_bound(&postgres, Require));
    assert!(!is_bound(&postgres, Disable));
}

#[test]
fn a_log_in_is_bound_to_a_certificate_signed_with_rsa_pss_and_sha_384() {
    let postgres = server(RSA_PSS_SHA384);
    assert!(is_bound(&postgres, Prefer));
    assert!(is_bound(&postgres, Require));
    assert!(!is_bound(&postgres, Disable));
}

#[test]
fn a_log_in_is_not_bound_to_a_certificate_signed_with_ed25519() {
    let postgres = server(ED25519);
    assert!(!is_bound(&postgres, Prefer));
    assert!(!is_bound(&postgres, Disable));
    let error = log_in(&postgres, "owl", Require).unwrap_err();
    assert_eq!(error, HandshakeError::Unbound(Unbound::NoHash));
}

#[test]
fn a_log_in_is_bound_to_a_certificate_signed_with_ecdsa_and_sha_384_and_to_no_other() {
    let postgres = server(ECDSA_SHA384);
    assert!(is_bound(&postgres, Prefer));
    assert!(is_bound(&postgres, Require));
    assert!(!is_bound(&postgres, Disable));

    for channel_binding in [Prefer, Require] {
        let (code, message) = refused(log_in_with(&postgres, "owl", channel_binding, Tamper::Hash));
        assert_eq!(code, SqlState::INVALID_AUTHORIZATION);
        assert!(message.contains("channel binding check failed"), "{message}");
    }

    // A client that hears no offer says that it could have bound, and the server knows that it offered.
    let (code, message) = refused(log_in_with(&postgres, "owl", Prefer, Tamper::Offer));
    assert_eq!(code, SqlState::INVALID_AUTHORIZATION);
    assert!(message.contains("channel binding negotiation error"), "{message}");
    let error = log_in_with(&postgres, "owl", Require, Tamper::Offer).unwrap_err();
    assert_eq!(error, HandshakeError::Unbound(Unbound::Method(AuthMethod::Scram)));

    for (user, method) in [
        ("hashed", AuthMethod::Md5),
        ("plain", AuthMethod::Cleartext),
        ("trusty", AuthMethod::Trust),
    ] {
        let error = log_in(&postgres, user, Require).unwrap_err();
        assert_eq!(error, HandshakeError::Unbound(Unbound::Method(method)));
        assert!(!log_in(&postgres, user, Prefer).unwrap().channel_bound);
    }
}

#[test]
fn a_server_without_tls_says_so() {
    let postgres = Postgres::builder().start();
    let mut socket = TcpStream::connect(("127.0.0.1", postgres.port())).unwrap();
    assert_eq!(ask_for_tls(&mut socket), Answer::Plaintext);
}

#[test]
fn a_password_is_prepared_where_the_server_prepares_it() {
    let hba = ["host all scram 127.0.0.1/32 scram-sha-256", "host all hashed 127.0.0.1/32 md5"];
    let postgres = Postgres::builder().hba(&hba).start();
    let mut client = postgres.client();
    client.batch_execute("CREATE ROLE scram LOGIN PASSWORD '\u{2168}'").unwrap();
    let hashed = "SET password_encryption = md5; CREATE ROLE hashed LOGIN PASSWORD '\u{2168}'";
    client.batch_execute(hashed).unwrap();
    let let_in = |user, password: &str| {
        let mut socket = TcpStream::connect(("127.0.0.1", postgres.port())).unwrap();
        let credentials = Credentials { password: Some(password.as_bytes()), ..PENCIL };
        talk(&mut socket, user, credentials, Tamper::Nothing).is_ok()
    };
    assert!(let_in("scram", "\u{2168}") && let_in("scram", "IX") && !let_in("scram", "VIII"));
    assert!(let_in("hashed", "\u{2168}") && !let_in("hashed", "IX"));
}

/// The code of the first error that the server sends.
fn first_error(stream: &mut TcpStream) -> SqlState {
    let mut received = BytesMut::new();
    loop {
        let mut piece = [0; 4096];
        let len = stream.read(&mut piece).unwrap();
        assert!(len > 0, "the server closes the connection without an error");
        received.extend_from_slice(&piece[..len]);
        while let Some(frame) = Frame::decode(&received, BODY_LEN_MAX).unwrap() {
            if let Message::ErrorResponse(fields) = Message::decode(frame).unwrap() {
                return fields.code();
            }
            let len = frame.encoded_len();
            received.advance(len);
        }
    }
}

#[test]
fn an_old_server_answers_3_2_with_3_0_and_a_new_one_sends_a_long_key_that_cancels() {
    let postgres = server(ECDSA_SHA384);
    let socket = TcpStream::connect(("127.0.0.1", postgres.port())).unwrap();
    let mut stream = socket;
    let session = talk(&mut stream, "owl", PENCIL, Tamper::Nothing).unwrap();
    let (protocol, key_len) = match postgres.major() {
        ..18 => (ProtocolVersion::V3_0, 4),
        _ => (ProtocolVersion::V3_2, 32),
    };
    assert_eq!(session.protocol, protocol);
    let key = session.backend_key.unwrap();
    assert_eq!(key.secret_key.len(), key_len);

    let mut out = BytesMut::new();
    frontend::query("SELECT pg_sleep(60)", &mut out).unwrap();
    stream.write_all(&out.split()).unwrap();
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'sleep' AND usename = 'owl'";
    testkit::wait::poll("the query to run", testkit::wait::LIMIT, || {
        (postgres.ask(sleeps) == "1").then_some(())
    })
    .unwrap();
    frontend::cancel_request(key.process_id, &key.secret_key, &mut out).unwrap();
    TcpStream::connect(("127.0.0.1", postgres.port())).unwrap().write_all(&out).unwrap();
    assert_eq!(first_error(&mut stream), SqlState(*b"57014"), "query_canceled");
}

#[test]
fn direct_tls_takes_the_protocol_by_its_name() {
    let postgres = server(ECDSA_SHA384);
    let socket = TcpStream::connect(("127.0.0.1", postgres.port())).unwrap();
    let encrypted = encrypt(socket, &[tls::ALPN]);
    if postgres.major() < 17 {
        assert!(encrypted.is_err(), "the first message of TLS is none of PostgreSQL's");
        return;
    }
    let (mut stream, certificate) = encrypted.unwrap();
    tls::check_alpn(stream.conn.alpn_protocol()).unwrap();
    let hash = EndPointHash::of_certificate(&certificate).unwrap().digest(&certificate);
    let channel = Channel::Tls { server_end_point: Some(&hash) };
    let credentials = Credentials { channel_binding: Require, channel, ..PENCIL };
    let session = talk(&mut stream, "owl", credentials, Tamper::Nothing).unwrap();
    assert!(session.channel_bound);
}
