//! Where servers keep their data, and how it goes away again.
//!
//! Each process has one folder in the temporary directory. Three things remove it, each for what the
//! one before cannot do: a server's destructor (its own part), a janitor (a shell that waits for our
//! end of a pipe to close, so it also runs after SIGKILL), and the next process that starts, for
//! what was left when even the janitor was killed. Whether a folder's owner lives is told by a file
//! lock, not by a process number.

use crate::error::{Context as _, Error, Result};
use crate::process;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Removes the folder when its standard input ends: that is, when the process that holds the other
/// end is gone, and so are its servers. They may still be ending and create a file, hence the loop.
/// A killed PostgreSQL leaves a System V shared memory segment, whose number its lock file tells.
const JANITOR: &str = r#"trap "" INT TERM HUP
read -r _
for lock in "$1"/pg*/data/postmaster.pid; do
    [ -f "$lock" ] && sed -n 7p "$lock" | { read -r _ segment && ipcrm -m "$segment"; }
done
n=0
while [ $n -lt 100 ]; do
    rm -rf "$1"
    [ -e "$1" ] || exit 0
    n=$((n + 1))
    sleep 0.1
done"#;

struct Folder {
    path: PathBuf,
    _alive: File,
    _janitor: ChildStdin,
}

/// The numeric user that this process runs as.
pub(crate) fn uid() -> u32 {
    fs::metadata("/proc/self").map_or(0, |meta| meta.uid())
}

/// Whether any user can enter the folder.
pub(crate) fn enterable(path: &Path) -> bool {
    path.ancestors().all(|folder| {
        fs::metadata(folder).map_or(true, |meta| meta.permissions().mode() & 0o001 != 0)
    })
}

/// The temporary directory, or `/tmp` where the given one is closed to the user that runs the
/// database, or so long that a Unix socket's path would not fit.
fn base() -> PathBuf {
    let given = std::env::temp_dir();
    let fits = given.as_os_str().len() <= 50;
    if given.is_dir() && fits && (uid() != 0 || enterable(&given)) { given } else { "/tmp".into() }
}

/// A folder that all processes of this user share.
pub(crate) fn shared_folder(name: &str) -> Result<PathBuf> {
    let path = base().join(format!("factlib-{name}-{}", uid()));
    fs::create_dir_all(&path).context(path.display())?;
    Ok(path)
}

/// A new empty folder in this process's own, which every user can enter.
pub(crate) fn folder(name: &str) -> Result<PathBuf> {
    static FOLDER: OnceLock<Folder> = OnceLock::new();
    static OPENING: Mutex<()> = Mutex::new(());
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let own = match FOLDER.get() {
        Some(own) => own,
        None => {
            let _one_at_a_time = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
            if FOLDER.get().is_none() {
                let _ = FOLDER.set(open()?);
            }
            FOLDER.get().ok_or_else(|| Error::new("no scratch folder"))?
        }
    };
    let path = own.path.join(format!("{name}{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    make(&path)?;
    Ok(path)
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755)))
        .context(path.display())
}

fn open() -> Result<Folder> {
    let base = base();
    let begin = format!("factlib-test-{}-", uid());
    // Nobody looks for abandoned folders between the creation of one and its lock.
    let gate = base.join(format!("{begin}lock"));
    let gate = File::create(&gate).context(gate.display())?;
    gate.lock().context("the lock of the scratch folders")?;
    sweep(&base, &begin);

    let nanos = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
    let path = base.join(format!("{begin}{}-{nanos:x}", std::process::id()));
    make(&path)?;
    let alive = File::create(path.join("alive")).context(path.display())?;
    alive.lock().context("the lock of the scratch folder")?;
    let janitor = janitor(&path)
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start the shell that cleans up")?
        .stdin
        .take()
        .ok_or_else(|| Error::new("the janitor has no pipe"))?;
    Ok(Folder { path, _alive: alive, _janitor: janitor })
}

fn janitor(folder: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", JANITOR, "janitor"]).arg(folder).current_dir("/");
    // In a group of its own it does not get the interrupt that a terminal sends to ours.
    command.env_clear().env("PATH", "/usr/bin:/bin").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Removes what dead processes left.
fn sweep(base: &Path, begin: &str) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(begin));
        if !ours || !path.is_dir() {
            continue;
        }
        let abandoned = File::open(path.join("alive")).map_or(true, |lock| lock.try_lock().is_ok());
        if abandoned {
            let _ = janitor(&path).status();
        }
    }
}

/// Removes a folder in which a process may just be dying.
pub(crate) fn remove(path: &Path) -> Result<()> {
    crate::wait::poll(
        &format!("removing {}", path.display()),
        std::time::Duration::from_secs(5),
        || match fs::remove_dir_all(path) {
            Ok(()) => Some(()),
            Err(_) => (!path.exists()).then_some(()),
        },
    )
}

/// Copies a folder with owners and modes.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.args(["-a", "--reflink=auto", "--"]).arg(from).arg(to);
    process::run("copying a template", &mut command).map(drop)
}
