//! Ports that stay ours.
//!
//! Binding port 0, closing and handing the number on is a race: whoever asks next may get it, and on
//! loopback a client that keeps trying to connect to a port of the ephemeral range can even connect
//! to itself. So we take ports below that range, and hold a file lock on each for as long as this
//! process lives: no other process that uses this module takes it, also while its server is down.

use crate::scratch;
use std::collections::HashSet;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

/// Below Linux's ephemeral range (32768 and up), above what services usually have.
const RANGE: std::ops::Range<u16> = 15_000..32_000;

/// Locks are kept until the process ends.
static HELD: Mutex<Option<Held>> = Mutex::new(None);

struct Held {
    next: u16,
    taken: HashSet<u16>,
    locks: Vec<File>,
}

/// A TCP port that nobody listens on and that stays reserved until this process ends.
///
/// # Panics
///
/// When no port is free.
#[must_use]
pub fn free() -> u16 {
    let mut guard = HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let held = guard.get_or_insert_with(|| {
        // Processes that start together look in different places first.
        let spread =
            (std::process::id().wrapping_mul(97) % u32::from(RANGE.end - RANGE.start)) as u16;
        Held { next: RANGE.start + spread, taken: HashSet::new(), locks: Vec::new() }
    });
    let folder = scratch::shared_folder("ports").expect("the folder of port locks");
    for _ in RANGE {
        let port = held.next;
        held.next = if port + 1 == RANGE.end { RANGE.start } else { port + 1 };
        if held.taken.contains(&port) {
            continue;
        }
        let Ok(lock) =
            File::options().create(true).append(true).open(folder.join(port.to_string()))
        else {
            continue;
        };
        if lock.try_lock().is_err() || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_err() {
            continue;
        }
        held.taken.insert(port);
        held.locks.push(lock);
        return port;
    }
    panic!("no free port in {RANGE:?}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_port_is_given_once_and_is_bindable() {
        let ports: Vec<u16> = (0..20).map(|_| super::free()).collect();
        let distinct: std::collections::HashSet<_> = ports.iter().collect();
        assert_eq!(distinct.len(), ports.len());
        for port in ports {
            std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        }
    }
}
