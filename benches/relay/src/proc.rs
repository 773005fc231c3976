//! What a process has used, as `/proc` tells.

use serde::{Deserialize, Serialize};
use std::fs;
use std::ops::Sub;

/// What the threads of a process have used of the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Microseconds of processor time in the program.
    pub user_us: f64,
    /// Microseconds of processor time in the kernel.
    pub system_us: f64,
    /// Microseconds that its threads were ready to run, and another had the processor.
    pub queued_us: f64,
    /// How often a thread gave the processor away to wait for something: so often it was woken.
    pub waits: u64,
}

impl Usage {
    pub fn cpu_us(&self) -> f64 {
        self.user_us + self.system_us
    }

    /// Of a process, also of one that has ended and is not waited for yet: then of its first thread alone.
    ///
    /// The sum is that of the scheduler, to the nanosecond; which part of it is the kernel's is told by ticks of 10 ms,
    /// and so right only where there are many of them.
    pub fn of(pid: u32) -> Option<Self> {
        let (mut on_cpu, mut queued, mut waits) = (0, 0, 0);
        for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
            let thread = thread.ok()?.path();
            let (thread_on_cpu, thread_queued) =
                schedstat(&fs::read_to_string(thread.join("schedstat")).ok()?)?;
            on_cpu += thread_on_cpu;
            queued += thread_queued;
            let status = fs::read_to_string(thread.join("status")).ok()?;
            waits += field(&status, "voluntary_ctxt_switches").unwrap_or(0);
        }
        let stat = Stat::of(pid)?;
        Some(Self::new(on_cpu as f64 / 1e3, queued as f64 / 1e3, waits, &stat))
    }

    /// Of a process whose threads come and go, to 10 ms.
    pub fn in_ticks(pid: u32) -> Option<Self> {
        Some(Self::from_ticks(&Stat::of(pid)?))
    }

    /// Of all processes of a group, to 10 ms; those that have ended count with their parent once that has waited.
    pub fn of_group(group: u32) -> Self {
        let members = group_members(group);
        let stats = members.into_iter().filter_map(Stat::of);
        stats.fold(Self::default(), |sum, stat| {
            let children = Stat {
                user_ticks: stat.children_user_ticks,
                system_ticks: stat.children_system_ticks,
                ..stat
            };
            let (own, waited_for) = (Self::from_ticks(&stat), Self::from_ticks(&children));
            Self {
                user_us: sum.user_us + own.user_us + waited_for.user_us,
                system_us: sum.system_us + own.system_us + waited_for.system_us,
                ..sum
            }
        })
    }

    fn from_ticks(stat: &Stat) -> Self {
        Self {
            user_us: stat.user_ticks as f64 * TICK_US,
            system_us: stat.system_ticks as f64 * TICK_US,
            ..Self::default()
        }
    }

    fn new(cpu_us: f64, queued_us: f64, waits: u64, stat: &Stat) -> Self {
        let ticks = stat.user_ticks + stat.system_ticks;
        let share = match ticks {
            0 => 1.0,
            ticks => stat.user_ticks as f64 / ticks as f64,
        };
        Self { user_us: cpu_us * share, system_us: cpu_us * (1.0 - share), queued_us, waits }
    }
}

impl Sub for Usage {
    type Output = Self;

    /// Never below zero: the division into user and system is an estimate each time.
    fn sub(self, before: Self) -> Self {
        Self {
            user_us: (self.user_us - before.user_us).max(0.0),
            system_us: (self.system_us - before.system_us).max(0.0),
            queued_us: (self.queued_us - before.queued_us).max(0.0),
            waits: self.waits.saturating_sub(before.waits),
        }
    }
}

/// Linux reports in these whatever its own timer does (USER_HZ).
const TICK_US: f64 = 10_000.0;

struct Stat {
    group: u32,
    user_ticks: u64,
    system_ticks: u64,
    children_user_ticks: u64,
    children_system_ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name stands in parentheses and may hold anything.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse().ok();
        Some(Self {
            group: fields.get(2)?.parse().ok()?,
            user_ticks: number(11)?,
            system_ticks: number(12)?,
            children_user_ticks: number(13)?,
            children_system_ticks: number(14)?,
        })
    }
}

/// Nanoseconds on a processor, and ready without one.
fn schedstat(text: &str) -> Option<(u64, u64)> {
    let mut fields = text.split_whitespace().map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

/// The number of a line of `/proc/PID/status`.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn memory(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(field(&status, name)? * 1024)
}

/// The most memory that was ever resident, in bytes; none once the process has ended.
pub fn peak_rss(pid: u32) -> Option<u64> {
    memory(pid, "VmHWM")
}

/// Resident memory, in bytes; none once the process has ended.
pub fn rss(pid: u32) -> Option<u64> {
    memory(pid, "VmRSS")
}

/// The same of all processes of a group; what they share counts for each.
pub fn peak_rss_of_group(group: u32) -> u64 {
    group_members(group).into_iter().filter_map(peak_rss).sum()
}

fn group_members(group: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| Stat::of(*pid).is_some_and(|stat| stat.group == group)).collect()
}

/// The load average of the last minute.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let text = "71 (a) b (c) S 1 70 71 0 -1 4194560 9 8 7 6 120 34 5 6 20 0 3 0 100 1 2";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.group, stat.user_ticks, stat.system_ticks), (70, 120, 34));
        assert_eq!((stat.children_user_ticks, stat.children_system_ticks), (5, 6));
    }

    #[test]
    fn the_schedulers_sum_is_divided_as_the_ticks_are() {
        let stat = Stat {
            group: 1,
            user_ticks: 3,
            system_ticks: 1,
            children_user_ticks: 0,
            children_system_ticks: 0,
        };
        let usage = Usage::new(1000.0, 5.0, 7, &stat);
        assert_eq!((usage.user_us, usage.system_us, usage.cpu_us()), (750.0, 250.0, 1000.0));
        assert_eq!((usage.queued_us, usage.waits), (5.0, 7));
    }

    #[test]
    fn a_process_without_a_tick_has_used_its_time_in_the_program() {
        let stat = Stat {
            group: 1,
            user_ticks: 0,
            system_ticks: 0,
            children_user_ticks: 0,
            children_system_ticks: 0,
        };
        assert_eq!(Usage::new(80.0, 0.0, 0, &stat).user_us, 80.0);
    }

    #[test]
    fn lines_of_status_are_found_by_their_whole_name() {
        let status = "VmHWMX:\t1 kB\nVmHWM:\t  5120 kB\nnonvoluntary_ctxt_switches:\t9\nvoluntary_ctxt_switches:\t4\n";
        assert_eq!(field(status, "VmHWM"), Some(5120));
        assert_eq!(field(status, "voluntary_ctxt_switches"), Some(4));
        assert_eq!(field(status, "VmRSS"), None);
        assert_eq!(schedstat("12 34 5\n"), Some((12, 34)));
    }

    #[test]
    fn this_process_is_found_and_uses_something() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.cpu_us() > 0.0);
        assert!(rss(std::process::id()) > Some(0) && peak_rss(std::process::id()) > Some(0));
        assert!(Usage::of(u32::MAX).is_none());
    }
}
