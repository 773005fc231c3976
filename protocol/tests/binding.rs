//! Logins over TLS, and whether they are bound to it: every pairing of what the client wants, what the
//! connection allows and what the server offers. `testkit/tests/tls.rs` holds the same to real servers.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::BytesMut;
use factlib_protocol::{
    auth::{
        channel_binding::{
            Channel,
            ChannelBinding::{self, Disable, Prefer, Require},
        },
        scram::ScramError,
    },
    backend::{Authentication, Message, Strings, TransactionStatus},
    handshake::{
        AuthMethod, AuthMethods, Credentials, Handshake, HandshakeError, Progress, Startup, Unbound,
    },
};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
const PLAIN: Channel<'_> = Channel::Plain;
const HASHLESS: Channel<'_> = Channel::Tls { server_end_point: None };
const TLS: Channel<'_> = Channel::Tls { server_end_point: Some(&[0xab; 32]) };
const BOTH: &[u8] = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0";
const ONLY_SCRAM: &[u8] = b"SCRAM-SHA-256\0";
const ONLY_PLUS: &[u8] = b"SCRAM-SHA-256-PLUS\0";

fn start(
    channel_binding: ChannelBinding,
    channel: Channel<'_>,
) -> Result<Handshake, HandshakeError> {
    let startup = Startup { user: "owl", ..Startup::default() };
    let password = Some(&b"pencil"[..]);
    let allow = AuthMethods::ALL;
    let credentials = Credentials { password, allow, channel_binding, channel };
    let mut out = BytesMut::new();
    let handshake = Handshake::start(startup, credentials, NONCE.into(), &mut out);
    assert_eq!(out.is_empty(), handshake.is_err(), "nothing is sent in vain");
    handshake
}

/// What the client answers to a server that asks like this.
fn answer(
    channel_binding: ChannelBinding,
    channel: Channel<'_>,
    step: Authentication<'_>,
) -> Result<(Handshake, Vec<u8>), HandshakeError> {
    let mut handshake = start(channel_binding, channel)?;
    let mut out = BytesMut::new();
    let progress = handshake.handle(Message::Authentication(step), &mut out);
    assert!(progress.is_ok() || out.is_empty(), "nothing is sent in vain");
    progress.map(|_| (handshake, out.to_vec()))
}

/// The mechanism that the client chooses of these, and its first words up to the first comma.
fn choice(
    channel_binding: ChannelBinding,
    channel: Channel<'_>,
    mechanisms: &[u8],
) -> Result<String, HandshakeError> {
    let offer = Authentication::Sasl(Strings::new(mechanisms).unwrap());
    let (_, out) = answer(channel_binding, channel, offer)?;
    // Tag, length, mechanism, zero, length, data.
    let end = out[5..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let flag = out[end + 5..].split(|byte| *byte == b',').next().unwrap();
    Ok(String::from_utf8([&out[5..end], flag].join(&b' ')).unwrap())
}

#[test]
fn a_login_is_bound_wherever_it_can_be() {
    let plus = "SCRAM-SHA-256-PLUS p=tls-server-end-point";
    for mechanisms in [BOTH, b"SCRAM-SHA-256\0SCRAM-SHA-256-PLUS\0", ONLY_PLUS] {
        for channel_binding in [Prefer, Require] {
            assert_eq!(choice(channel_binding, TLS, mechanisms).unwrap(), plus);
        }
    }
}

#[test]
fn a_server_that_does_not_offer_it_is_told_that_we_could() {
    assert_eq!(choice(Prefer, TLS, ONLY_SCRAM).unwrap(), "SCRAM-SHA-256 y");
}

#[test]
fn a_client_that_cannot_bind_never_says_that_it_could() {
    for (channel_binding, channel, mechanisms) in [
        (Prefer, PLAIN, ONLY_SCRAM),
        (Disable, PLAIN, ONLY_SCRAM),
        (Disable, TLS, ONLY_SCRAM),
        (Disable, TLS, BOTH),
        (Disable, HASHLESS, BOTH),
        (Prefer, HASHLESS, BOTH),
        (Prefer, HASHLESS, ONLY_SCRAM),
    ] {
        assert_eq!(
            choice(channel_binding, channel, mechanisms).unwrap(),
            "SCRAM-SHA-256 n",
            "{channel_binding:?} {channel:?} {mechanisms:?}"
        );
    }
}

#[test]
fn what_cannot_be_bound_is_not_begun_where_it_must_be() {
    assert_eq!(start(Require, PLAIN).unwrap_err(), HandshakeError::Unbound(Unbound::NoTls));
    assert_eq!(start(Require, HASHLESS).unwrap_err(), HandshakeError::Unbound(Unbound::NoHash));
    let text = HandshakeError::Unbound(Unbound::NoHash).to_string();
    assert!(text.starts_with("channel binding is required, and no hash is defined"), "{text}");
}

#[test]
fn no_method_without_a_binding_is_answered_where_one_is_required() {
    for (step, method) in [
        (Authentication::Ok, AuthMethod::Trust),
        (Authentication::CleartextPassword, AuthMethod::Cleartext),
        (Authentication::Md5Password { salt: [1; 4] }, AuthMethod::Md5),
        (Authentication::Sasl(Strings::new(ONLY_SCRAM).unwrap()), AuthMethod::Scram),
    ] {
        let error = answer(Require, TLS, step).unwrap_err();
        assert_eq!(error, HandshakeError::Unbound(Unbound::Method(method)));
        assert!(error.to_string().starts_with("channel binding is required, and the server"));
        assert!(answer(Prefer, TLS, step).is_ok());
    }
}

#[test]
fn plus_without_tls_is_somebody_in_between() {
    for channel_binding in [Disable, Prefer] {
        for mechanisms in [BOTH, ONLY_PLUS] {
            assert_eq!(
                choice(channel_binding, PLAIN, mechanisms),
                Err(HandshakeError::PlusWithoutTls)
            );
        }
    }
}

#[test]
fn plus_alone_is_of_no_use_to_who_cannot_bind() {
    for (channel_binding, channel) in [(Disable, TLS), (Prefer, HASHLESS)] {
        let offered = "SCRAM-SHA-256-PLUS".into();
        assert_eq!(
            choice(channel_binding, channel, ONLY_PLUS),
            Err(HandshakeError::MechanismsUnknown { offered })
        );
    }
}

fn hmac(key: &[u8], data: &[u8]) -> Vec<u8> {
    Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(data).finalize().into_bytes().to_vec()
}

/// Goes through SCRAM as a server that knows the password and sees this certificate's hash. Returns the
/// login behind the server's proof, or `None` if the client's is wrong.
fn scram(channel: Channel<'_>, mechanisms: &[u8], header: &str, seen: &[u8]) -> Option<Handshake> {
    let offer = Authentication::Sasl(Strings::new(mechanisms).unwrap());
    let (mut handshake, _) = answer(Prefer, channel, offer).unwrap();
    let server_first = format!("r={NONCE}x,s=QSXCR+Q6sek8bf92,i=1");
    let mut out = BytesMut::new();
    let challenge = Authentication::SaslContinue(server_first.as_bytes());
    let progress = handshake.handle(Message::Authentication(challenge), &mut out);
    assert_eq!(progress, Ok(Progress::Waiting));
    let client_final = std::str::from_utf8(&out[5..]).unwrap();
    let (without_proof, proof) = client_final.split_once(",p=").unwrap();

    let salt = BASE64_STANDARD.decode("QSXCR+Q6sek8bf92").unwrap();
    let salted = hmac(b"pencil", &[&salt[..], &[0, 0, 0, 1]].concat());
    let binding = BASE64_STANDARD.encode([header.as_bytes(), seen].concat());
    let expected = format!("c={binding},r={NONCE}x");
    let auth_message = format!("n=,r={NONCE},{server_first},{expected}");
    let client_key = hmac(&salted, b"Client Key");
    let signature = hmac(&Sha256::digest(&client_key), auth_message.as_bytes());
    let right: Vec<u8> = client_key.iter().zip(signature).map(|(key, byte)| key ^ byte).collect();
    if without_proof != expected || BASE64_STANDARD.decode(proof).unwrap() != right {
        return None;
    }
    let server_key = hmac(&salted, b"Server Key");
    let proof = BASE64_STANDARD.encode(hmac(&server_key, auth_message.as_bytes()));
    let last = format!("v={proof}");
    let last = Message::Authentication(Authentication::SaslFinal(last.as_bytes()));
    assert_eq!(handshake.handle(last, &mut out), Ok(Progress::Waiting));
    Some(handshake)
}

#[test]
fn a_session_says_whether_it_is_bound() {
    let bound = |mut handshake: Handshake| {
        for message in [
            Message::Authentication(Authentication::Ok),
            Message::ReadyForQuery(TransactionStatus::Idle),
        ] {
            let _ = handshake.handle(message, &mut BytesMut::new()).unwrap();
        }
        handshake.into_session().channel_bound
    };
    assert!(bound(scram(TLS, BOTH, "p=tls-server-end-point,,", &[0xab; 32]).unwrap()));
    assert!(!bound(scram(TLS, ONLY_SCRAM, "y,,", b"").unwrap()));
    assert!(!bound(scram(HASHLESS, BOTH, "n,,", b"").unwrap()));
    assert!(!bound(answer(Prefer, TLS, Authentication::CleartextPassword).unwrap().0));
}

#[test]
fn a_binding_counts_only_once_the_server_has_proven_itself() {
    let offer = Authentication::Sasl(Strings::new(BOTH).unwrap());
    let (mut handshake, _) = answer(Require, TLS, offer).unwrap();
    let challenge = format!("r={NONCE}x,s=QSXCR+Q6sek8bf92,i=1");
    let mut step = |step| handshake.handle(Message::Authentication(step), &mut BytesMut::new());
    assert_eq!(step(Authentication::SaslContinue(challenge.as_bytes())), Ok(Progress::Waiting));
    assert_eq!(step(Authentication::SaslFinal(b"v=AAAA")), Err(ScramError::ServerSignature.into()));
    assert!(!handshake.into_session().channel_bound);

    let (mut handshake, _) = answer(Require, TLS, offer).unwrap();
    let skipped = Message::Authentication(Authentication::Ok);
    assert_eq!(handshake.handle(skipped, &mut BytesMut::new()), Err(HandshakeError::ProofSkipped));
}

#[test]
fn another_certificate_makes_another_proof() {
    let mut seen = [0xab; 32];
    seen[31] ^= 1;
    assert!(scram(TLS, BOTH, "p=tls-server-end-point,,", &seen).is_none());
    assert!(scram(TLS, BOTH, "p=tls-server-end-point,,", &[0xab; 31]).is_none());
}

#[test]
fn a_server_that_was_robbed_of_its_offer_notices() {
    // It offered both, somebody took PLUS away, and the client says `y` under its proof.
    assert!(scram(TLS, ONLY_SCRAM, "n,,", b"").is_none());
}

/// The server's copy of a password was prepared when it was stored as a SCRAM secret; as md5, it was not.
#[cfg(feature = "saslprep")]
#[test]
fn a_password_is_prepared_for_scram_and_for_nothing_else() {
    let answer = |password: &str, step| {
        let startup = Startup { user: "owl", ..Startup::default() };
        let credentials = Credentials {
            password: Some(password.as_bytes()),
            allow: AuthMethods::ALL,
            ..Credentials::default()
        };
        let mut out = BytesMut::new();
        let mut handshake = Handshake::start(startup, credentials, NONCE.into(), &mut out).unwrap();
        out.clear();
        let _ = handshake.handle(Message::Authentication(step), &mut out).unwrap();
        if let Authentication::Sasl(_) = step {
            out.clear();
            let challenge = format!("r={NONCE}x,s=QSXCR+Q6sek8bf92,i=1");
            let challenge = Authentication::SaslContinue(challenge.as_bytes());
            let _ = handshake.handle(Message::Authentication(challenge), &mut out).unwrap();
        }
        out
    };
    let scram = Authentication::Sasl(Strings::new(ONLY_SCRAM).unwrap());
    assert_eq!(answer("\u{2168}", scram), answer("IX", scram));
    for step in [Authentication::CleartextPassword, Authentication::Md5Password { salt: [1; 4] }] {
        assert_ne!(answer("\u{2168}", step), answer("IX", step));
    }
}
