//! Logins, word for word: recorded ones, and those that only an attacker's server would try.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

mod fixtures;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::BytesMut;
use factlib_protocol::{
    Frame,
    auth::scram::{ITERATIONS_MAX, ScramError},
    backend::{Authentication, ErrorFields, Message, SqlState, Strings, TransactionStatus},
    frontend,
    handshake::{
        AuthMethod, AuthMethods, BODY_LEN_MAX, Credentials, Handshake, HandshakeError, Progress,
        ProtocolVersion, Session, Startup,
    },
};
use fixtures::Speaker;

const SCRAM_ONLY: AuthMethods = AuthMethods { scram: true, ..AuthMethods::NONE };
const EVERYTHING: AuthMethods = AuthMethods::ALL;
const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";

fn start(
    user: &str,
    password: Option<&str>,
    allow: AuthMethods,
    nonce: &str,
) -> (Handshake, BytesMut) {
    let startup = Startup {
        user,
        database: Some("owl"),
        params: &[("application_name", "owlpost")],
        ..Startup::default()
    };
    let password = password.map(str::as_bytes);
    let credentials = Credentials { password, allow, ..Credentials::default() };
    let mut out = BytesMut::new();
    let handshake = Handshake::start(startup, credentials, nonce.into(), &mut out).unwrap();
    (handshake, out)
}

/// A login that asked for 3.2.
fn newer() -> Handshake {
    let startup = Startup { user: "owl", protocol: ProtocolVersion::V3_2, ..Startup::default() };
    let mut out = BytesMut::new();
    let handshake =
        Handshake::start(startup, Credentials::default(), NONCE.into(), &mut out).unwrap();
    assert_eq!(out[4..8], [0, 3, 0, 2]);
    handshake
}

fn owl(allow: AuthMethods) -> Handshake {
    start("owl", Some("pencil"), allow, NONCE).0
}

/// Plays a recorded login: all that we say must be what libpq said, to the byte.
fn replay(file: &str, user: &str, allow: AuthMethods) -> Result<Session, HandshakeError> {
    let session = fixtures::session(file);
    let password = if file == fixtures::LOGIN_SCRAM_WRONG_PASSWORD { "crayon" } else { "pencil" };
    let (mut handshake, mut out) = start(user, Some(password), allow, &recorded_nonce(file));
    for (speaker, message) in &session {
        match speaker {
            Speaker::Client => {
                assert_eq!(out.split(), message[..]);
            }
            Speaker::Server => {
                assert!(out.is_empty(), "we speak when libpq does");
                match handshake.handle(decode(message), &mut out)? {
                    Progress::Waiting => {}
                    Progress::Ready => return Ok(handshake.into_session()),
                }
            }
        }
    }
    panic!("the recording ends before the handshake does");
}

fn recorded_nonce(file: &str) -> String {
    let first = fixtures::session(file).swap_remove(2).1;
    let text = String::from_utf8_lossy(&first).into_owned();
    text.split_once("n,,n=,r=").map_or(NONCE.into(), |(_, nonce)| nonce.into())
}

fn decode(message: &[u8]) -> Message<'_> {
    Message::decode(Frame::decode(message, BODY_LEN_MAX).unwrap().unwrap()).unwrap()
}

fn handle(handshake: &mut Handshake, message: Message<'_>) -> Result<Progress, HandshakeError> {
    handshake.handle(message, &mut BytesMut::new())
}

fn authentication(
    handshake: &mut Handshake,
    step: Authentication<'_>,
) -> Result<Progress, HandshakeError> {
    handle(handshake, Message::Authentication(step))
}

#[test]
fn recorded_logins_are_repeated_to_the_byte() {
    for (file, user, iterations) in [
        (fixtures::LOGIN_SCRAM, "owl", Some(4096)),
        (fixtures::LOGIN_MD5, "hashed", None),
        (fixtures::LOGIN_CLEARTEXT, "plain", None),
        (fixtures::LOGIN_TRUST, "trusty", None),
    ] {
        let session = replay(file, user, EVERYTHING).unwrap();
        assert_eq!(session.parameters.len(), 13);
        assert_eq!(session.parameter("server_version"), Some("15.18 (Debian 15.18-0+deb12u1)"));
        assert_eq!(session.parameter("session_authorization"), Some(user));
        assert_eq!(session.parameter("no_such"), None);
        assert_eq!(session.backend_key.as_ref().unwrap().secret_key.len(), 4);
        assert_eq!(session.scram_iterations, iterations);
        let shown = format!("{session:?}");
        assert!(shown.contains("process_id") && !shown.contains("secret_key"), "{shown}");
    }
}

#[test]
fn a_wrong_password_is_the_servers_to_refuse() {
    let error = replay(fixtures::LOGIN_SCRAM_WRONG_PASSWORD, "owl", SCRAM_ONLY).unwrap_err();
    let HandshakeError::Server(server) = &error else { panic!("{error:?}") };
    assert_eq!((server.severity.as_str(), server.code), ("FATAL", SqlState::INVALID_PASSWORD));
    assert_eq!(
        error.to_string(),
        "the server refused the session: password authentication failed for user \"owl\" (SQLSTATE 28P01)"
    );
}

#[test]
fn by_default_the_password_is_shown_to_nobody() {
    let refused = |file, user| replay(file, user, AuthMethods::default()).unwrap_err();
    assert_eq!(
        refused(fixtures::LOGIN_CLEARTEXT, "plain"),
        HandshakeError::MethodRefused { method: AuthMethod::Cleartext }
    );
    assert_eq!(
        refused(fixtures::LOGIN_MD5, "hashed"),
        HandshakeError::MethodRefused { method: AuthMethod::Md5 }
    );
    assert!(replay(fixtures::LOGIN_SCRAM, "owl", AuthMethods::default()).is_ok());
    assert!(replay(fixtures::LOGIN_TRUST, "trusty", AuthMethods::default()).is_ok());
}

#[test]
fn a_refused_method_gets_no_answer_at_all() {
    for (allow, step, method) in [
        (
            AuthMethods { cleartext: false, ..EVERYTHING },
            Authentication::CleartextPassword,
            AuthMethod::Cleartext,
        ),
        (
            AuthMethods { md5: false, ..EVERYTHING },
            Authentication::Md5Password { salt: [1; 4] },
            AuthMethod::Md5,
        ),
        (
            AuthMethods { scram: false, ..EVERYTHING },
            Authentication::Sasl(Strings::new(b"SCRAM-SHA-256\0").unwrap()),
            AuthMethod::Scram,
        ),
        (SCRAM_ONLY, Authentication::Ok, AuthMethod::Trust),
    ] {
        let mut out = BytesMut::new();
        let mut handshake = owl(allow);
        let error = handshake.handle(Message::Authentication(step), &mut out).unwrap_err();
        assert_eq!(error, HandshakeError::MethodRefused { method });
        assert!(out.is_empty());
        assert!(error.to_string().contains(&method.to_string()), "{error}");
    }
}

#[test]
fn a_password_that_is_missing_is_said_to_be() {
    let (mut handshake, _) = start("owl", None, EVERYTHING, NONCE);
    assert_eq!(
        authentication(&mut handshake, Authentication::Md5Password { salt: [0; 4] }),
        Err(HandshakeError::PasswordNeeded { method: AuthMethod::Md5 })
    );
}

#[test]
fn what_this_crate_cannot_do_is_named() {
    assert_eq!(
        authentication(&mut owl(EVERYTHING), Authentication::Other { code: 7, data: b"" }),
        Err(HandshakeError::MethodUnknown { code: 7 })
    );
    let error = authentication(&mut owl(EVERYTHING), offer(b"OAUTHBEARER\0SCRAM-SHA-1\0"));
    let offered = "OAUTHBEARER, SCRAM-SHA-1".into();
    assert_eq!(error, Err(HandshakeError::MechanismsUnknown { offered }));
}

fn offer(mechanisms: &[u8]) -> Authentication<'_> {
    Authentication::Sasl(Strings::new(mechanisms).unwrap())
}

#[test]
fn of_mechanisms_without_end_an_error_shows_a_few() {
    let names = b"A\0".repeat(10_000);
    let error = authentication(&mut owl(EVERYTHING), offer(&names)).unwrap_err();
    assert_eq!(error, HandshakeError::MechanismsUnknown { offered: "A, A, A, A, A".into() });

    let names = [b"\x1b[2J\0B,\0B\n\0".to_vec(), b"C".repeat(20_000), b"\0D\0".to_vec()].concat();
    let error = authentication(&mut owl(EVERYTHING), offer(&names)).unwrap_err();
    assert_eq!(error, HandshakeError::MechanismsUnknown { offered: "D".into() });
    let error = authentication(&mut owl(EVERYTHING), offer(b"")).unwrap_err();
    assert_eq!(error, HandshakeError::MechanismsUnknown { offered: "".into() });
}

fn negotiate(
    handshake: &mut Handshake,
    version: u32,
    unrecognized: &[u8],
) -> Result<Progress, HandshakeError> {
    let unrecognized = Strings::new(unrecognized).unwrap();
    handle(handshake, Message::NegotiateProtocolVersion { version, unrecognized })
}

#[test]
fn an_older_server_is_followed_to_its_protocol() {
    let mut handshake = newer();
    assert_eq!(negotiate(&mut handshake, 3 << 16, b""), Ok(Progress::Waiting));
    assert_eq!(authentication(&mut handshake, Authentication::Ok), Ok(Progress::Waiting));
    let ready = Message::ReadyForQuery(TransactionStatus::Idle);
    assert_eq!(handle(&mut handshake, ready), Ok(Progress::Ready));
    assert_eq!(handshake.into_session().protocol, ProtocolVersion::V3_0);
}

#[test]
fn a_server_that_speaks_3_2_says_nothing_of_it_and_sends_long_keys() {
    for len in [4, 32, 256] {
        let mut handshake = newer();
        assert_eq!(authentication(&mut handshake, Authentication::Ok), Ok(Progress::Waiting));
        let key: Vec<u8> = (0..=255).cycle().take(len).collect();
        let message = Message::BackendKeyData { process_id: 7, secret_key: &key };
        let mut wire = BytesMut::new();
        message.encode(&mut wire).unwrap();
        assert_eq!(handle(&mut handshake, decode(&wire)), Ok(Progress::Waiting));
        let ready = Message::ReadyForQuery(TransactionStatus::Idle);
        assert_eq!(handle(&mut handshake, ready), Ok(Progress::Ready));
        let session = handshake.into_session();
        assert_eq!(session.protocol, ProtocolVersion::V3_2);
        let kept = session.backend_key.unwrap();
        assert_eq!((kept.process_id, &kept.secret_key), (7, &key));
        let mut out = BytesMut::new();
        frontend::cancel_request(kept.process_id, &kept.secret_key, &mut out).unwrap();
        assert_eq!(out.len(), 12 + len);
        assert_eq!(out[12..], key);
    }
}

#[test]
fn a_version_that_a_server_cannot_mean_ends_the_login() {
    let unknown = |version, asked| Err(HandshakeError::ProtocolVersion { version, asked });
    for version in [0, 2 << 16, (3 << 16) - 1, 3 << 16 | 1, 3 << 16 | 2, 3 << 16 | 3, u32::MAX] {
        assert_eq!(
            negotiate(&mut newer(), version, b""),
            unknown(version, ProtocolVersion::V3_2),
            "{version:x}"
        );
        assert_eq!(
            negotiate(&mut owl(EVERYTHING), version, b""),
            unknown(version, ProtocolVersion::V3_0),
            "{version:x}"
        );
    }
    let error = negotiate(&mut owl(EVERYTHING), 3 << 16, b"").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server was asked for protocol 3.0 and answers 3.0, which it cannot mean: is this PostgreSQL?"
    );
}

#[test]
fn a_version_is_negotiated_once_and_before_anything_else() {
    let mut handshake = newer();
    assert_eq!(negotiate(&mut handshake, 3 << 16, b""), Ok(Progress::Waiting));
    assert!(matches!(
        negotiate(&mut handshake, 3 << 16, b""),
        Err(HandshakeError::Unexpected { message: "NegotiateProtocolVersion", .. })
    ));
    let mut handshake = newer();
    assert_eq!(authentication(&mut handshake, Authentication::Ok), Ok(Progress::Waiting));
    assert!(matches!(
        negotiate(&mut handshake, 3 << 16, b""),
        Err(HandshakeError::Unexpected { .. })
    ));
}

#[test]
fn an_option_that_nobody_asked_for_ends_the_login() {
    let error = negotiate(&mut newer(), 3 << 16, b"_pq_.moon\0").unwrap_err();
    assert_eq!(error, HandshakeError::OptionUnknown { option: "_pq_.moon".into() });
    assert!(error.to_string().contains("_pq_.moon"));
    let long = [&b"_\x1b\n"[..], &b"x".repeat(20_000), b"\0"].concat();
    let error = negotiate(&mut owl(EVERYTHING), 3 << 16, &long).unwrap_err();
    assert_eq!(error, HandshakeError::OptionUnknown { option: "_".to_owned() + &"x".repeat(63) });
}

/// A login as far as the given number of recorded messages of the server.
fn scram(steps: usize) -> (Handshake, Vec<Vec<u8>>) {
    let (mut handshake, _) =
        start("owl", Some("pencil"), SCRAM_ONLY, &recorded_nonce(fixtures::LOGIN_SCRAM));
    let mut server: Vec<_> = fixtures::session(fixtures::LOGIN_SCRAM)
        .into_iter()
        .filter(|(speaker, _)| *speaker == Speaker::Server)
        .map(|(_, message)| message)
        .collect();
    for message in server.drain(..steps) {
        assert_eq!(handle(&mut handshake, decode(&message)), Ok(Progress::Waiting));
    }
    (handshake, server)
}

#[test]
fn a_server_that_skips_its_proof_is_not_believed() {
    for steps in [1, 2] {
        let (mut handshake, _) = scram(steps);
        assert_eq!(
            authentication(&mut handshake, Authentication::Ok),
            Err(HandshakeError::ProofSkipped)
        );
        // Nor is it given a second chance.
        assert!(matches!(
            authentication(&mut handshake, Authentication::Ok),
            Err(HandshakeError::Unexpected { state: "failed", .. })
        ));
    }
    let (mut handshake, _) = scram(1);
    assert!(matches!(
        authentication(&mut handshake, Authentication::SaslFinal(b"v=AAAA")),
        Err(HandshakeError::Unexpected { .. })
    ));
}

#[test]
fn a_server_that_does_not_know_the_password_is_found_out() {
    let proof = |text: &str| {
        let (mut handshake, _) = scram(2);
        authentication(&mut handshake, Authentication::SaslFinal(text.as_bytes())).unwrap_err()
    };
    let (_, server) = scram(2);
    let real = String::from_utf8(server[0][9..].to_vec()).unwrap();
    let mut signature = BASE64_STANDARD.decode(&real[2..]).unwrap();
    for bit in 0..signature.len() * 8 {
        signature[bit / 8] ^= 1 << (bit % 8);
        let forged = format!("v={}", BASE64_STANDARD.encode(&signature));
        if bit % 37 == 0 {
            assert_eq!(proof(&forged), ScramError::ServerSignature.into());
        }
        signature[bit / 8] ^= 1 << (bit % 8);
    }
    let short = format!("v={}", BASE64_STANDARD.encode(&signature[..31]));
    assert_eq!(proof(&short), ScramError::ServerSignature.into());
    assert_eq!(proof("v="), ScramError::ServerSignature.into());
    assert_eq!(proof("v=!"), ScramError::Malformed("server signature").into());
    assert_eq!(proof(""), ScramError::Malformed("server signature").into());
    assert_eq!(proof("e=other-error"), ScramError::Server("other-error".into()).into());
    for text in ["e=", "e=two words", "e=\x1b[2J", &("e=".to_owned() + &"x".repeat(20_000))] {
        assert_eq!(proof(text), ScramError::Malformed("refusal").into());
    }

    let (mut handshake, _) = scram(2);
    assert_eq!(
        authentication(&mut handshake, Authentication::SaslFinal(&[b"v=", &[0xff][..]].concat())),
        Err(ScramError::Malformed("server-final-message").into())
    );
}

#[test]
fn a_challenge_that_cannot_be_is_refused_before_any_hashing() {
    let challenge = |text: String| {
        let mut handshake = owl(SCRAM_ONLY);
        assert_eq!(
            authentication(&mut handshake, offer(b"SCRAM-SHA-256\0")),
            Ok(Progress::Waiting)
        );
        authentication(&mut handshake, Authentication::SaslContinue(text.as_bytes()))
    };
    assert_eq!(
        challenge(format!("r={NONCE}x,s=QSXCR+Q6sek8bf92,i=1,later=extension")),
        Ok(Progress::Waiting)
    );

    for (challenged, error) in [
        ("r=someone-elses,s=QSXCR+Q6sek8bf92,i=4096".into(), ScramError::ServerNonce),
        (format!("r={},s=QSXCR+Q6sek8bf92,i=4096", &NONCE[1..]), ScramError::ServerNonce),
        (format!("r={NONCE}x,s=QSXCR+Q6sek8bf92,i=4294967295"), ScramError::TooManyIterations),
        (
            format!("r={NONCE}x,s=QSXCR+Q6sek8bf92,i=99999999999999999999"),
            ScramError::TooManyIterations,
        ),
        (
            format!("r={NONCE}x,s=QSXCR+Q6sek8bf92,i={}", ITERATIONS_MAX + 1),
            ScramError::TooManyIterations,
        ),
        (format!("r={NONCE}x,s=QSXCR+Q6sek8bf92,i=0"), ScramError::Malformed("iteration count")),
        (format!("r={NONCE}x,s=QSXCR+Q6sek8bf92,i=+1"), ScramError::Malformed("iteration count")),
        (format!("r={NONCE}x,s=QSXCR+Q6sek8bf92,i="), ScramError::Malformed("iteration count")),
        (format!("r={NONCE}x,s=QSXCR+Q6sek8bf92"), ScramError::Malformed("iteration count")),
        (format!("r={NONCE}x,s=*,i=1"), ScramError::Malformed("salt")),
        (format!("r={NONCE}x,i=1,s=QSXCR+Q6sek8bf92"), ScramError::Malformed("salt")),
        (
            format!("m=must-understand,r={NONCE}x,s=QSXCR+Q6sek8bf92,i=1"),
            ScramError::Malformed("nonce"),
        ),
        (String::new(), ScramError::Malformed("nonce")),
    ] {
        assert_eq!(challenge(challenged.clone()), Err(error.into()), "{challenged}");
    }
}

#[test]
fn errors_end_a_login_anywhere_and_notices_nowhere() {
    let refusal = [(b'S', &b"FATAL"[..]), (b'C', b"57P03"), (b'M', b"the database is \xe9teinte")];
    let mut message = BytesMut::new();
    ErrorFields::encode(&refusal, &mut message).unwrap();
    let mut notice = message.clone();
    notice[0] = b'N';
    for steps in 0..=10 {
        let (mut handshake, _) = scram(steps);
        assert_eq!(handle(&mut handshake, decode(&notice)), Ok(Progress::Waiting));
        let parameter = Message::ParameterStatus { name: "TimeZone", value: b"\xff" };
        assert_eq!(handle(&mut handshake, parameter), Ok(Progress::Waiting));
        let Err(HandshakeError::Server(error)) = handle(&mut handshake, decode(&message)) else {
            panic!("at step {steps}")
        };
        assert_eq!((error.code, error.code.class()), (SqlState::CANNOT_CONNECT_NOW, "57"));
        assert_eq!(error.message, "the database is \u{fffd}teinte");
        assert_eq!(handshake.into_session().parameter("TimeZone"), Some("\u{fffd}"));
    }
}

#[test]
fn what_has_no_place_in_a_login_ends_it() {
    let key = Message::BackendKeyData { process_id: 1, secret_key: b"1234" };
    for (steps, message) in [
        (0, Message::ReadyForQuery(TransactionStatus::Idle)),
        (0, key),
        (0, Message::Authentication(Authentication::SaslContinue(b""))),
        (1, Message::ReadyForQuery(TransactionStatus::Idle)),
        (2, key),
        (3, Message::ReadyForQuery(TransactionStatus::Idle)),
        (2, Message::Authentication(Authentication::SaslContinue(b"r=x,s=,i=1"))),
        (2, Message::Authentication(offer(b"SCRAM-SHA-256\0"))),
        (3, Message::Authentication(Authentication::CleartextPassword)),
        (3, Message::Authentication(Authentication::SaslFinal(b"v="))),
        (4, Message::Authentication(Authentication::Ok)),
        (4, Message::CopyData(b"")),
        (
            4,
            Message::NegotiateProtocolVersion {
                version: 3 << 16,
                unrecognized: Strings::default(),
            },
        ),
    ] {
        let error = handle(&mut scram(steps).0, message).unwrap_err();
        assert!(matches!(error, HandshakeError::Unexpected { .. }), "{steps} {message:?} {error}");
    }
}

#[test]
fn settings_without_end_are_refused() {
    let mut handshake = owl(EVERYTHING);
    for n in 0..200 {
        let name = format!("setting_{}", n % 100);
        assert_eq!(
            handle(&mut handshake, Message::ParameterStatus { name: &name, value: b"" }),
            Ok(Progress::Waiting)
        );
    }
    let one_more = Message::ParameterStatus { name: "setting_100", value: b"" };
    assert_eq!(handle(&mut handshake, one_more), Err(HandshakeError::TooManyParameters));
}

#[test]
fn what_cannot_be_sent_is_not() {
    let mut out = BytesMut::new();
    let credentials =
        Credentials { password: Some(b"pen\0cil"), allow: EVERYTHING, ..Credentials::default() };
    let startup = Startup { user: "o\0wl", ..Startup::default() };
    assert!(matches!(
        Handshake::start(startup, credentials, NONCE.into(), &mut out),
        Err(HandshakeError::Encode(_))
    ));
    let startup = Startup { user: "owl", ..startup };
    let mut handshake = Handshake::start(startup, credentials, "a,b".into(), &mut out).unwrap();
    assert_eq!(out[..], b"\x00\x00\x00\x12\x00\x03\x00\x00user\0owl\0\0"[..]);
    out.clear();
    assert!(matches!(
        handshake.handle(Message::Authentication(Authentication::CleartextPassword), &mut out),
        Err(HandshakeError::Encode(_))
    ));
    let mut handshake =
        Handshake::start(startup, credentials, "a,b".into(), &mut BytesMut::new()).unwrap();
    let offer = Authentication::Sasl(Strings::new(b"SCRAM-SHA-256\0").unwrap());
    assert_eq!(
        handshake.handle(Message::Authentication(offer), &mut out),
        Err(ScramError::ClientNonce.into())
    );
    assert!(out.is_empty());
}

#[test]
fn secrets_are_in_no_debug_text() {
    let (handshake, _) = scram(0);
    let credentials = Credentials { password: Some(b"pencil"), ..Credentials::default() };
    for shown in [format!("{handshake:?}"), format!("{credentials:?}"), format!("{:?}", scram(1).0)]
    {
        assert!(!shown.contains("pencil") && !shown.contains("112"), "{shown}");
    }
}
