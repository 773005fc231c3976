//! The password, read again for each connection.

use crate::config::{Host, PasswordSource, PostgresConfig, SOCKET_DIR};
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::timeout;

/// The longest password, in bytes: the server reads no longer message with one.
const PASSWORD_LEN_MAX: usize = 65_535;

/// The longest password file of libpq's: thousands of lines.
const PASSFILE_LEN_MAX: u64 = 1 << 20;

/// How long a command may take. Those that ask a service take a second or two.
const COMMAND_MAX: Duration = Duration::from_secs(10);

/// How much of what a command complains about is kept for its first line.
const COMPLAINT_LEN_MAX: usize = 4096;

/// How much of that line is shown, in characters.
const COMPLAINT_SHOWN_MAX: usize = 200;

const FILE: &str = "DATABASE_PASSWORD_FILE";
const COMMAND: &str = "DATABASE_PASSWORD_COMMAND";

/// Why there is no password. Nothing of it is ever shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PasswordFailure {
    /// The file cannot be read.
    #[error("{FILE} {file}: {source}")]
    File {
        /// Its name.
        file: String,
        /// Why not.
        source: io::Error,
    },
    /// What was read is no password.
    #[error("{place}: {fault}")]
    Unfit {
        /// Where it was read.
        place: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The command cannot be run.
    #[error("{COMMAND} cannot be run: {0}")]
    Command(io::Error),
    /// The command says that it has failed.
    #[error("{COMMAND} failed ({status}): {complaint}")]
    Failed {
        /// How it ended.
        status: String,
        /// The first line of what it wrote to standard error.
        complaint: String,
    },
    /// The command does not end.
    #[error("{COMMAND} has not ended after {} s, and was killed", COMMAND_MAX.as_secs())]
    Late,
}

/// What was read, before it is known which host it is for.
pub(super) enum Passwords {
    None,
    One(Vec<u8>),
    /// A password file of libpq's.
    Passfile(Vec<u8>),
}

impl Passwords {
    /// Reads the file, or runs the command.
    ///
    /// Cancel safe: a command is killed with all that it has started.
    pub(super) async fn read(source: &PasswordSource) -> Result<Self, PasswordFailure> {
        Ok(match source {
            PasswordSource::None => Self::None,
            PasswordSource::Given(password) => Self::One(password.expose().into()),
            PasswordSource::File(file) => {
                let place = || file.display().to_string();
                let text = read_file(file.clone(), PASSWORD_LEN_MAX as u64 + 3)
                    .await
                    .map_err(|source| PasswordFailure::File { file: place(), source })?;
                Self::One(password(text).map_err(|fault| PasswordFailure::Unfit {
                    place: format!("{FILE} {}", place()),
                    fault,
                })?)
            }
            PasswordSource::Command(command) => {
                let text = timeout(COMMAND_MAX, run(command.expose())).await;
                let text = text.unwrap_or(Err(PasswordFailure::Late))?;
                Self::One(password(text).map_err(|fault| PasswordFailure::Unfit {
                    place: format!("what {COMMAND} prints"),
                    fault,
                })?)
            }
            PasswordSource::Passfile(file) => match read_passfile(file.clone()).await {
                Some(text) => Self::Passfile(text),
                None => Self::None,
            },
        })
    }

    pub(super) fn are_any(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// The one for this host.
    pub(super) fn of(&self, host: &Host, config: &PostgresConfig) -> Option<Vec<u8>> {
        match self {
            Self::None => None,
            Self::One(password) => Some(password.clone()),
            Self::Passfile(text) => {
                let (host, port) = match host {
                    Host::Tcp { host, port, .. } => (host.as_str(), port),
                    Host::Unix { dir, port } if dir == SOCKET_DIR => ("localhost", port),
                    Host::Unix { dir, port } => (dir.as_str(), port),
                };
                let port = port.to_string();
                let wanted = [host, &port, &config.database, &config.user];
                text.split(|byte| *byte == b'\n').find_map(|line| of_line(line, wanted))
            }
        }
    }
}

/// Reads a file on a thread of its own: one on a network that is down holds nobody up but us.
async fn read_file(file: PathBuf, limit: u64) -> io::Result<Vec<u8>> {
    let read = move || {
        let mut text = Vec::new();
        // A pipe that nobody writes to is waited for without an end, and has nothing the second time.
        if !fs::metadata(&file)?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        File::open(file)?.take(limit).read_to_end(&mut text)?;
        Ok(text)
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

/// Without the newline that editors and `echo` put behind it.
fn password(mut text: Vec<u8>) -> Result<Vec<u8>, &'static str> {
    if text.pop_if(|byte| *byte == b'\n').is_some() {
        text.pop_if(|byte| *byte == b'\r');
    }
    match text {
        text if text.is_empty() => Err("it is empty"),
        text if text.len() > PASSWORD_LEN_MAX => Err("it has more than 65,535 bytes"),
        text if text.contains(&0) => Err("it contains a NUL byte"),
        text => Ok(text),
    }
}

/// Kills a command that is not waited for to its end.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended just now.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

async fn run(command: &str) -> Result<Vec<u8>, PasswordFailure> {
    let mut child = Command::new("/bin/sh")
        // Not as an argument, which everybody on the machine can read.
        .arg("-c")
        .arg(r#"eval "$OWLPOST_PASSWORD_COMMAND""#)
        .env("OWLPOST_PASSWORD_COMMAND", command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(PasswordFailure::Command)?;
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    let mut group = Group(id.and_then(Pid::from_raw));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (text, complaint) =
        tokio::try_join!(first(out, PASSWORD_LEN_MAX + 3), first(err, COMPLAINT_LEN_MAX))
            .map_err(PasswordFailure::Command)?;
    let status = child.wait().await.map_err(PasswordFailure::Command)?;
    group.0 = None;
    if status.success() {
        return Ok(text);
    }
    let complaint = String::from_utf8_lossy(&complaint);
    let line = complaint.lines().map(str::trim).find(|line| !line.is_empty());
    let shown = line.unwrap_or("it does not say why").chars().filter(|c| !c.is_control());
    Err(PasswordFailure::Failed {
        status: status.to_string(),
        complaint: shown.take(COMPLAINT_SHOWN_MAX).collect(),
    })
}

/// The first bytes of a pipe that is read to its end.
async fn first(pipe: Option<impl AsyncRead + Unpin>, len: usize) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut pipe) = pipe else { return Ok(kept) };
    (&mut pipe).take(len as u64).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    Ok(kept)
}

/// The text of a password file, unless it is to be ignored, as libpq does it.
async fn read_passfile(file: PathBuf) -> Option<Vec<u8>> {
    let read = move || {
        let shown = file.display();
        match File::open(&file).and_then(|opened| Ok((opened.metadata()?, opened))) {
            // By default it is not there, and whoever needs a password is told.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::debug!(file = %shown, "there is no password file");
                None
            }
            Err(error) => {
                tracing::warn!(file = %shown, %error, "the password file cannot be read, and is ignored");
                None
            }
            Ok((metadata, _)) if !metadata.is_file() => {
                tracing::warn!(file = %shown, "the password file is no regular file, and is ignored");
                None
            }
            Ok((metadata, _)) if metadata.mode() & 0o077 != 0 => {
                tracing::warn!(
                    file = %shown,
                    "the password file is ignored, because others can read it: give it the mode 0600"
                );
                None
            }
            Ok((_, opened)) => {
                let mut text = Vec::new();
                match opened.take(PASSFILE_LEN_MAX).read_to_end(&mut text) {
                    Ok(_) => Some(text),
                    Err(error) => {
                        tracing::warn!(file = %shown, %error, "the password file cannot be read");
                        None
                    }
                }
            }
        }
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

/// The password of a line of a password file, if the line is for this host, port, database and role.
///
/// <https://www.postgresql.org/docs/current/libpq-pgpass.html>
fn of_line(line: &[u8], wanted: [&str; 4]) -> Option<Vec<u8>> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.starts_with(b"#") {
        return None;
    }
    let mut rest = line;
    for wanted in wanted {
        rest = match rest.strip_prefix(b"*:") {
            Some(rest) => rest,
            None => {
                let (field, rest) = field(rest);
                if field != wanted.as_bytes() {
                    return None;
                }
                rest?
            }
        };
    }
    // What stands behind one more colon is for later versions.
    let (password, _) = field(rest);
    Some(password)
}

/// What stands before the first colon, without its escapes, and what stands behind that colon.
fn field(text: &[u8]) -> (Vec<u8>, Option<&[u8]>) {
    let mut field = Vec::new();
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = match (byte, after.split_first()) {
            (b':', _) => return (field, Some(after)),
            (b'\\', Some((escaped, after))) => {
                field.push(*escaped);
                after
            }
            (byte, _) => {
                field.push(*byte);
                after
            }
        };
    }
    (field, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, RawConfig, Secret};
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    fn config() -> PostgresConfig {
        let text = |text: &str| Some(text.to_owned());
        let raw = RawConfig {
            src_service_name: text("s"),
            master_database_url: text("postgres://owl@db:5433/app"),
            kafka_brokers: text("k"),
            ..RawConfig::default()
        };
        Config::from_raw(&raw, |_| None).unwrap().postgres
    }

    fn unix(dir: &str) -> Host {
        Host::Unix { dir: dir.to_owned(), port: 5433 }
    }

    #[test]
    fn a_line_of_a_password_file_is_for_whom_libpq_takes_it() {
        let config = config();
        let tcp = config.hosts[0].clone();
        let of = |text: &str, host: &Host| {
            let password = Passwords::Passfile(text.into()).of(host, &config);
            password.map(|password| String::from_utf8(password).unwrap())
        };
        for (text, password) in [
            ("db:5433:app:owl:secret", Some("secret")),
            ("db:5433:app:owl:secret\r\n", Some("secret")),
            ("*:*:*:*:secret\n", Some("secret")),
            (
                "# a comment\n\nother:5433:app:owl:no\ndb:*:app:*:first\n*:*:*:*:second",
                Some("first"),
            ),
            ("#db:5433:app:owl:secret", None),
            ("db:5432:app:owl:secret", None),
            ("db:5433:app2:owl:secret", None),
            ("db:5433:app:ow:secret", None),
            ("d*:5433:app:owl:secret", None),
            ("db:5433:replication:owl:secret", None),
            ("db:5433:app:owl", None),
            ("db:5433:app:owl:", Some("")),
            (r"d\b:5433:app:owl:secret", Some("secret")),
            (r"db:5433:app:owl:a\:b\\c\d", Some(r"a:b\cd")),
            ("db:5433:app:owl:secret:more", Some("secret")),
            (r"db:5433:app:owl:end\", Some(r"end\")),
            (" db:5433:app:owl:secret", None),
        ] {
            assert_eq!(of(text, &tcp).as_deref(), password, "{text}");
        }
        let text = "localhost:*:*:*:local\n/run/pg:*:*:*:folder";
        assert_eq!(of(text, &unix(SOCKET_DIR)).as_deref(), Some("local"));
        assert_eq!(of(text, &unix("/run/pg")).as_deref(), Some("folder"));
        assert_eq!(of(text, &unix("/tmp")), None);
    }

    async fn read(source: PasswordSource) -> Result<Option<Vec<u8>>, String> {
        let config = config();
        let read = Passwords::read(&source).await.map_err(|error| error.to_string())?;
        Ok(read.of(&config.hosts[0], &config))
    }

    #[tokio::test]
    async fn a_password_file_that_others_can_read_is_ignored() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "*:*:*:*:secret").unwrap();
        let passfile = || PasswordSource::Passfile(file.path().into());
        for (mode, found) in
            [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o660, false)]
        {
            fs::set_permissions(file.path(), Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(passfile()).await.unwrap().is_some(), found, "{mode:o}");
        }
        for nothing in ["/no/such/file", "/tmp"] {
            assert_eq!(read(PasswordSource::Passfile(nothing.into())).await, Ok(None));
        }
    }

    #[tokio::test]
    async fn a_file_holds_the_password_and_perhaps_a_newline() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let source = || PasswordSource::File(file.path().into());
        let shown = format!("DATABASE_PASSWORD_FILE {}: ", file.path().display());
        for (text, password) in [
            (&b"secret"[..], Ok(&b"secret"[..])),
            (b"secret\n", Ok(b"secret")),
            (b"secret\r\n", Ok(b"secret")),
            (b" secret \n\n", Ok(b" secret \n")),
            (b"\xff\xfe", Ok(b"\xff\xfe")),
            (b"", Err("it is empty")),
            (b"\n", Err("it is empty")),
            (b"a\0b", Err("it contains a NUL byte")),
            (&[b'x'; 65_535], Ok(&[b'x'; 65_535])),
            (&[b'x'; 65_536], Err("it has more than 65,535 bytes")),
            (&[b'x'; 200_000], Err("it has more than 65,535 bytes")),
        ] {
            fs::write(file.path(), text).unwrap();
            let expected = password.map(|password| Some(password.to_vec()));
            let expected = expected.map_err(|fault| format!("{shown}{fault}"));
            assert_eq!(read(source()).await, expected);
        }
        let missing = read(PasswordSource::File("/no/such/file".into())).await.unwrap_err();
        assert!(missing.starts_with("DATABASE_PASSWORD_FILE /no/such/file: No such"), "{missing}");
        assert_eq!(
            read(PasswordSource::File("/dev/zero".into())).await,
            Err("DATABASE_PASSWORD_FILE /dev/zero: it is not a regular file".into())
        );
    }

    fn command(text: &str) -> PasswordSource {
        PasswordSource::Command(Secret::new(text))
    }

    #[tokio::test]
    async fn a_command_prints_the_password() {
        let printed = |text| Ok(Some(Vec::from(text)));
        assert_eq!(read(command("echo secret")).await, printed("secret"));
        assert_eq!(read(command("printf 'a b'; echo warning >&2")).await, printed("a b"));
        assert_eq!(
            read(command("true")).await,
            Err("what DATABASE_PASSWORD_COMMAND prints: it is empty".into())
        );
        // More than a pipe holds, on both sides.
        let much =
            "head -c 300000 /dev/zero | tr '\\0' x >&2; head -c 200000 /dev/zero | tr '\\0' x";
        assert_eq!(
            read(command(much)).await,
            Err("what DATABASE_PASSWORD_COMMAND prints: it has more than 65,535 bytes".into())
        );
    }

    #[tokio::test]
    async fn a_command_that_fails_says_why_and_shows_nothing_else() {
        let failed = "echo hunter2; printf '\\n no vault \\nsecond line\\n' >&2; exit 3";
        assert_eq!(
            read(command(failed)).await,
            Err("DATABASE_PASSWORD_COMMAND failed (exit status: 3): no vault".into())
        );
        assert_eq!(
            read(command("false # hunter2")).await,
            Err("DATABASE_PASSWORD_COMMAND failed (exit status: 1): it does not say why".into())
        );
        assert!(!format!("{:?}", command("hunter2")).contains("hunter2"));
    }

    #[tokio::test]
    async fn a_command_that_is_not_waited_for_ends_with_all_it_has_started() {
        let folder = tempfile::tempdir().unwrap();
        let pids = folder.path().join("pids");
        let shown = pids.display();
        let slow = format!("sleep 600 & echo $! > {shown}.new; mv {shown}.new {shown}; wait");
        let source = command(&slow);
        let mut reading = Box::pin(Passwords::read(&source));
        while !pids.exists() {
            let turn = timeout(Duration::from_millis(5), &mut reading).await;
            assert!(turn.is_err(), "it ended");
        }
        drop(reading);
        let pid = fs::read_to_string(&pids).unwrap();
        let status = Path::new("/proc").join(pid.trim()).join("stat");
        // A zombie is waited for by whoever inherits it.
        while fs::read_to_string(&status).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
