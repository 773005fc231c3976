//! Kafka's transactions, as a relay with `DELIVERY=exactly-once` needs them: its position is read, and a transaction of
//! nothing but a position is begun and aborted, under a transactional id and in a group of its own, because the
//! relay's would be fenced.

use super::report::Check;
use crate::config::Config;
use crate::kafka::{Kafka, Tls};
use crate::relay::ExactlyOnce;
use crate::relay::error_code::{
    CONCURRENT_TRANSACTIONS, COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE,
    GROUP_AUTHORIZATION_FAILED, INVALID_TRANSACTION_TIMEOUT, NOT_COORDINATOR,
    TOPIC_AUTHORIZATION_FAILED, TRANSACTIONAL_ID_AUTHORIZATION_FAILED, UNSTABLE_OFFSET_COMMIT,
    name as error_name,
};
use crate::relay::kafka::{
    Answer, BrokerId, Coordinated, CoordinatorOf, PositionPlace, Request, StoredPosition,
    Transaction, TransactionVersion, Unanswered,
};
use crate::run;
use factlib_protocol::Lsn;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

const NAME: &str = "transactions";

/// What of ours is not the relay's ends so.
const SUFFIX: &str = "-check";

/// No slot is at stake: longer than all of it takes.
const LEASE: Duration = Duration::from_secs(60 * 60);

/// How long until a coordinator that is busy is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// A coordinator that is asked for first has to be made; a relay that runs holds its position for a moment only.
const BUSY: [i16; 5] = [
    COORDINATOR_LOAD_IN_PROGRESS,
    COORDINATOR_NOT_AVAILABLE,
    NOT_COORDINATOR,
    CONCURRENT_TRANSACTIONS,
    UNSTABLE_OFFSET_COMMIT,
];

/// What is done, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    FindCoordinator,
    FindGroup,
    ReadPosition,
    Begin,
    AddGroup,
    CommitPosition,
    Abort,
}

/// Where it ended, and by Kafka's error code, or without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refused {
    step: Step,
    why: Result<i16, Unanswered>,
}

/// What was seen where all went well.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    coordinator: BrokerId,
    version: TransactionVersion,
    position: Option<StoredPosition>,
    /// From the begin to the abort.
    took: Duration,
}

/// Looks, and judges. `id` is the relay's transactional id and group, and the position's topic may not be there yet.
pub(super) async fn check(
    config: &Config,
    settings: &ExactlyOnce,
    id: &str,
    has_topic: bool,
    tls: Option<Tls>,
) -> Check {
    let (answers, inbox) = mpsc::unbounded_channel();
    let kafka = Kafka::new(run::kafka_config(config, tls), answers);
    let now = Instant::now();
    kafka.lease_until((now + LEASE).into_std());
    let until = now + config.limits.request;
    let mut trial = Trial { kafka, inbox, until };
    judge(settings, id, trial.run(settings, id, has_topic).await)
}

/// Asks one thing after the other.
#[derive(Debug)]
struct Trial {
    kafka: Kafka,
    inbox: mpsc::UnboundedReceiver<Answer>,
    until: Instant,
}

impl Trial {
    /// Asks until it is answered, and the coordinator is not busy.
    async fn ask<T>(
        &mut self,
        step: Step,
        request: &Request,
        of: impl Fn(Answer) -> Option<Coordinated<T>>,
    ) -> Result<T, Refused> {
        loop {
            self.kafka.send(request.clone());
            let ended = || Some(Err(Unanswered("the Kafka driver has ended".to_owned())));
            let answer = self.inbox.recv().await.map_or_else(ended, &of);
            let other = || Err(Unanswered("an answer to something else".to_owned()));
            let why = match answer.unwrap_or_else(other) {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(code)) if BUSY.contains(&code) && Instant::now() < self.until => {
                    sleep(PAUSE).await;
                    continue;
                }
                Ok(Err(code)) => Ok(code),
                Err(cause) => Err(cause),
            };
            return Err(Refused { step, why });
        }
    }

    async fn coordinator(
        &mut self,
        step: Step,
        of: CoordinatorOf,
        key: &str,
    ) -> Result<BrokerId, Refused> {
        let request = Request::FindCoordinator { of, key: Arc::from(key) };
        let answer = |answer| match answer {
            Answer::Coordinator { of: found, answer } if found == of => Some(answer),
            _ => None,
        };
        self.ask(step, &request, answer).await
    }

    async fn run(
        &mut self,
        settings: &ExactlyOnce,
        id: &str,
        has_topic: bool,
    ) -> Result<Seen, Refused> {
        let transactions = CoordinatorOf::Transactions;
        self.coordinator(Step::FindCoordinator, transactions, id).await?;
        let of_group = self.coordinator(Step::FindGroup, CoordinatorOf::Group, id).await?;
        let place = |group: &str| PositionPlace {
            group: Arc::from(group),
            topic: Arc::clone(&settings.position_topic),
        };
        let mut position = None;
        if has_topic {
            let request = Request::FetchPosition { coordinator: of_group, place: place(id) };
            position = self
                .ask(Step::ReadPosition, &request, |answer| match answer {
                    Answer::Position(answer) => Some(answer),
                    _ => None,
                })
                .await?;
        }

        let ours = format!("{id}{SUFFIX}");
        let id: Arc<str> = Arc::from(ours.as_str());
        let coordinator = self.coordinator(Step::FindCoordinator, transactions, &ours).await?;
        let of_group = self.coordinator(Step::FindGroup, CoordinatorOf::Group, &ours).await?;
        let begun = Instant::now();
        let request = Request::InitTransactions {
            coordinator,
            id: Arc::clone(&id),
            timeout: settings.timeout,
            producer: None,
        };
        let (producer, version) = self
            .ask(Step::Begin, &request, |answer| match answer {
                Answer::TransactionsReady(answer) => Some(answer),
                _ => None,
            })
            .await?;
        let transaction = Transaction { coordinator, id: Arc::clone(&id), producer };
        if version == TransactionVersion::Explicit {
            let request =
                Request::AddOffsets { transaction: transaction.clone(), group: Arc::clone(&id) };
            self.ask(Step::AddGroup, &request, |answer| match answer {
                Answer::OffsetsAdded(answer) => Some(answer),
                _ => None,
            })
            .await?;
        }
        if has_topic {
            let request = Request::CommitPosition {
                coordinator: of_group,
                id,
                producer,
                version,
                place: place(&ours),
                position: StoredPosition { offset: 0, metadata: String::new() },
            };
            self.ask(Step::CommitPosition, &request, |answer| match answer {
                Answer::PositionCommitted(answer) => Some(answer),
                _ => None,
            })
            .await?;
        }
        let request = Request::EndTransaction { transaction, version, commit: false };
        self.ask(Step::Abort, &request, |answer| match answer {
            Answer::TransactionEnded(answer) => Some(answer),
            _ => None,
        })
        .await?;
        Ok(Seen { coordinator, version, position, took: begun.elapsed() })
    }
}

/// What follows from it. Pure.
fn judge(settings: &ExactlyOnce, id: &str, outcome: Result<Seen, Refused>) -> Check {
    let topic = &settings.position_topic;
    let Refused { step, why } = match outcome {
        Ok(Seen { coordinator, version, position, took }) => {
            let how = match version {
                TransactionVersion::Explicit => "transaction.version below 2",
                TransactionVersion::EpochPerTransaction => "transaction.version 2",
            };
            let position = match position {
                Some(kept) => format!("group {id} keeps {}", Lsn(kept.offset.cast_unsigned())),
                None => format!("group {id} keeps no position"),
            };
            return Check::ok(
                NAME,
                format!(
                    "{position}; one was begun and aborted in {} ms by coordinator {coordinator}, {how}",
                    took.as_millis()
                ),
            );
        }
        Err(refused) => refused,
    };
    let doing = match step {
        Step::FindCoordinator => "finding the coordinator of transactions",
        Step::FindGroup => "finding the coordinator of the group",
        Step::ReadPosition => "reading the position",
        Step::Begin => "beginning a transaction",
        Step::AddGroup => "adding a group to a transaction",
        Step::CommitPosition => "committing a position in a transaction",
        Step::Abort => "aborting a transaction",
    };
    let code = match why {
        Ok(code) => code,
        Err(Unanswered(cause)) => {
            let sentence = format!(
                "{doing}: {cause}; see to the brokers, which must know transactions of Apache Kafka 3.7"
            );
            return Check::failure(NAME, &sentence);
        }
    };
    let said = error_name(code);
    // Rights that are given for one name only do not tell of the relay's.
    let is_ours = !matches!(step, Step::FindCoordinator | Step::FindGroup | Step::ReadPosition);
    let (sentence, is_sure) = match code {
        TRANSACTIONAL_ID_AUTHORIZATION_FAILED if is_ours => (
            format!(
                "this client may not write with the transactional id {id}{SUFFIX} ({said}), and so perhaps not with \
                 {id}; allow it WRITE on transactional ids with the prefix {id}"
            ),
            false,
        ),
        TRANSACTIONAL_ID_AUTHORIZATION_FAILED => (
            format!(
                "this client may not describe transactional ids with the prefix {id} ({said}); allow it DESCRIBE and \
                 WRITE on them"
            ),
            true,
        ),
        GROUP_AUTHORIZATION_FAILED if is_ours => (
            format!(
                "this client may not read group {id}{SUFFIX} ({said}), and so perhaps not {id}; allow it READ on \
                 groups with the prefix {id}"
            ),
            false,
        ),
        GROUP_AUTHORIZATION_FAILED => (
            format!(
                "this client may not describe groups with the prefix {id} ({said}); allow it READ on them"
            ),
            true,
        ),
        TOPIC_AUTHORIZATION_FAILED => (
            format!(
                "this client may not keep a position for topic {topic} ({said}); allow it READ on it"
            ),
            true,
        ),
        INVALID_TRANSACTION_TIMEOUT => (
            format!(
                "the brokers' transaction.max.timeout.ms is below TRANSACTION_TIMEOUT, {} ({said}); lower that, or \
                 raise it there",
                humantime::format_duration(settings.timeout)
            ),
            true,
        ),
        _ => (format!("{doing} was refused ({said}); look at the brokers"), true),
    };
    match is_sure {
        true => Check::failure(NAME, &sentence),
        false => Check::warning(NAME, &sentence),
    }
}

/// Without PostgreSQL it is not known under which name.
pub(super) fn nameless() -> Check {
    let sentence = "not looked at, because their id is made of what PostgreSQL says of itself; see to PostgreSQL first";
    Check::warning(NAME, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::report::Verdict;
    use crate::relay::LargeTransactions;
    use crate::relay::error_code::{INVALID_TXN_STATE, NOT_ENOUGH_REPLICAS};
    use crate::relay::kafka::NewTopic;

    fn settings() -> ExactlyOnce {
        ExactlyOnce {
            slot: "s".to_owned(),
            position_topic: Arc::from("p"),
            position_topic_like: NewTopic {
                partitions: Some(1),
                replication_factor: None,
                configs: Vec::new(),
            },
            timeout: Duration::from_secs(1200),
            interval: Duration::from_millis(50),
            bytes_max: 1,
            facts_max: 1,
            large: LargeTransactions::Split,
            standby: false,
        }
    }

    #[test]
    fn what_went_well_is_said_with_the_position() {
        let seen = Seen {
            coordinator: 3,
            version: TransactionVersion::EpochPerTransaction,
            position: Some(StoredPosition { offset: 0x1_0000_0abc, metadata: String::new() }),
            took: Duration::from_millis(12),
        };
        let words = judge(&settings(), "id", Ok(seen.clone())).to_string();
        let expected = "group id keeps 1/ABC; one was begun and aborted in 12 ms by coordinator 3, \
                        transaction.version 2";
        assert_eq!(words, expected);
        let seen = Seen { position: None, version: TransactionVersion::Explicit, ..seen };
        let words = judge(&settings(), "id", Ok(seen)).to_string();
        assert!(words.starts_with("group id keeps no position; ") && words.ends_with("below 2"));
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        let (warning, failure) = (Verdict::Warning, Verdict::Failure);
        for (step, code, verdict, words) in [
            (
                Step::FindCoordinator,
                TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
                failure,
                "may not describe transactional ids with the prefix id",
            ),
            (
                Step::Begin,
                TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
                warning,
                "may not write with the transactional id id-check",
            ),
            (Step::FindGroup, GROUP_AUTHORIZATION_FAILED, failure, "allow it READ on them"),
            (Step::ReadPosition, GROUP_AUTHORIZATION_FAILED, failure, "allow it READ on them"),
            (Step::AddGroup, GROUP_AUTHORIZATION_FAILED, warning, "may not read group id-check"),
            (Step::CommitPosition, TOPIC_AUTHORIZATION_FAILED, failure, "for topic p"),
            (Step::Begin, INVALID_TRANSACTION_TIMEOUT, failure, "TRANSACTION_TIMEOUT, 20m"),
            (Step::Abort, INVALID_TXN_STATE, failure, "aborting a transaction was refused"),
            (Step::Begin, NOT_ENOUGH_REPLICAS, failure, "beginning a transaction was refused"),
        ] {
            let check = judge(&settings(), "id", Err(Refused { step, why: Ok(code) }));
            assert_eq!(check.verdict, verdict, "{step:?}: {check}");
            assert!(check.to_string().contains(words), "{step:?}: {check}");
            assert!(check.remedy.is_some(), "{step:?}: {check}");
        }
        let why = Err(Unanswered("silence".to_owned()));
        let check = judge(&settings(), "id", Err(Refused { step: Step::Begin, why }));
        let words = "beginning a transaction: silence; see to the brokers";
        assert!(check.verdict == failure && check.to_string().starts_with(words), "{check}");
    }
}
