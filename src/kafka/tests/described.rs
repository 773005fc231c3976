//! How a transactional id and the position stand: who is asked, in which version, and what an answer is taken for.

use super::*;
use crate::relay::error_code::{
    NOT_COORDINATOR, TRANSACTIONAL_ID_NOT_FOUND, UNSTABLE_OFFSET_COMMIT,
};
use crate::relay::kafka::{PositionPlace, StoredPosition};

fn place() -> PositionPlace {
    PositionPlace { group: Arc::from("id"), topic: Arc::from("p") }
}

/// FindCoordinator, version 1.
fn found(port: u16) -> Reaction {
    let mut out = vec![0; 6];
    out.put_i16(-1);
    out.put_i32(9);
    put_string(&mut out, "127.0.0.1");
    out.put_i32(i32::from(port));
    Reaction::Answer(out)
}

/// DescribeTransactions, version 0, with a header that has tagged fields.
fn described(error: i16) -> Vec<u8> {
    let mut out = vec![0, 0, 0, 0, 0, 2];
    out.put_i16(error);
    put_compact_string(&mut out, "id");
    let is_known = error == 0;
    put_compact_string(&mut out, if is_known { "Ongoing" } else { "" });
    out.put_i32(60_000);
    out.put_i64(if is_known { 1234 } else { -1 });
    out.put_i64(4000);
    out.put_i16(7);
    out.put_slice(b"\x02\x02t\x02\0\0\0\x03\0\0\0");
    out
}

/// OffsetFetch, version 7: 77, and `text` beside it; or an error.
fn kept(error: i16) -> Vec<u8> {
    let offset: i64 = if error == 0 { 77 } else { -1 };
    let mut out = b"\0\0\0\0\0\x02\x02p\x02\0\0\0\0".to_vec();
    out.put_i64(offset);
    out.put_slice(b"\xff\xff\xff\xff\x05text");
    out.put_i16(error);
    out.put_slice(&[0, 0, 0, 0, 0]);
    out
}

fn admin(broker: &Broker) -> Admin {
    let mut config = Config::new(vec![broker.address()]);
    config.request_timeout = Duration::from_secs(5);
    Admin::new(config)
}

/// One that names the coordinator, and the coordinator.
async fn cluster(
    coordinates: impl Fn(&Incoming) -> Reaction + Send + Sync + 'static,
) -> (Broker, Broker) {
    let coordinator = Broker::start(move |i| match i.api {
        API_VERSIONS => Reaction::Answer(vec![]),
        _ => coordinates(i),
    })
    .await;
    let port = coordinator.port;
    let broker = Broker::start(move |i| match i.api {
        API_VERSIONS => Reaction::Answer(vec![]),
        FIND_COORDINATOR => found(port),
        other => panic!("{other} is not for any broker"),
    })
    .await;
    (broker, coordinator)
}

#[tokio::test]
async fn a_coordinator_says_how_its_transactional_id_stands() {
    let (broker, coordinator) = cluster(|_| Reaction::Answer(described(0))).await;
    let said = admin(&broker).transaction(&Arc::from("id")).await.unwrap().unwrap();
    let expected = TransactionDescription {
        state: "Ongoing".to_owned(),
        producer: ProducerId { id: 4000, epoch: 7 },
        timeout: Duration::from_secs(60),
        since_ms: Some(1234),
        partitions: vec![("t".to_owned(), 3)],
    };
    assert_eq!(said, expected);
    let asked = &coordinator.seen(DESCRIBE_TRANSACTIONS)[0];
    assert_eq!((asked.version, &*asked.body), (0, b"\0\x02\x03id\0".as_slice()));
    assert_eq!(&*broker.seen(FIND_COORDINATOR)[0].body, b"\0\x02id\x01", "of transactions");
}

#[tokio::test]
async fn an_id_that_no_coordinator_knows_is_refused_and_one_that_has_moved_is_looked_for_again() {
    let times = AtomicUsize::new(0);
    let (broker, coordinator) = cluster(move |_| {
        let code = match times.fetch_add(1, Ordering::SeqCst) {
            0 => COORDINATOR_LOAD_IN_PROGRESS,
            1 => NOT_COORDINATOR,
            _ => TRANSACTIONAL_ID_NOT_FOUND,
        };
        Reaction::Answer(described(code))
    })
    .await;
    let said = admin(&broker).transaction(&Arc::from("id")).await;
    assert_eq!(said, Ok(Err(TRANSACTIONAL_ID_NOT_FOUND)));
    assert_eq!(coordinator.seen(DESCRIBE_TRANSACTIONS).len(), 3);
    assert_eq!(broker.seen(FIND_COORDINATOR).len(), 3);
}

#[tokio::test]
async fn a_position_is_refused_while_another_one_is_in_hand_unless_that_does_not_matter() {
    let (broker, coordinator) = cluster(|i| {
        let is_stable = i.body.get(i.body.len() - 2) == Some(&1);
        Reaction::Answer(kept(if is_stable { UNSTABLE_OFFSET_COMMIT } else { 0 }))
    })
    .await;
    let mut admin = admin(&broker);
    assert_eq!(admin.position(&place(), true).await, Ok(Err(UNSTABLE_OFFSET_COMMIT)));
    let stored = StoredPosition { offset: 77, metadata: "text".to_owned() };
    assert_eq!(admin.position(&place(), false).await, Ok(Ok(Some(stored))));
    assert_eq!(coordinator.seen(OFFSET_FETCH).len(), 2);
    assert_eq!(&*broker.seen(FIND_COORDINATOR)[0].body, b"\0\x02id\0", "of a group");
}

#[tokio::test]
async fn a_coordinator_that_is_silent_or_talks_nonsense_is_unanswered() {
    let half = || {
        let mut body = described(0);
        body.pop();
        body
    };
    let (broker, _coordinator) = cluster(move |i| match i.api {
        DESCRIBE_TRANSACTIONS => Reaction::Answer(half()),
        _ => Reaction::Close,
    })
    .await;
    let mut admin = admin(&broker);
    let Err(Unanswered(cause)) = admin.transaction(&Arc::from("id")).await else { panic!() };
    assert!(cause.contains("ended early"), "{cause}");
    let Err(Unanswered(cause)) = admin.position(&place(), true).await else { panic!() };
    assert!(cause.contains("closed the connection"), "{cause}");
    let nobody = Admin::new(Config::new(vec!["127.0.0.1:1".to_owned()]));
    let mut nobody = nobody;
    assert!(nobody.transaction(&Arc::from("id")).await.is_err());
}
