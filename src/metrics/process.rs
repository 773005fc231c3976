//! What the process uses, under the names that all of Prometheus' client libraries give it.

use std::fs;

/// `USER_HZ`: what `/proc` counts time in, on every architecture that is in use.
const TICKS_A_SECOND: f64 = 100.0;

/// What `/proc` says of this process; a part that cannot be read is none.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Process {
    /// User and system time, in seconds.
    pub(crate) cpu_seconds: Option<f64>,
    pub(crate) resident_bytes: Option<u64>,
    pub(crate) open_fds: Option<u64>,
    /// Seconds since 1970.
    pub(crate) start_seconds: Option<f64>,
}

impl Process {
    pub(crate) fn now() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").ok();
        let status = fs::read_to_string("/proc/self/status").ok();
        let boot = fs::read_to_string("/proc/stat").ok();
        let open_fds = fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count() as u64);
        let stat = stat.as_deref();
        let started = stat.and_then(|stat| ticks(stat, 19));
        Self {
            cpu_seconds: stat.and_then(|stat| Some(ticks(stat, 11)? + ticks(stat, 12)?)),
            resident_bytes: status.as_deref().and_then(resident),
            open_fds,
            start_seconds: started
                .zip(boot.as_deref().and_then(boot_time))
                .map(|(ticks, boot)| ticks + boot),
        }
    }
}

/// The field so many behind the process's name, in seconds. The name may contain anything.
fn ticks(stat: &str, field: usize) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: f64 = fields.split(' ').nth(field)?.parse().ok()?;
    Some(ticks / TICKS_A_SECOND)
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn boot_time(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_proc_are_found() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 3 0 12345 1 2";
        assert_eq!((ticks(stat, 11), ticks(stat, 12)), (Some(2.5), Some(0.5)));
        assert_eq!(ticks(stat, 19), Some(123.45));
        assert_eq!(resident("VmHWM:\t 9 kB\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000.0));
    }

    #[test]
    fn this_process_uses_something() {
        let process = Process::now();
        assert!(process.resident_bytes.unwrap() > 100_000, "{process:?}");
        assert!(process.open_fds.unwrap() > 2, "{process:?}");
        // After 2020.
        assert!(process.start_seconds.unwrap() > 1.577e9, "{process:?}");
    }
}
