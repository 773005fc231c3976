//! Log-in, at brokers that play foul.

use super::*;
use crate::config::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rsasl::mechanisms::scram::tools::{compute_signatures, derive_keys, hash_password};
use sha2::{Digest as _, Sha256};

const PASSWORD: &str = "correct horse battery";

/// How long the whole of a log-in may take in these tests.
const PATIENCE: Duration = Duration::from_secs(3);

/// SaslHandshake, version 1.
fn offer(error: i16, mechanisms: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_i16(error);
    out.put_i32(i32::try_from(mechanisms.len()).unwrap());
    mechanisms.iter().for_each(|name| put_string(&mut out, name));
    out
}

/// SaslAuthenticate, version 1.
fn answer(error: i16, text: Option<&str>, bytes: &[u8], lifetime: i64) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_i16(error);
    match text {
        Some(text) => put_string(&mut out, text),
        None => out.put_i16(-1),
    }
    out.put_i32(i32::try_from(bytes.len()).unwrap());
    out.put_slice(bytes);
    out.put_i64(lifetime);
    out
}

fn say(bytes: impl AsRef<[u8]>) -> Reaction {
    Reaction::Answer(answer(0, None, bytes.as_ref(), 0))
}

fn error(code: i16, text: Option<&str>) -> Reaction {
    Reaction::Answer(answer(code, text, &[], 0))
}

/// The nonce of a `client-first-message`.
fn nonce(first: &str) -> &str {
    first.strip_prefix("n,,n=owl,r=").unwrap()
}

/// What a broker that knows this password says to the messages of a SCRAM-SHA-256 log-in so far.
fn honest(messages: &[String], password: &str) -> String {
    let salt = BASE64.encode("salt");
    match messages {
        [first] => format!("r={}+broker,s={salt},i=4096", nonce(first)),
        [first, last] => {
            assert!(last.starts_with(&format!("c=biws,r={}+broker,p=", nonce(first))), "{last}");
            let (mut salted, mut proof, mut signature) = <(_, _, _)>::default();
            hash_password::<Sha256>(password.as_bytes(), 4096, b"salt", &mut salted);
            let (client_key, server_key) = derive_keys::<Sha256>(&salted);
            compute_signatures::<Sha256>(
                &Sha256::digest(client_key),
                &server_key,
                "owl",
                nonce(first).as_bytes(),
                b"+broker",
                salt.as_bytes(),
                b"4096",
                b"biws",
                &mut proof,
                &mut signature,
            );
            format!("v={}", BASE64.encode(signature))
        }
        _ => panic!("{messages:?}"),
    }
}

/// A broker that offers the mechanism, says this to the messages of a log-in so far, and serves whoever asks
/// it, logged in or not.
async fn broker(authenticate: impl Fn(&[String]) -> Reaction + Send + Sync + 'static) -> Broker {
    let messages = Mutex::new(Vec::new());
    asked(move |incoming| {
        let mut messages = messages.lock().unwrap();
        if incoming.api == SASL_HANDSHAKE {
            messages.clear();
            return Reaction::Answer(offer(0, &["PLAIN", "SCRAM-SHA-256"]));
        }
        assert_eq!(incoming.version, 1);
        let mut body = incoming.body.clone();
        assert_eq!(usize::try_from(body.get_i32()).unwrap(), body.len());
        messages.push(String::from_utf8(body.to_vec()).unwrap());
        authenticate(&messages)
    })
    .await
}

/// A broker that says this to all that belongs to a log-in, and serves whoever asks it, logged in or not.
async fn asked(sasl: impl Fn(&Incoming) -> Reaction + Send + Sync + 'static) -> Broker {
    let port = Arc::new(AtomicUsize::new(0));
    let own = Arc::clone(&port);
    let broker = Broker::start(move |i| match i.api {
        METADATA => metadata(i, &[(1, u16::try_from(own.load(Ordering::SeqCst)).unwrap())]),
        PRODUCE => stored(i),
        SASL_HANDSHAKE | SASL_AUTHENTICATE => sasl(i),
        _ => Reaction::Answer(vec![]),
    })
    .await;
    port.store(usize::from(broker.port), Ordering::SeqCst);
    broker
}

fn driver(broker: &Broker, mechanism: Mechanism, limit: Duration) -> Driver {
    Driver::new(&[&broker.address()], |config| {
        config.connect_timeout = limit;
        let (username, password) = ("owl".to_owned(), Secret::new(PASSWORD));
        config.sasl = Some(Sasl::Password { mechanism, username, password });
    })
}

/// It is no broker of ours: one short sentence says so and where, at once and without a secret, and
/// nothing is asked of it.
async fn refused(broker: &Broker, mechanism: Mechanism, words: &str) {
    refused_within(broker, mechanism, PATIENCE, words).await;
}

async fn refused_within(broker: &Broker, mechanism: Mechanism, limit: Duration, words: &str) {
    let mut driver = driver(broker, mechanism, limit);
    let begun = Instant::now();
    let Unanswered(cause) = driver.metadata(&[]).await.unwrap_err();
    assert!(cause.starts_with(&format!("{}: ", broker.address())), "{cause}");
    assert!(cause.contains(words), "{words:?} is not in {cause}");
    assert!(!cause.contains("battery"), "{cause}");
    assert!(!cause.contains(char::is_control) && cause.len() < 600, "{cause:?}");
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    assert_eq!(broker.seen(METADATA).len(), 0, "{cause}");
    assert_eq!(broker.connections.load(Ordering::SeqCst), 1, "{cause}");
    broker.has_open(0).await;
}

#[tokio::test]
async fn an_honest_broker_is_logged_in_to_and_so_is_one_that_answers_byte_by_byte() {
    for bytewise in [false, true] {
        let broker = broker(move |messages| {
            let body = answer(0, None, honest(messages, PASSWORD).as_bytes(), 0);
            if bytewise { Reaction::Bytewise(body) } else { Reaction::Answer(body) }
        })
        .await;
        let mut driver = driver(&broker, Mechanism::ScramSha256, PATIENCE);
        driver.metadata(&["t"]).await.unwrap();
    }
}

#[tokio::test]
async fn a_first_message_of_scram_that_cannot_be_is_refused() {
    let salt = BASE64.encode("salt");
    let count = "iteration count is not a number from 4096 to 100000";
    for (message, words) in [
        ("r=NONC,s=SALT,i=4096".to_owned(), "nonce is invalid"),
        ("r=NONCE,s=SALT,i=4096".to_owned(), "nonce is invalid"),
        ("r=foreign,s=SALT,i=4096".to_owned(), "nonce is invalid"),
        ("r=+brokerNONCE,s=SALT,i=4096".to_owned(), "nonce is invalid"),
        ("r=NONCE+b,s=SALT,i=0".to_owned(), count),
        ("r=NONCE+b,s=SALT,i=1".to_owned(), count),
        ("r=NONCE+b,s=SALT,i=4095".to_owned(), count),
        ("r=NONCE+b,s=SALT,i=100001".to_owned(), count),
        ("r=NONCE+b,s=SALT,i=4294967295".to_owned(), count),
        ("r=NONCE+b,s=SALT,i=99999999999999999999".to_owned(), count),
        ("r=NONCE+b,s=SALT,i=-4096".to_owned(), count),
        ("r=NONCE+b,s=SALT,i=many".to_owned(), count),
        ("r=NONCE+b,s=SALT,i=".to_owned(), count),
        ("r=NONCE+b,s=SALT".to_owned(), "incomplete"),
        ("r=NONCE+b,i=4096".to_owned(), "incomplete"),
        ("r=NONCE+b,i=4096,x=y".to_owned(), "no salt"),
        ("r=NONCE+b,s=,i=4096".to_owned(), "no salt"),
        ("r=NONCE+b,s=!,i=4096".to_owned(), "base64"),
        ("m=extension,r=NONCE+b,s=SALT,i=4096".to_owned(), "no salt"),
        ("v=SALT".to_owned(), "attribute"),
        ("e=other-error".to_owned(), "does not let user \"owl\" in by SCRAM-SHA-256: other-error"),
        (format!("e={PASSWORD}\n{PASSWORD}"), "does not let user \"owl\" in"),
        (String::new(), "is not one of SCRAM"),
        (",,,,".to_owned(), "is not one of SCRAM"),
        ("x".repeat(10_000), "is too long"),
        (format!("r=NONCE+{},s=SALT,i=4096", "b".repeat(1 << 20)), "is too long"),
    ] {
        let salt = salt.clone();
        let broker = broker(move |messages| {
            let nonce = nonce(messages.first().unwrap());
            assert_eq!(messages.len(), 1, "no proof goes to such a broker");
            let message = message.replace("NONCE", nonce).replace("SALT", &salt);
            say(message.replace("NONC", &nonce[..nonce.len() - 1]))
        })
        .await;
        refused(&broker, Mechanism::ScramSha256, words).await;
    }
    let broker = broker(|_| say(b"r=\xff,s=\xff,i=4096")).await;
    refused(&broker, Mechanism::ScramSha256, "is not text").await;
}

#[tokio::test]
async fn a_broker_that_does_not_prove_that_it_knows_the_password_is_refused() {
    let unproven = "could not prove that it knows the password";
    type Final = fn(&[String]) -> String;
    for (last, words) in [
        ((|_| String::new()) as Final, "is not one of SCRAM"),
        (|_| "v=".to_owned(), unproven),
        (|_| format!("v={}", BASE64.encode([0; 32])), unproven),
        (|_| "v=!".to_owned(), "base64"),
        (|messages| honest(messages, "another password"), unproven),
        (|messages| honest(messages, PASSWORD).replace("v=", "v=AAAA"), unproven),
        (|messages| honest(messages, PASSWORD)[..40].to_owned(), "base64"),
        (|messages| honest(&messages[..1], PASSWORD), "attribute"),
        (|_| "e=invalid-proof".to_owned(), "in by SCRAM-SHA-256: invalid-proof; check KAFKA_"),
        (|_| format!("e={}", "\u{1b}[31m".repeat(900)), "does not let user \"owl\" in"),
        (|_| "x".repeat(5000), "is too long"),
    ] {
        let broker = broker(move |messages| match messages {
            [_] => say(honest(messages, PASSWORD)),
            _ => say(last(messages)),
        })
        .await;
        refused(&broker, Mechanism::ScramSha256, words).await;
        assert_eq!(broker.seen(SASL_AUTHENTICATE).len(), 2);
    }
}

#[tokio::test]
async fn a_mechanism_that_is_not_offered_is_said_with_those_that_are() {
    let many = vec!["SOME-MECHANISM"; 10_000];
    let long = "M".repeat(30_000);
    for (body, words) in [
        (
            offer(33, &["GSSAPI", "PLAIN"]),
            "does not offer SCRAM-SHA-256, but GSSAPI, PLAIN; set KAFKA_SASL_MECHANISM",
        ),
        (offer(33, &[]), "SCRAM-SHA-256: UnsupportedSaslMechanism; set KAFKA_SASL_MECHANISM"),
        (vec![0, 33, 255, 255, 255, 255], "UnsupportedSaslMechanism"),
        (offer(34, &["SCRAM-SHA-256"]), "log-in by SCRAM-SHA-256: IllegalSaslState"),
        (offer(-1, &[]), "log-in by SCRAM-SHA-256"),
        (offer(12_345, &["PLAIN"]), "log-in by SCRAM-SHA-256"),
        (offer(33, &many), "does not offer SCRAM-SHA-256, but SOME-MECHANISM"),
        (offer(33, &[&long]), "does not offer SCRAM-SHA-256, but MMM"),
        (offer(33, &["A\r\nB", PASSWORD]), "does not offer SCRAM-SHA-256"),
    ] {
        let broker = asked(move |incoming| {
            assert_eq!(
                (incoming.api, &incoming.body[2..]),
                (SASL_HANDSHAKE, &b"SCRAM-SHA-256"[..])
            );
            Reaction::Answer(body.clone())
        })
        .await;
        refused(&broker, Mechanism::ScramSha256, words).await;
    }
}

#[tokio::test]
async fn what_the_broker_says_of_a_refusal_is_passed_on_but_not_the_password() {
    let long = "x".repeat(30_000);
    let echo = format!("{PASSWORD} is not the password");
    for (code, text, words) in [
        (58, Some("Invalid credentials"), "in by PLAIN: Invalid credentials; check KAFKA_USERNAME"),
        (58, None, "in by PLAIN: SaslAuthenticationFailed; check KAFKA_USERNAME"),
        (58, Some(""), "in by PLAIN: SaslAuthenticationFailed; check KAFKA_USERNAME"),
        (58, Some("two\r\nlines\0"), "in by PLAIN: two  lines ; check KAFKA_USERNAME"),
        (58, Some(&*long), "in by PLAIN: xxxxx"),
        (58, Some(&*echo), "in by PLAIN: (a text with the password in it); check KAFKA_USERNAME"),
        (34, None, "in by PLAIN: IllegalSaslState; check KAFKA_USERNAME"),
        (-1, Some("out of order"), "in by PLAIN: out of order; check KAFKA_USERNAME"),
        (12_345, None, "in by PLAIN"),
    ] {
        let text = text.map(str::to_owned);
        let broker = broker(move |_| error(code, text.as_deref())).await;
        refused(&broker, Mechanism::Plain, words).await;
    }
}

#[tokio::test]
async fn lengths_that_cannot_be_are_refused_in_every_step() {
    let with = |bytes: &[&[u8]]| bytes.concat();
    let length = i32::to_be_bytes;
    let lost = "log-in by PLAIN: ";
    for body in [
        with(&[&[0, 0], &length(i32::MAX)]),
        with(&[&[0, 0], &length(i32::MIN)]),
        with(&[&[0, 0], &length(1), &[255, 255]]),
        with(&[&[0, 0], &length(1), &[127, 255], b"PLAIN"]),
        with(&[&[0, 0], &length(1), &[0, 1, 255]]),
        with(&[&offer(0, &["PLAIN"]), b"more"]),
        vec![],
        vec![0],
    ] {
        let broker = asked(move |_| Reaction::Answer(body.clone())).await;
        refused(&broker, Mechanism::Plain, lost).await;
    }
    let none: [u8; 8] = [0; 8];
    for body in [
        with(&[&[0, 0, 255, 255], &length(i32::MAX), &none]),
        with(&[&[0, 0, 255, 255], &length(i32::MIN), &none]),
        with(&[&[0, 0, 255, 255], &length(-1), &none]),
        with(&[&[0, 0, 255, 254], &length(0), &none]),
        with(&[&[0, 0, 127, 255], &length(0), &none]),
        with(&[&[0, 58, 0, 1, 255], &length(0), &none]),
        with(&[&answer(0, None, b"", 0), b"more"]),
        answer(0, None, b"", 0)[..15].to_vec(),
        vec![],
    ] {
        let broker = broker(move |_| Reaction::Answer(body.clone())).await;
        refused(&broker, Mechanism::Plain, lost).await;
    }
}

#[tokio::test]
async fn a_frame_that_cannot_be_is_refused_in_every_step() {
    for (frame, words) in [
        (vec![255; 4], "Negative message size"),
        // What it announces is waited for, and thrown away.
        (vec![127, 255, 255, 255], "not logged in within"),
        (b"HTTP/1.1 400 Bad Request\r\n".to_vec(), "not logged in within"),
        // Too short for a correlation id, and an answer to something else.
        (vec![0, 0, 0, 1, 0], "not logged in within"),
        (framed(77, &answer(0, None, b"", 0)), "not logged in within"),
    ] {
        for step in [SASL_HANDSHAKE, SASL_AUTHENTICATE] {
            let frame = frame.clone();
            let broker = asked(move |incoming| match incoming.api == step {
                true => Reaction::Raw(frame.clone()),
                false => Reaction::Answer(offer(0, &["PLAIN"])),
            })
            .await;
            refused_within(&broker, Mechanism::Plain, SHORT, words).await;
        }
    }
}

#[tokio::test]
async fn a_broker_that_falls_silent_or_hangs_up_at_any_step_is_given_up() {
    let hint = "closed the connection (does this listener want SASL, and this mechanism?)";
    type Fate = fn(Vec<u8>) -> Reaction;
    for (fate, words) in [
        ((|_| Reaction::Silence) as Fate, "connected, but not logged in within"),
        (|_| Reaction::Close, hint),
        (Reaction::HalfThenClose, hint),
    ] {
        for at in 0..3 {
            let steps = AtomicUsize::new(0);
            let messages = Mutex::new(Vec::new());
            let broker = asked(move |incoming| {
                let mut messages = messages.lock().unwrap();
                let body = if incoming.api == SASL_HANDSHAKE {
                    offer(0, &["SCRAM-SHA-256"])
                } else {
                    messages.push(String::from_utf8(incoming.body[4..].to_vec()).unwrap());
                    answer(0, None, honest(&messages, PASSWORD).as_bytes(), 0)
                };
                match steps.fetch_add(1, Ordering::SeqCst) == at {
                    true => fate(body),
                    false => Reaction::Answer(body),
                }
            })
            .await;
            refused_within(&broker, Mechanism::ScramSha256, SHORT, words).await;
        }
    }
}

/// A driver with this token in its file.
fn bearer(broker: &Broker, token: &str) -> (tempfile::NamedTempFile, Driver) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), token).unwrap();
    let driver = Driver::new(&[&broker.address()], |config| {
        config.connect_timeout = PATIENCE;
        config.sasl = Some(Sasl::Token { file: file.path().to_owned() });
    });
    (file, driver)
}

#[tokio::test]
async fn a_token_is_read_again_for_each_connection() {
    let broker = broker(|messages| {
        assert_eq!(messages.len(), 1);
        Reaction::Answer(answer(0, None, b"", 1))
    })
    .await;
    let (file, mut driver) = bearer(&broker, "first.token_-~+/=\n");
    driver.metadata(&["t"]).await.unwrap();
    std::fs::write(file.path(), "second").unwrap();
    driver.send(1, 0, b"x");
    driver.produced().await;
    let said: Vec<_> = broker
        .seen(SASL_AUTHENTICATE)
        .iter()
        .map(|i| String::from_utf8(i.body[4..].to_vec()).unwrap())
        .collect();
    let bearer = |token: &str| format!("n,,\x01auth=Bearer {token}\x01\x01");
    assert_eq!(said, [bearer("first.token_-~+/="), bearer("second")]);
    let asked = &broker.seen(SASL_HANDSHAKE)[0].body[2..];
    assert_eq!(asked, b"OAUTHBEARER");
}

#[tokio::test]
async fn why_a_token_is_not_taken_is_said_without_it() {
    const TOKEN: &str = "eyJhbGciOiJub25lIn0.secret.";
    type Says = fn(&[String]) -> Reaction;
    for (says, words) in [
        // As a broker does: the reason as JSON, and after one more byte the error.
        (
            (|messages| match messages {
                [_] => say(r#"{"status":"invalid_token","scope":"kafka"}"#),
                [_, last] => {
                    assert_eq!(last, "\x01");
                    error(58, Some("Authentication failed"))
                }
                _ => panic!("{messages:?}"),
            }) as Says,
            "does not take our token: {\"status\":\"invalid_token\",\"scope\":\"kafka\"}; check KAFKA_SASL_OAUTHBEARER_TOKEN_FILE",
        ),
        (|_| error(58, Some("expired")), "does not take our token: expired; check"),
        (
            |messages| say(messages[0].clone()),
            "does not take our token: (a text with the password in it)",
        ),
        (
            |messages| if messages.len() == 1 { say("no") } else { Reaction::Close },
            "token: no; check",
        ),
    ] {
        let broker = broker(says).await;
        let (_file, mut driver) = bearer(&broker, TOKEN);
        let Unanswered(cause) = driver.metadata(&[]).await.unwrap_err();
        assert!(cause.contains(words), "{words:?} is not in {cause}");
        assert!(!cause.contains("secret") && !cause.contains(char::is_control), "{cause:?}");
        assert!(broker.seen(METADATA).is_empty());
    }
}

#[tokio::test]
async fn a_file_that_holds_no_token_is_named_and_nothing_of_it_is_sent() {
    let long = "x".repeat(600 * 1024);
    for (token, words) in [
        ("", "from 1 to 512,000 characters"),
        (" \n", "from 1 to 512,000 characters"),
        (&*long, "from 1 to 512,000 characters"),
        ("a b", "letters, digits"),
        ("a\x01auth=Bearer b", "letters, digits"),
        ("\u{fc}", "letters, digits"),
    ] {
        let broker = broker(|_| panic!("nothing is said to the broker")).await;
        let (file, mut driver) = bearer(&broker, token);
        let Unanswered(cause) = driver.metadata(&[]).await.unwrap_err();
        assert!(cause.contains(words), "{words:?} is not in {cause}");
        assert!(cause.contains(file.path().to_str().unwrap()), "{cause}");
    }
    let broker = broker(|_| panic!("nothing is said to the broker")).await;
    let mut driver = Driver::new(&[&broker.address()], |config| {
        config.sasl = Some(Sasl::Token { file: "/no/such/token".into() });
    });
    let Unanswered(cause) = driver.metadata(&[]).await.unwrap_err();
    assert!(
        cause.contains("KAFKA_SASL_OAUTHBEARER_TOKEN_FILE /no/such/token: No such file"),
        "{cause}"
    );
}

/// Metadata over the bootstrap connection, then three batches over the broker's own.
#[tokio::test]
async fn a_session_of_any_length_is_served() {
    for (lifetime, connections) in [(0, 2), (-1, 2), (i64::MIN, 2), (i64::MAX, 2), (1, 4)] {
        let broker = broker(move |_| Reaction::Answer(answer(0, None, b"", lifetime))).await;
        let mut driver = driver(&broker, Mechanism::Plain, PATIENCE);
        driver.metadata(&["t"]).await.unwrap();
        broker.has_open(0).await;
        for _ in 0..3 {
            driver.send(1, 0, b"x");
            driver.produced().await;
            // Longer than the shortest session.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let dialled = broker.connections.load(Ordering::SeqCst);
        assert_eq!(dialled, connections, "{lifetime} ms");
        driver.silent();
    }
}
