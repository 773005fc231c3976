//! What is done to Kafka.

use super::{Scale, length};
use crate::stage::Stage;
use crate::{GROWING, GROWTH, PREFIX};
use std::thread;
use std::time::Duration;
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

pub(super) fn act(stage: &Stage<'_>, fault: Fault, rng: &mut Rng, scale: Scale, spared: bool) {
    let kafka = stage.kafka;
    let id = rng.between(1..=kafka.brokers());
    let length = length(rng, scale.longest);
    let told = format!("broker {id} for {:.1} s", length.as_secs_f64());
    match fault {
        Fault::Kill => {
            let _fault = stage.board.fault("broker SIGKILL", &told);
            kafka.kill9_broker(id);
            thread::sleep(length);
            restore(stage);
        }
        Fault::Stop => {
            let _fault = stage.board.fault("broker stopped", &told);
            kafka.stop_broker(id);
            thread::sleep(length);
            restore(stage);
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
            let rate = rng.between(20_000..=200_000) as u64;
            let _fault = stage.board.fault("producer throttled", &format!("{rate} B/s"));
            kafka.set_producer_quota(CLIENT, Some(rate));
            thread::sleep(length + Duration::from_secs(3));
            kafka.set_producer_quota(CLIENT, None);
        }
        // With a crash at the same time facts may be repeated in other partitions, and what is first there
        // cannot be told.
        Fault::Grow if spared => grow(stage),
        Fault::Grow => {}
    }
}

/// A topic gets more partitions, as often as it may.
fn grow(stage: &Stage<'_>) {
    let topic = format!("{PREFIX}.{GROWING}");
    let now = stage.kafka.leaders(&topic).len();
    let Some(more) = GROWTH.into_iter().find(|more| *more > now) else { return };
    let _fault = stage.board.fault("topic grown", &format!("{topic} from {now} to {more}"));
    stage.judge().grows(&topic, more);
    stage.kafka.grow_topic(&topic, more);
    stage.judge().look_again();
}

/// All brokers run and have what the others have.
fn restore(stage: &Stage<'_>) {
    stage.kafka.start_again();
    stage.topics.iter().for_each(|topic| stage.kafka.wait_in_sync(topic));
}
