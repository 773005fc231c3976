//! Transactions: what goes to which coordinator, in which version, and what not.

use super::*;
use crate::relay::error_code::{COORDINATOR_NOT_AVAILABLE, PRODUCER_FENCED};
use crate::relay::kafka::{CoordinatorOf, PositionPlace, StoredPosition, Transaction};
use TransactionVersion::{EpochPerTransaction, Explicit};

const PRODUCER: ProducerId = ProducerId { id: 4000, epoch: 7 };
const BYTES_OF_PRODUCER: [u8; 10] = [0, 0, 0, 0, 0, 0, 15, 160, 0, 7];

fn transaction() -> Transaction {
    Transaction { coordinator: 1, id: Arc::from("id"), producer: PRODUCER }
}

fn init(producer: Option<ProducerId>) -> Request {
    let (id, timeout) = (Arc::from("id"), Duration::from_secs(60));
    Request::InitTransactions { coordinator: 1, id, timeout, producer }
}

fn end(version: TransactionVersion, commit: bool) -> Request {
    Request::EndTransaction { transaction: transaction(), version, commit }
}

fn place() -> PositionPlace {
    PositionPlace { group: Arc::from("id"), topic: Arc::from("p") }
}

fn commit_position(version: TransactionVersion) -> Request {
    Request::CommitPosition {
        coordinator: 1,
        id: Arc::from("id"),
        producer: PRODUCER,
        version,
        place: place(),
        position: StoredPosition { offset: 5, metadata: "text".to_owned() },
    }
}

/// One of each that only a coordinator answers, the abort last.
fn all() -> [Request; 7] {
    [
        init(None),
        Request::AddPartitions {
            transaction: transaction(),
            partitions: vec![(Arc::from("t"), 0)],
        },
        Request::AddOffsets { transaction: transaction(), group: Arc::from("id") },
        commit_position(Explicit),
        end(Explicit, true),
        Request::FetchPosition { coordinator: 1, place: place() },
        end(Explicit, false),
    ]
}

/// The body of a flexible answer without an error.
fn fine(i: &Incoming) -> Vec<u8> {
    let producer: &[u8] = &BYTES_OF_PRODUCER;
    match i.api {
        // The header's tags, the throttle time, the error.
        INIT_PRODUCER_ID => [&[0; 7], producer, &[0]].concat(),
        END_TXN if i.version >= 5 => [&[0; 7], producer, &[0]].concat(),
        END_TXN | ADD_OFFSETS_TO_TXN => vec![0; 8],
        ADD_PARTITIONS_TO_TXN => b"\0\0\0\0\0\x02\x02t\x02\0\0\0\0\0\0\0\0\0".to_vec(),
        TXN_OFFSET_COMMIT => b"\0\0\0\0\0\x02\x02p\x02\0\0\0\0\0\0\0\0\0".to_vec(),
        OFFSET_FETCH => [
            &b"\0\0\0\0\0\x02\x02p\x02\0\0\0\0"[..],
            &77_i64.to_be_bytes(),
            b"\xff\xff\xff\xff\x05text\0\0\0\0\0\0\0",
        ]
        .concat(),
        other => panic!("{other} is not of transactions"),
    }
}

/// A broker that is alone and answers what is of transactions by `script`.
async fn coordinating(script: impl Fn(&Incoming) -> Reaction + Send + Sync + 'static) -> Broker {
    let port = Arc::new(AtomicUsize::new(0));
    let own = Arc::clone(&port);
    let broker = Broker::start(move |i| match i.api {
        METADATA => metadata(i, &[(1, u16::try_from(own.load(Ordering::SeqCst)).unwrap())]),
        // The first is the messenger's, by which it learns of the versions.
        _ => script(i),
    })
    .await;
    port.store(usize::from(broker.port), Ordering::SeqCst);
    broker
}

fn ordinary(i: &Incoming) -> Reaction {
    match i.api {
        API_VERSIONS => Reaction::Answer(vec![]),
        _ => Reaction::Answer(fine(i)),
    }
}

#[tokio::test]
async fn everything_that_is_asked_of_a_coordinator_is_answered() {
    let broker = coordinating(ordinary).await;
    let mut driver = Driver::connected(&broker).await;
    for request in all() {
        driver.kafka.send(request);
    }
    let stored = StoredPosition { offset: 77, metadata: "text".to_owned() };
    for expected in [
        Answer::TransactionsReady(Ok(Ok((PRODUCER, Explicit)))),
        Answer::PartitionsAdded(Ok(vec![0])),
        Answer::OffsetsAdded(Ok(Ok(()))),
        Answer::PositionCommitted(Ok(Ok(()))),
        Answer::TransactionEnded(Ok(Ok(None))),
        Answer::Position(Ok(Ok(Some(stored)))),
        Answer::TransactionEnded(Ok(Ok(None))),
    ] {
        assert_eq!(driver.next().await, expected);
    }
    let seen: Vec<_> = broker.log.lock().unwrap().iter().map(|i| (i.api, i.version)).collect();
    let expected = [
        (METADATA, 12),
        (INIT_PRODUCER_ID, 5),
        (ADD_PARTITIONS_TO_TXN, 3),
        (ADD_OFFSETS_TO_TXN, 4),
        (TXN_OFFSET_COMMIT, 4),
        (END_TXN, 4),
        (OFFSET_FETCH, 7),
        (END_TXN, 4),
    ];
    assert_eq!(seen, expected, "in the order of the calls");
    assert_eq!(broker.connections.load(Ordering::SeqCst), 2, "one for metadata, one for the rest");
}

#[tokio::test]
async fn the_versions_follow_what_the_cluster_has_agreed_on() {
    let broker = coordinating(|i| match i.api {
        API_VERSIONS => {
            let mut features = versions(13);
            // In the place of no tagged fields: one, of the finalised features.
            features.pop();
            features.extend([1, 2, 26, 2]);
            put_compact_string(&mut features, "transaction.version");
            features.extend([0, 2, 0, 2, 0]);
            Reaction::Frames(vec![(i.correlation, features)])
        }
        _ => Reaction::Answer(fine(i)),
    })
    .await;
    let mut driver = Driver::connected(&broker).await;
    driver.kafka.send(init(Some(PRODUCER)));
    let ready = Answer::TransactionsReady(Ok(Ok((PRODUCER, EpochPerTransaction))));
    assert_eq!(driver.next().await, ready);
    driver.kafka.send(commit_position(EpochPerTransaction));
    assert_eq!(driver.next().await, Answer::PositionCommitted(Ok(Ok(()))));
    driver.kafka.send(end(EpochPerTransaction, true));
    assert_eq!(driver.next().await, Answer::TransactionEnded(Ok(Ok(Some(PRODUCER)))));
    let version = |api| broker.seen(api).last().unwrap().version;
    assert_eq!((version(TXN_OFFSET_COMMIT), version(END_TXN)), (5, 5));
}

#[tokio::test]
async fn a_coordinator_is_asked_where_it_is_said_to_be() {
    let coordinator = Broker::start(ordinary).await;
    let port = i32::from(coordinator.port);
    let broker = coordinating(move |i| match i.api {
        FIND_COORDINATOR => {
            let (known, kind) = match &*i.body {
                b"\0\x02id\x01" => (true, 1),
                b"\0\x05group\0" => (false, 0),
                other => panic!("{other:?}"),
            };
            assert_eq!((i.version, kind), (1, u8::from(known)));
            let mut out = vec![0; 4];
            out.put_i16(if known { 0 } else { COORDINATOR_NOT_AVAILABLE });
            out.put_i16(-1);
            out.put_i32(if known { 9 } else { -1 });
            put_string(&mut out, if known { "127.0.0.1" } else { "" });
            out.put_i32(if known { port } else { -1 });
            Reaction::Answer(out)
        }
        _ => Reaction::Answer(vec![]),
    })
    .await;
    let mut driver = Driver::connected(&broker).await;
    let of = CoordinatorOf::Group;
    driver.kafka.send(Request::FindCoordinator { of, key: Arc::from("group") });
    let none = Answer::Coordinator { of, answer: Ok(Err(COORDINATOR_NOT_AVAILABLE)) };
    assert_eq!(driver.next().await, none);

    let at_nine = || Transaction { coordinator: 9, ..transaction() };
    let abort =
        || Request::EndTransaction { transaction: at_nine(), version: Explicit, commit: false };
    driver.kafka.send(abort());
    let Answer::TransactionEnded(Err(Unanswered(cause))) = driver.next().await else { panic!() };
    assert_eq!(cause, "broker 9 is not among the live brokers");

    let of = CoordinatorOf::Transactions;
    driver.kafka.send(Request::FindCoordinator { of, key: Arc::from("id") });
    assert_eq!(driver.next().await, Answer::Coordinator { of, answer: Ok(Ok(9)) });
    driver.kafka.send(abort());
    assert_eq!(driver.next().await, Answer::TransactionEnded(Ok(Ok(None))));
    assert_eq!(coordinator.seen(END_TXN).len(), 1);
    // What one says of all brokers is newer.
    driver.metadata(&[]).await.unwrap();
    driver.kafka.send(abort());
    assert!(matches!(driver.next().await, Answer::TransactionEnded(Err(_))));
}

#[tokio::test]
async fn nothing_of_a_transaction_but_its_abort_leaves_after_the_lease() {
    let broker = coordinating(ordinary).await;
    let mut driver = Driver::connected(&broker).await;
    driver.kafka.lease_until(Instant::now().into_std());
    let requests = all();
    let n = requests.len();
    for request in requests {
        driver.kafka.send(request);
    }
    let (mut refused, mut answered) = (0, vec![]);
    for _ in 0..n {
        match driver.next().await {
            Answer::TransactionsReady(Err(cause))
            | Answer::PartitionsAdded(Err(cause))
            | Answer::OffsetsAdded(Err(cause))
            | Answer::PositionCommitted(Err(cause))
            | Answer::TransactionEnded(Err(cause)) => {
                assert!(cause.0.contains("the lease on the slot was over"), "{cause}");
                refused += 1;
            }
            other => answered.push(other),
        }
    }
    assert_eq!(refused, 5);
    let [Answer::Position(Ok(Ok(Some(_)))), Answer::TransactionEnded(Ok(Ok(None)))] = &*answered
    else {
        panic!("{answered:?}")
    };
    assert_eq!(broker.seen(END_TXN).len(), 1);
    assert_eq!(broker.seen(END_TXN)[0].body.last_chunk(), Some(&[0, 0]), "an abort");
}

#[tokio::test]
async fn what_a_coordinator_does_not_answer_is_said_to_be_unanswered() {
    for n in 0..all().len() {
        let broker = coordinating(|i| match i.api {
            API_VERSIONS => Reaction::Answer(vec![]),
            _ => Reaction::Close,
        })
        .await;
        let mut driver = Driver::connected(&broker).await;
        let request = all()[n].clone();
        let expected = format!("127.0.0.1:{}: closed the connection", broker.port);
        driver.kafka.send(request.clone());
        assert_eq!(driver.next().await, request.unanswered(Unanswered(expected)));
        driver.silent();
    }
}

#[tokio::test]
async fn half_an_answer_of_a_coordinator_is_none() {
    for n in 0..all().len() {
        let broker = coordinating(|i| match i.api {
            API_VERSIONS => Reaction::Answer(vec![]),
            _ => {
                let mut body = fine(i);
                body.pop();
                Reaction::Answer(body)
            }
        })
        .await;
        let mut driver = Driver::connected(&broker).await;
        let request = all()[n].clone();
        driver.kafka.send(request.clone());
        let answer = driver.next().await;
        let cause = format!("{answer:?}");
        assert!(cause.contains("ended early"), "{request:?}: {cause}");
    }
}

#[tokio::test]
async fn a_producer_that_is_fenced_is_told_so() {
    let broker = coordinating(|i| match i.api {
        API_VERSIONS => Reaction::Answer(vec![]),
        _ => {
            let mut out = vec![0; 5];
            out.put_i16(PRODUCER_FENCED);
            if i.api == INIT_PRODUCER_ID {
                out.put_slice(&[255; 10]);
            }
            out.put_u8(0);
            Reaction::Answer(out)
        }
    })
    .await;
    let mut driver = Driver::connected(&broker).await;
    driver.kafka.send(init(Some(PRODUCER)));
    assert_eq!(driver.next().await, Answer::TransactionsReady(Ok(Err(PRODUCER_FENCED))));
    driver.kafka.send(end(Explicit, true));
    assert_eq!(driver.next().await, Answer::TransactionEnded(Ok(Err(PRODUCER_FENCED))));
    let init = &broker.seen(INIT_PRODUCER_ID)[0].body;
    assert_eq!(**init, [b"\0\x03id\0\0\xea\x60", &BYTES_OF_PRODUCER[..], &[0]].concat());
}

#[tokio::test]
async fn a_batch_of_a_transaction_goes_in_the_version_that_adds_its_partition_or_does_not() {
    let broker = lone(|i| {
        let mut body = i.body.clone();
        assert_eq!(body.split_to(4), b"\0\x03id"[..], "no tagged fields, the transactional id");
        let topic: &[u8] = if i.version >= 13 { TOPIC_ID.as_bytes() } else { b"\x02t" };
        let numbers = [&[0; 6], &100_i64.to_be_bytes()[..], &[0; 16], &[1, 0, 0]].concat();
        Reaction::Answer([&[0, 2], topic, &[2], &numbers[..], &[0], &[0; 4], &[0]].concat())
    })
    .await;
    let mut driver = Driver::connected(&broker).await;
    let known = Some(TOPIC_ID);
    for (topic_id, version, expected) in [
        (known, Explicit, 11),
        (None, Explicit, 11),
        (known, EpochPerTransaction, 13),
        (None, EpochPerTransaction, 12),
    ] {
        let batch = batch_for("t", 0, Bytes::from_static(b"x"));
        let batches = vec![PartitionBatch { topic_id, ..batch }];
        let transaction = Some((Arc::from("id"), version));
        driver.kafka.send(Request::Produce { broker: 1, transaction, batches });
        assert_eq!(driver.produced().await[0].base_offset, 100);
        assert_eq!(broker.seen(PRODUCE).last().unwrap().version, expected);
    }
}
