//! What is done to bytes on their way.

use super::{Scale, length};
use crate::board::Board;
use crate::stage::Stage;
use std::thread;
use std::time::{Duration, Instant};
use testkit::Proxy;
use testkit::proxy::{Direction, Way};
use testkit::rng::Rng;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Resets,
    HoldBoth,
    HoldToServer,
    HoldToClient,
    UnreadToServer,
    UnreadToClient,
    Slice,
    Latency,
    Throttle,
}

pub(super) const ALL: &[Fault] = &[
    Fault::Resets,
    Fault::HoldBoth,
    Fault::HoldToServer,
    Fault::HoldToClient,
    Fault::UnreadToServer,
    Fault::UnreadToClient,
    Fault::Slice,
    Fault::Latency,
    Fault::Throttle,
];

/// The way from the relays to a server, or to several.
pub(super) struct Link<'s> {
    to: &'static str,
    proxies: Vec<&'s Proxy>,
    board: &'s Board,
}

impl<'s> Link<'s> {
    pub(super) fn of_postgres(stage: &'s Stage<'_>) -> Self {
        Self { to: "PostgreSQL", proxies: vec![stage.proxy], board: &stage.board }
    }

    pub(super) fn of_kafka(stage: &'s Stage<'_>) -> Self {
        let proxies = (1..=stage.kafka.brokers()).map(|id| stage.kafka.proxy(id)).collect();
        Self { to: "Kafka", proxies, board: &stage.board }
    }
}

pub(super) fn act(link: &Link<'_>, fault: Fault, rng: &mut Rng, scale: Scale) {
    let length = length(rng, scale.longest);
    // All of them, or one.
    let one = rng.below(2 * link.proxies.len());
    let proxies: Vec<&Proxy> = match link.proxies.get(one) {
        Some(proxy) => vec![proxy],
        None => link.proxies.clone(),
    };
    let open = Way::default();
    let held = Way { held: true, ..open };
    let unread = Way { unread: true, ..open };
    let (kind, [to_server, to_client]) = match fault {
        Fault::Resets => ("connections reset", [open, open]),
        Fault::HoldBoth => ("black hole both ways", [held, held]),
        Fault::HoldToServer => ("black hole to the server", [held, open]),
        Fault::HoldToClient => ("black hole to the relay", [open, held]),
        Fault::UnreadToServer => ("relay's bytes not read", [unread, open]),
        Fault::UnreadToClient => ("server's bytes not read", [open, unread]),
        Fault::Slice => ("one byte a segment", [Way { sliced: true, ..open }; 2]),
        Fault::Latency => {
            let latency = Duration::from_millis(rng.between(20..=400) as u64);
            ("latency", [Way { latency, ..open }; 2])
        }
        Fault::Throttle => {
            let rate = rng.between(20_000..=300_000) as u64;
            ("slow link", [Way { bytes_per_second: Some(rate), ..open }; 2])
        }
    };
    let told = format!(
        "{}, {} of {}, {:.1} s",
        link.to,
        proxies.len(),
        link.proxies.len(),
        length.as_secs_f64()
    );
    let _fault = link.board.fault(kind, &told);
    let end = Instant::now() + length;
    for proxy in &proxies {
        proxy.set(Direction::ToServer, to_server);
        proxy.set(Direction::ToClient, to_client);
    }
    while fault == Fault::Resets && Instant::now() < end {
        proxies.iter().for_each(|proxy| _ = proxy.reset());
        thread::sleep(Duration::from_millis(rng.between(50..=1500) as u64));
    }
    thread::sleep(end.saturating_duration_since(Instant::now()));
    // What was held arrives late, or never.
    let lost = to_server != open && to_client != open && rng.percent(30);
    for proxy in &proxies {
        if lost {
            proxy.reset();
        }
        proxy.heal();
    }
}
