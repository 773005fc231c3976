//! How often the relay calls the kernel, by name: `perf stat`, where it is installed and may count.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use testkit::{Owlpost, wait};

/// What a relay calls while it drains.
const CALLS: [&str; 9] = [
    "recvfrom",
    "sendto",
    "read",
    "write",
    "writev",
    "epoll_wait",
    "futex",
    "madvise",
    "clock_nanosleep",
];

/// `perf`, counting.
#[derive(Debug)]
pub struct Tracer(Child);

impl Tracer {
    /// Stops the relay until all is counted; none where it cannot be.
    pub fn attach(relay: &Owlpost) -> Option<Self> {
        let events = CALLS.map(|call| format!("syscalls:sys_enter_{call}")).join(",");
        relay.signal(Signal::SIGSTOP);
        let perf = Command::new("perf")
            .args(["stat", "-x", ",", "-e", &events, "-p", &relay.pid().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let tracer = perf.ok().map(Self).filter(Self::counts_already);
        relay.signal(Signal::SIGCONT);
        tracer
    }

    /// Whether it has opened what it counts with.
    fn counts_already(&self) -> bool {
        let open = || {
            let folder = fs::read_dir(format!("/proc/{}/fd", self.0.id())).ok()?;
            let events = folder.flatten().filter(|entry| {
                fs::read_link(entry.path())
                    .is_ok_and(|target| target.to_string_lossy().contains("perf_event"))
            });
            (events.count() >= CALLS.len()).then_some(())
        };
        wait::poll("perf to count", Duration::from_secs(3), open).is_ok()
    }

    /// What was counted.
    pub fn counts(self) -> Vec<(String, u64)> {
        let pid = Pid::from_raw(self.0.id().cast_signed());
        // An error is that it has ended, and then it has said what it counted.
        let _ = kill(pid, Signal::SIGINT);
        let said = self.0.wait_with_output().map(|output| output.stderr).unwrap_or_default();
        parse(&String::from_utf8_lossy(&said))
    }
}

/// Lines of `perf stat -x ,`: count, unit, event, and so on.
fn parse(text: &str) -> Vec<(String, u64)> {
    let line = |line: &str| {
        let mut fields = line.split(',');
        let count = fields.next()?.parse().ok()?;
        let call = fields.nth(1)?.strip_prefix("syscalls:sys_enter_")?;
        Some((call.to_owned(), count))
    };
    text.lines().filter_map(line).filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_and_what_was_not_counted_is_left_out() {
        let text = "12,,syscalls:sys_enter_recvfrom,1000,100.00,,\n\
                    <not counted>,,syscalls:sys_enter_read,0,0.00,,\n\
                    0,,syscalls:sys_enter_futex,1000,100.00,,\n";
        assert_eq!(parse(text), [("recvfrom".to_owned(), 12)]);
    }
}
