//! Another relay, by a command line.

use crate::proc::{self, Usage};
use crate::shape::PREFIX;
use crate::stage::PUBLICATION;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;
use testkit::{Kafka, Postgres, process, wait};

/// What it is called in tables, and how it is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    command: String,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, command)) if !name.is_empty() && !command.is_empty() => {
                Ok(Self { name: name.to_owned(), command: command.to_owned() })
            }
            _ => Err("a peer is NAME=COMMAND".to_owned()),
        }
    }
}

impl Peer {
    pub fn start(
        &self,
        slot: &str,
        codec: &str,
        postgres: &Postgres,
        kafka: &Kafka,
        topic: &str,
    ) -> Running {
        // It dies with us, however we end.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "sh", "-c", &self.command]);
        command.env("SLOT", slot).env("PUBLICATION", PUBLICATION).env("PREFIX", PREFIX);
        command.env("DATABASE_URL", postgres.url()).env("CODEC", codec);
        command.env("KAFKA_BROKERS", kafka.bootstrap()).env("TOPIC", topic);
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        Running(command.spawn().expect("a shell"))
    }
}

/// A peer with all processes that it has started. Dropping it ends them.
#[derive(Debug)]
pub struct Running(Child);

/// How long it may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(10);

impl Running {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn is_running(&self) -> bool {
        process::is_running(self.pid())
    }

    pub fn usage(&self) -> Usage {
        Usage::of_group(self.pid())
    }

    pub fn peak_rss(&self) -> u64 {
        proc::peak_rss_of_group(self.pid())
    }

    fn signal(&self, signal: Signal) {
        // An error is that nobody is left.
        let _ = killpg(Pid::from_raw(self.pid().cast_signed()), signal);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
        let _ = wait::poll("the peer to end", GRACE, || (!self.is_running()).then_some(()));
        self.signal(Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_a_name_and_a_command() {
        let peer: Peer = "go=relay --slot=$SLOT".parse().unwrap();
        assert_eq!((peer.name.as_str(), peer.command.as_str()), ("go", "relay --slot=$SLOT"));
        assert!("go".parse::<Peer>().is_err() && "=relay".parse::<Peer>().is_err());
    }
}
