//! What is done to Kafka.

use super::{Scale, length};
use crate::scenes::{
    COORDINATOR_KILLED, COORDINATOR_MOVED, GROUP_MOVED, GROUP_STOPPED, inner_topics,
};
use crate::stage::Stage;
use crate::transactions::{COORDINATED, GROUPS};
use crate::{GROWING, GROWTH, PREFIX};
use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};
use testkit::process::Signal;
use testkit::rng::Rng;

/// How the relay calls itself, where quotas are by that name.
const CLIENT: &str = "owlpost";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Kill,
    Stop,
    Freeze,
    KillAll,
    Leaders,
    Quota,
    Grow,
    MoveCoordinator,
    MoveGroup,
    KillCoordinator,
    StopGroup,
}

pub(super) const ALL: &[Fault] = &[
    Fault::Kill,
    Fault::Stop,
    Fault::Freeze,
    Fault::KillAll,
    Fault::Leaders,
    Fault::Quota,
    Fault::Grow,
];

/// What has a meaning with Kafka transactions only: whoever leads the one partition of these topics is the coordinator.
pub(super) const OF_TRANSACTIONS: &[Fault] =
    &[Fault::MoveCoordinator, Fault::MoveGroup, Fault::KillCoordinator, Fault::StopGroup];

pub(super) fn act(stage: &Stage<'_>, fault: Fault, rng: &mut Rng, scale: Scale, spared: bool) {
    let kafka = stage.kafka;
    let id = rng.between(1..=kafka.brokers());
    let id = match fault {
        Fault::KillCoordinator => leader(stage, COORDINATED).unwrap_or(id),
        Fault::StopGroup => leader(stage, GROUPS).unwrap_or(id),
        _ => id,
    };
    let length = length(rng, scale.longest);
    let told = format!("broker {id} for {:.1} s", length.as_secs_f64());
    match fault {
        Fault::Kill | Fault::KillCoordinator => {
            let kind = if fault == Fault::Kill { "broker SIGKILL" } else { COORDINATOR_KILLED };
            let _fault = stage.board.fault(kind, &told);
            kafka.kill9_broker(id);
            thread::sleep(length);
            restore(stage);
        }
        Fault::Stop | Fault::StopGroup => {
            let kind = if fault == Fault::Stop { "broker stopped" } else { GROUP_STOPPED };
            let _fault = stage.board.fault(kind, &told);
            kafka.stop_broker(id);
            thread::sleep(length);
            restore(stage);
        }
        Fault::MoveCoordinator => {
            let _fault = stage.board.fault(COORDINATOR_MOVED, "");
            kafka.move_leaders(COORDINATED);
        }
        Fault::MoveGroup => {
            let _fault = stage.board.fault(GROUP_MOVED, "");
            kafka.move_leaders(GROUPS);
        }
        Fault::Freeze => {
            let _fault = stage.board.fault("broker SIGSTOP", &told);
            kafka.signal_broker(id, Signal::SIGSTOP);
            thread::sleep(length);
            kafka.signal_broker(id, Signal::SIGCONT);
            restore(stage);
        }
        Fault::KillAll => {
            let told = format!("{:.1} s", length.as_secs_f64());
            let _fault = stage.board.fault("all brokers SIGKILL", &told);
            kafka.kill9();
            thread::sleep(length);
            restore(stage);
        }
        Fault::Leaders => {
            let _fault = stage.board.fault("leaders moved", "");
            stage.topics.iter().for_each(|topic| kafka.move_leaders(topic));
        }
        Fault::Quota => {
            throttle(stage, rng.between(50_000..=300_000) as u64, length + Duration::from_secs(3));
        }
        // With a crash at the same time facts may be repeated in other partitions, and what is first there
        // cannot be told.
        Fault::Grow if spared || stage.delivery.is_exactly_once() => grow(stage),
        Fault::Grow => {}
    }
}

/// The broker that leads the first partition.
fn leader(stage: &Stage<'_>, topic: &str) -> Option<usize> {
    usize::try_from(*stage.kafka.leaders(topic).first()?).ok()
}

/// Relays may produce so many bytes a second. A broker that has told one to be silent for a while is not
/// asked again before that, also where the quota is gone by then.
fn throttle(stage: &Stage<'_>, rate: u64, length: Duration) {
    let _fault = stage.board.fault("producer throttled", &format!("{rate} B/s"));
    let told = |told: &mut HashMap<u32, usize>, until: &mut Instant| {
        for member in stage.fleet.members() {
            let log = member.relay.log_text();
            let silences: Vec<Duration> = log.lines().filter_map(silence).collect();
            let known = told.entry(member.relay.pid()).or_default();
            for silence in silences.get(*known..).unwrap_or_default() {
                *until = (Instant::now() + *silence).max(*until);
            }
            *known = silences.len();
        }
    };
    let (mut known, mut until) = (HashMap::new(), Instant::now());
    told(&mut known, &mut until);
    stage.kafka.set_producer_quota(CLIENT, Some(rate));
    let end = Instant::now() + length;
    until = end;
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(300));
        told(&mut known, &mut until);
    }
    stage.kafka.set_producer_quota(CLIENT, None);
    while Instant::now() < until {
        thread::sleep(Duration::from_millis(300));
        told(&mut known, &mut until);
    }
}

/// For how long a relay says that it is throttled.
fn silence(line: &str) -> Option<Duration> {
    let (_, text) = line.split_once("throttled by quota")?.1.split_once("throttle=")?;
    let text = text.trim();
    let seconds = match text.strip_suffix("ms") {
        Some(millis) => millis.parse::<f64>().ok()? / 1000.0,
        None => text.strip_suffix('s')?.parse().ok()?,
    };
    Some(Duration::from_secs_f64(seconds))
}

/// A topic gets more partitions, as often as it may.
fn grow(stage: &Stage<'_>) {
    let topic = format!("{PREFIX}.{GROWING}");
    let now = stage.kafka.leaders(&topic).len();
    let Some(more) = GROWTH.into_iter().find(|more| *more > now) else { return };
    let _fault = stage.board.fault("topic grown", &format!("{topic} from {now} to {more}"));
    stage.judge().grows(&topic, more);
    stage.kafka.grow_topic(&topic, more);
    stage.look_again();
}

/// All brokers run and have what the others have.
fn restore(stage: &Stage<'_>) {
    stage.kafka.start_again();
    stage.topics.iter().for_each(|topic| stage.kafka.wait_in_sync(topic));
    if stage.delivery.is_exactly_once() {
        inner_topics().iter().for_each(|topic| stage.kafka.wait_in_sync(topic));
    }
}

#[cfg(test)]
mod tests {
    use super::silence;
    use std::time::Duration;

    #[test]
    fn a_relay_says_for_how_long_it_is_throttled() {
        let line = |length| format!("2026 WARN throttled by quota broker=3 throttle={length}");
        assert_eq!(silence(&line("21.5s")), Some(Duration::from_millis(21_500)));
        assert_eq!(silence(&line("813ms")), Some(Duration::from_millis(813)));
        assert_eq!(silence("2026 INFO streaming"), None);
    }
}
