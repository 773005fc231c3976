//! PostgreSQL: which binaries, which user, and a data directory to copy.

use crate::error::{Context as _, Error, Result};
use crate::{process, scratch, versions};
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A PostgreSQL of one major.
#[derive(Debug, Clone)]
pub struct PostgresInstall {
    /// 14, 15, …
    pub major: u32,
    /// As `postgres -V` says it, without the product's name.
    pub version: String,
    /// Holds `postgres` and `initdb`; `psql` and `pg_recvlogical` only in Debian's packages.
    pub bin: PathBuf,
    /// To be put on `LD_LIBRARY_PATH`.
    pub lib: Option<PathBuf>,
    /// Whom the server runs as; `None` is the caller.
    pub user: Option<ServerUser>,
}

/// PostgreSQL refuses to run as root: whom root runs it as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerUser {
    /// Numeric user.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
}

impl ServerUser {
    /// Gives the file or folder to this user.
    pub(crate) fn own(self, path: &Path) -> Result<()> {
        chown(path, Some(self.uid), Some(self.gid)).context(path.display())
    }
}

pub(super) fn install(major: u32) -> Result<PostgresInstall> {
    super::need("setpriv", "util-linux", "ending servers with the tests")?;
    let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    let complete = || debian.join("postgres").is_file() && debian.join("initdb").is_file();
    let may_install = major == versions::POSTGRES_MAJOR && scratch::uid() == 0;
    if !complete() && may_install && super::find("apt-get").is_some() {
        // Not every Debian release has it: then npm's is the one.
        let _ = super::debian(&format!("postgresql-{major}"));
    }
    let (bin, lib) = if complete() {
        (debian, None)
    } else {
        let native = super::npm::postgres(major)?;
        (native.join("bin"), Some(native.join("lib")))
    };
    let user = if scratch::uid() == 0 { Some(server_user()?) } else { None };
    let mut install = PostgresInstall { major, version: String::new(), bin, lib, user };
    let output = process::run("postgres -V", install.command("postgres").arg("-V"))?;
    install.version = String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        .ok_or_else(|| Error::new("postgres -V names no version"))?
        .to_owned();
    Ok(install)
}

impl PostgresInstall {
    /// One of its programs, as the user that the server runs as; dies with the calling thread.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = process::guarded(self.bin.join(program), self.user.as_ref());
        if let Some(lib) = &self.lib {
            command.env("LD_LIBRARY_PATH", lib);
        }
        // What the caller's environment says about other servers is not meant for this one.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("PG")) {
                command.env_remove(name);
            }
        }
        command.env("LC_ALL", "C").env("TZ", "UTC");
        command
    }

    /// Puts a new data directory at `place`, with superuser `postgres` and database `app`.
    ///
    /// A copy of one made earlier takes a tenth of the time of `initdb`, but has the same system
    /// identifier as every other copy.
    pub(crate) fn data_directory(&self, place: &Path, own_identifier: bool) -> Result<()> {
        if own_identifier {
            return self.initdb(place);
        }
        let origin = if self.lib.is_some() { "npm" } else { "debian" };
        let owner = self.user.map_or_else(scratch::uid, |user| user.uid);
        let name = format!("data-{}-{origin}-{owner}", self.version);
        let template = super::cached(&name, |draft| {
            let folder = draft.join("data");
            // `draft` itself stays ours, and other users may pass through it.
            fs::create_dir(&folder).context(folder.display())?;
            self.initdb(&folder)
        })?;
        if place.exists() {
            fs::remove_dir(place).context(place.display())?;
        }
        scratch::copy(&template.join("data"), place)
    }

    fn initdb(&self, place: &Path) -> Result<()> {
        fs::create_dir_all(place).context(place.display())?;
        if let Some(user) = self.user {
            user.own(place)?;
        }
        let mut initdb = self.command("initdb");
        initdb.args(["--no-sync", "--username=postgres", "--auth=trust", "--encoding=UTF8"]);
        initdb.args(["--locale=C", "--pgdata"]).arg(place);
        process::run("initdb", &mut initdb)?;

        // A single-user server reads statements from its standard input, one a line.
        let script = place.with_extension("sql");
        fs::write(&script, "CREATE DATABASE app\n").context(script.display())?;
        let input = fs::File::open(&script).context(script.display())?;
        let mut single = self.command("postgres");
        single.args(["--single", "-F", "-D"]).arg(place).arg("postgres").stdin(input);
        let made = single.output().context("creating the database")?;
        fs::remove_file(&script).context(script.display())?;
        let said = String::from_utf8_lossy(&made.stderr);
        if !made.status.success() || said.contains("ERROR") || said.contains("FATAL") {
            return Err(Error(format!("creating the database: {said}")));
        }
        Ok(())
    }
}

/// The system user `postgres`, made where there is none.
fn server_user() -> Result<ServerUser> {
    let look = || -> Option<ServerUser> {
        let passwd = fs::read_to_string("/etc/passwd").ok()?;
        let line = passwd.lines().find_map(|line| line.strip_prefix("postgres:"))?;
        let mut fields = line.split(':').skip(1);
        Some(ServerUser { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    };
    if let Some(user) = look() {
        return Ok(user);
    }
    let mut useradd = Command::new("useradd");
    useradd.args(["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]);
    process::run(
        "PostgreSQL does not run as root, and adding a user for it failed",
        useradd.arg("postgres"),
    )?;
    look().ok_or_else(|| Error::new("there is no user postgres to run PostgreSQL as"))
}
