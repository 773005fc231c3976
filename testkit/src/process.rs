//! Child processes that die with their parent.
//!
//! A destructor does not run when the test process is killed, so the kernel must do it: every server
//! is started through `setpriv --pdeathsig KILL`, which has the kernel kill it when its parent goes.
//! "Parent" there means the *thread* that forked, and test threads are short-lived, so all servers
//! are started by one thread that lives as long as the process.

use crate::error::{Context as _, Error, Result};
use crate::provision::ServerUser;
use crate::wait;
use nix::sys::signal;
use nix::unistd::Pid;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::Duration;

pub use nix::sys::signal::Signal;

/// A command that the kernel kills when the thread that spawned it ends, run as `user` if given.
pub(crate) fn guarded(program: impl AsRef<Path>, user: Option<&ServerUser>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if let Some(user) = user {
        command.arg(format!("--reuid={}", user.uid));
        command.arg(format!("--regid={}", user.gid));
        command.arg("--clear-groups");
        // The caller's may be a folder that the other user cannot enter.
        command.current_dir("/");
    }
    command.arg("--").arg(program.as_ref()).stdin(Stdio::null());
    command
}

/// Runs a command to its end; an exit code other than 0 is an error that quotes what it said.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().context(what)?;
    if output.status.success() {
        return Ok(output);
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    Err(Error(format!("{what}: {}:\n{}", describe(output.status), last_lines(&said, 20))))
}

/// The end of a long text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// How a process ended, in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Runs `job` on the thread that outlives every test.
fn keeper<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> T {
    type Job = Box<dyn FnOnce() + Send>;
    static KEEPER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let jobs = KEEPER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || receiver.into_iter().for_each(|job| job()))
            .expect("a thread");
        Mutex::new(sender)
    });
    let (done, result) = mpsc::sync_channel(1);
    let job: Job = Box::new(move || {
        let _ = done.send(job());
    });
    jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).send(job).expect("the keeper");
    result.recv().expect("the keeper's answer")
}

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Mutex<Child>,
    pid: u32,
}

impl Process {
    /// Starts a [`guarded`] command.
    pub(crate) fn spawn(what: &str, mut command: Command) -> Result<Self> {
        let child = keeper(move || command.spawn()).context(format_args!("cannot start {what}"))?;
        let pid = child.id();
        Ok(Self { child: Mutex::new(child), pid })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Its standard input and output, where they are pipes; once.
    pub(crate) fn pipes(&self) -> (Option<ChildStdin>, Option<ChildStdout>) {
        let mut child = self.child();
        (child.stdin.take(), child.stdout.take())
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        self.child().try_wait().expect("waiting for a child")
    }

    /// Waits for its end.
    pub(crate) fn wait(&self, what: &str, limit: Duration) -> Result<ExitStatus> {
        wait::poll(what, limit, || self.ended())
    }

    /// Sends a signal, unless it has ended: then the number may be another's by now.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.ended().is_none() {
            let _ = signal::kill(Pid::from_raw(self.pid.cast_signed()), signal);
        }
    }

    /// Kills it and waits.
    pub(crate) fn kill(&self) {
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The processes whose parent is `pid`.
pub(crate) fn children_of(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|child| stat(*child).is_some_and(|stat| stat.parent == pid))
        .collect()
}

/// Sends a signal to a process that is not our own child.
pub fn signal_pid(pid: u32, which: Signal) {
    let _ = signal::kill(Pid::from_raw(pid.cast_signed()), which);
}

/// Sends SIGKILL to a process that is not our own child.
pub fn kill_pid(pid: u32) {
    signal_pid(pid, Signal::SIGKILL);
}

/// Whether a process with this number runs; one that waits to be reaped does not.
#[must_use]
pub fn is_running(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.state != 'Z' && stat.state != 'X')
}

/// What `/proc/PID/stat` tells.
pub(crate) struct Stat {
    pub(crate) state: char,
    pub(crate) parent: u32,
    /// User and system time.
    pub(crate) cpu: Duration,
}

pub(crate) fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    // Linux reports in ticks of 10 ms whatever its own timer does (USER_HZ).
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        cpu: Duration::from_millis(ticks * 10),
    })
}
