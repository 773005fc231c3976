//! Who does the damage: one lane for each part of the world, all at once, each by its own stream of the
//! seed.

mod brokers;
mod network;
mod relay;
mod server;

use crate::arguments::Delivery;
use crate::stage::Stage;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};
use testkit::rng::Rng;

pub(crate) use self::server::end_session;

/// How long faults last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// The longest that a fault lasts.
    pub(crate) longest: Duration,
    /// The longest that a relay is frozen.
    pub(crate) frozen: Duration,
}

impl Scale {
    /// Longer faults for longer runs.
    pub(crate) fn of(minutes: u64) -> Self {
        Self {
            longest: Duration::from_secs((4 + minutes).min(30)),
            frozen: Duration::from_secs((3 * minutes).clamp(8, 90)),
        }
    }
}

/// One who draws faults of one kind, all of them before any comes again.
struct Lane<F> {
    name: &'static str,
    rng: Rng,
    all: Vec<F>,
    bag: Vec<F>,
    /// What comes before anything that is drawn, however short the storm is.
    ahead: VecDeque<F>,
}

/// What outlives a round: how far each lane has come in its draws.
pub(crate) struct Nemesis {
    delivery: Delivery,
    scale: Scale,
    relay: Lane<relay::Fault>,
    server: Lane<server::Fault>,
    brokers: Lane<brokers::Fault>,
    to_server: Lane<network::Fault>,
    to_brokers: Lane<network::Fault>,
}

impl Nemesis {
    pub(crate) fn new(seed: u64, scale: Scale, delivery: Delivery) -> Self {
        let (mut relays, mut clusters) = (relay::ALL.to_vec(), brokers::ALL.to_vec());
        if delivery.is_exactly_once() {
            relays.extend(relay::OF_TRANSACTIONS);
            clusters.extend(brokers::OF_TRANSACTIONS);
        }
        Self {
            delivery,
            scale,
            relay: Lane::new("relay", seed, relays),
            server: Lane::new("server", seed, server::ALL.to_vec()),
            brokers: Lane::new("brokers", seed, clusters),
            to_server: Lane::new("network to PostgreSQL", seed, network::ALL.to_vec()),
            to_brokers: Lane::new("network to Kafka", seed, network::ALL.to_vec()),
        }
    }

    /// What each storm of this kind has.
    fn plan(&mut self, spared: bool, is_even: bool) {
        let (relay, brokers) = (&mut self.relay.ahead, &mut self.brokers.ahead);
        match self.delivery {
            Delivery::AtLeastOnce if spared => brokers.push_back(brokers::Fault::Grow),
            Delivery::AtLeastOnce => relay.push_back(relay::Fault::Kill),
            Delivery::ExactlyOnce if is_even => {
                relay.extend([relay::Fault::Kill, relay::Fault::Rivals]);
                brokers.extend([brokers::Fault::MoveCoordinator, brokers::Fault::StopGroup]);
            }
            Delivery::ExactlyOnce => {
                relay.extend([relay::Fault::Rivals, relay::Fault::Abandoned]);
                brokers.extend([brokers::Fault::KillCoordinator, brokers::Fault::MoveGroup]);
            }
        }
    }

    /// Everything at once for so long; healed when it returns. With `spared`, the relay's process lives.
    pub(crate) fn storm(
        &mut self,
        stage: &Stage<'_>,
        length: Duration,
        round: usize,
        spared: bool,
    ) {
        let end = Instant::now() + length;
        let scale = self.scale;
        self.plan(spared, round.is_multiple_of(2));
        let Self { relay, server, brokers, to_server, to_brokers, .. } = self;
        thread::scope(|scope| {
            scope.spawn(|| {
                relay.run(stage, end, |fault, rng| relay::act(stage, fault, rng, scale, spared));
            });
            scope.spawn(|| server.run(stage, end, |fault, rng| server::act(stage, fault, rng)));
            scope.spawn(|| {
                brokers
                    .run(stage, end, |fault, rng| brokers::act(stage, fault, rng, scale, spared));
            });
            scope.spawn(|| {
                let link = network::Link::of_postgres(stage);
                to_server.run(stage, end, |fault, rng| network::act(&link, fault, rng, scale));
            });
            scope.spawn(|| {
                let link = network::Link::of_kafka(stage);
                to_brokers.run(stage, end, |fault, rng| network::act(&link, fault, rng, scale));
            });
        });
    }
}

impl<F: Copy + std::fmt::Debug> Lane<F> {
    fn new(name: &'static str, seed: u64, all: Vec<F>) -> Self {
        // Lanes of one seed are as different as seeds of one lane.
        let salt = name.bytes().fold(seed, |salt, byte| {
            salt.wrapping_mul(0x0100_0000_01b3).wrapping_add(u64::from(byte))
        });
        Self { name, rng: Rng::new(salt), all, bag: Vec::new(), ahead: VecDeque::new() }
    }

    fn draw(&mut self) -> F {
        if let Some(fault) = self.ahead.pop_front() {
            return fault;
        }
        if self.bag.is_empty() {
            self.bag.clone_from(&self.all);
        }
        let place = self.rng.below(self.bag.len());
        self.bag.swap_remove(place)
    }

    fn run(&mut self, stage: &Stage<'_>, end: Instant, mut act: impl FnMut(F, &mut Rng)) {
        loop {
            let pause = Duration::from_millis(self.rng.between(200..=2500) as u64);
            if Instant::now() + pause >= end || stage.board.has_failed() {
                return;
            }
            thread::sleep(pause);
            let fault = self.draw();
            let rng = &mut self.rng;
            let done = catch_unwind(AssertUnwindSafe(|| act(fault, rng)));
            if let Err(panic) = done {
                stage.board.fail(&format!("{} {fault:?}: {}", self.name, words(&*panic)));
            }
        }
    }
}

/// What a panic said.
pub(crate) fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a panic without words".to_owned())
}

/// Between a second and `longest`.
fn length(rng: &mut Rng, longest: Duration) -> Duration {
    Duration::from_millis(rng.between(1000..=longest.as_millis().max(1000) as usize) as u64)
}
