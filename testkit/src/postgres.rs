//! A real PostgreSQL.

mod standby;

use crate::certificates::{Authority, Certificate};
use crate::error::{Context as _, Error, Result};
use crate::kafka::read_log;
use crate::process::{self, Process, Signal};
use crate::provision::{self, PostgresInstall};
use crate::{port, scratch, wait};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The database that every server has beside `postgres`.
pub const DATABASE: &str = "app";

/// How long a server may take to start or to stop.
const LIMIT: Duration = wait::LIMIT;

/// A server on loopback and on a Unix socket. Dropping it ends it and removes its data.
#[derive(Debug)]
pub struct Postgres {
    install: PostgresInstall,
    folder: PathBuf,
    port: u16,
    process: Mutex<Option<Process>>,
}

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Waits for clients to leave (SIGTERM).
    Smart,
    /// Ends sessions, waits for walsenders to send everything (SIGINT).
    Fast,
    /// Quits without writing out: the next start recovers (SIGQUIT).
    Immediate,
}

/// What to start.
#[derive(Debug)]
pub struct Builder {
    major: Option<u32>,
    settings: Vec<(String, String)>,
    hba: Vec<String>,
    certificate: Option<Certificate>,
    own_identifier: bool,
}

impl Builder {
    /// Another major than `PG_MAJOR` says.
    #[must_use]
    pub fn major(mut self, major: u32) -> Self {
        self.major = Some(major);
        self
    }

    /// A line of `postgresql.conf`; the last one of a name counts.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Whether the server waits for its disk. Off unless said: the operating system survives every
    /// test here, also those that kill the server.
    #[must_use]
    pub fn fsync(self, on: bool) -> Self {
        self.setting("fsync", if on { "on" } else { "off" })
    }

    /// Lines of `pg_hba.conf`, before those that trust everybody on loopback and the socket.
    /// A user with a password is made with SQL: `CREATE ROLE relay LOGIN REPLICATION PASSWORD '…'`.
    #[must_use]
    pub fn hba(mut self, lines: &[&str]) -> Self {
        self.hba.extend(lines.iter().map(|line| (*line).to_owned()));
        self
    }

    /// TLS with this certificate, which can be [changed](Postgres::show_certificate). What clients show must
    /// be of `clients`.
    #[must_use]
    pub fn tls(mut self, certificate: &Certificate, clients: &Authority) -> Self {
        self.certificate = Some(certificate.clone());
        self.setting("ssl", "on").setting("ssl_ca_file", &clients.file().to_string_lossy())
    }

    /// A system identifier that no other server has. Costs a run of `initdb`; without it the data
    /// directory is a copy, and two servers look like one cluster.
    #[must_use]
    pub fn own_identifier(mut self) -> Self {
        self.own_identifier = true;
        self
    }

    /// Starts the server and waits until it takes connections.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[must_use]
    #[track_caller]
    pub fn start(self) -> Postgres {
        self.try_start().unwrap_or_else(|e| panic!("{e}"))
    }

    /// Starts the server and waits until it takes connections.
    ///
    /// # Errors
    ///
    /// When something is missing or the server does not start.
    pub fn try_start(self) -> Result<Postgres> {
        let major = self.major.map_or_else(provision::major, Ok)?;
        let install = provision::postgres(major)?;
        let folder = scratch::folder("pg")?;
        if let Some(user) = install.user {
            // The server writes its socket and its data here.
            user.own(&folder)?;
        }
        let postgres = Postgres { install, folder, port: port::free(), process: Mutex::new(None) };
        let data = postgres.data_dir();
        postgres.install.data_directory(&data, self.own_identifier)?;
        postgres.configure(&self.settings, &self.hba)?;
        if let Some(certificate) = &self.certificate {
            postgres.take_certificate(certificate)?;
        }
        postgres.try_start_again()?;
        Ok(postgres)
    }
}

impl Postgres {
    /// Logical decoding on, nothing that waits for a disk, everybody on loopback trusted.
    #[must_use]
    pub fn builder() -> Builder {
        let settings = [
            ("wal_level", "logical"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("max_connections", "100"),
            ("max_prepared_transactions", "10"),
            ("shared_buffers", "64MB"),
            ("fsync", "off"),
            ("listen_addresses", "127.0.0.1"),
            ("log_line_prefix", "%m [%p] %q%a "),
            ("log_checkpoints", "off"),
            ("jit", "off"),
            // In the data directory, so that nothing outside it outlives a killed server.
            ("dynamic_shared_memory_type", "mmap"),
        ];
        Builder {
            major: None,
            settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            hba: Vec::new(),
            certificate: None,
            own_identifier: false,
        }
    }

    /// `postgres://postgres@127.0.0.1:PORT/app`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{DATABASE}", self.port)
    }

    /// The same for another user. Neither part is percent-encoded here.
    #[must_use]
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("postgres://{user}:{password}@127.0.0.1:{}/{DATABASE}", self.port)
    }

    /// The port, on loopback and in the socket's name; the same one for the life of this value.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the Unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.folder
    }

    /// 14, 15, …
    #[must_use]
    pub fn major(&self) -> u32 {
        self.install.major
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The process number of the postmaster, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.running().as_ref().filter(|process| process.ended().is_none()).map(Process::pid)
    }

    /// A program of the same installation, such as `pg_recvlogical`, to be run as the server's user.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        self.install.command(program)
    }

    /// A connection as the superuser.
    ///
    /// # Panics
    ///
    /// When the server does not take it.
    #[must_use]
    #[track_caller]
    pub fn client(&self) -> postgres::Client {
        self.try_client().unwrap_or_else(|e| panic!("connecting to PostgreSQL: {e}"))
    }

    /// A connection as the superuser.
    ///
    /// # Errors
    ///
    /// When the server does not take it.
    pub fn try_client(&self) -> std::result::Result<postgres::Client, postgres::Error> {
        postgres::Config::new()
            .host_path(&self.folder)
            .port(self.port)
            .user("postgres")
            .dbname(DATABASE)
            .application_name("testkit")
            .connect_timeout(Duration::from_secs(10))
            .connect(postgres::NoTls)
    }

    /// Stops the server and waits until it has ended; how long that took.
    ///
    /// # Panics
    ///
    /// When it does not stop within [`wait::LIMIT`].
    #[track_caller]
    pub fn stop(&self, mode: Mode) -> Duration {
        let signal = match mode {
            Mode::Smart => Signal::SIGTERM,
            Mode::Fast => Signal::SIGINT,
            Mode::Immediate => Signal::SIGQUIT,
        };
        let begun = Instant::now();
        if let Some(process) = self.running().take() {
            process.signal(signal);
            if let Err(e) = process.wait("PostgreSQL to stop", LIMIT) {
                panic!("{}", self.failed(&e.to_string()));
            }
        }
        begun.elapsed()
    }

    /// Asks the server to stop and does not wait; [`stop`](Self::stop) waits for its end.
    pub fn signal(&self, signal: Signal) {
        if let Some(process) = self.running().as_ref() {
            process.signal(signal);
        }
    }

    /// Starts the server on the same port and data, and waits until it takes connections.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[track_caller]
    pub fn start_again(&self) {
        self.try_start_again().unwrap_or_else(|e| panic!("{e}"));
    }

    /// Stops and starts the server.
    ///
    /// # Panics
    ///
    /// When it does not stop or start.
    #[track_caller]
    pub fn restart(&self, mode: Mode) {
        self.stop(mode);
        self.start_again();
    }

    /// Kills every process of the server, the postmaster first.
    pub fn kill9(&self) {
        let Some(process) = self.running().take() else { return };
        let children = process::children_of(process.pid());
        process.kill();
        for child in &children {
            process::kill_pid(*child);
        }
        // One that was just forked, or dies slowly, keeps the next start from the shared memory.
        let _ = wait::poll("PostgreSQL's processes to end", LIMIT, || {
            (!children.iter().any(|child| process::is_running(*child))).then_some(())
        });
    }

    /// Everything the server has logged.
    #[must_use]
    pub fn log_text(&self) -> String {
        read_log(&self.log())
    }

    /// Gives the server another certificate, and waits until it shows it to new connections.
    ///
    /// # Panics
    ///
    /// When it cannot be written, or the server does not take it.
    #[track_caller]
    pub fn show_certificate(&self, certificate: &Certificate) {
        let refused = || self.log_text().matches("SSL configuration was not reloaded").count();
        let before = refused();
        self.take_certificate(certificate).unwrap_or_else(|e| panic!("{e}"));
        self.reload();
        assert_eq!(refused(), before, "{}", self.failed("does not take the certificate"));
    }

    /// Has the server take the certificates of clients that are of this authority, and of no other.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[track_caller]
    pub fn trust_clients_of(&self, authority: &Authority) {
        let file = authority.file();
        let sql = format!("ALTER SYSTEM SET ssl_ca_file = {}", quote(&file.to_string_lossy()));
        self.client().batch_execute(&sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        self.reload();
    }

    /// Has the server read its files again, and waits until it has.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[track_caller]
    pub fn reload(&self) {
        // Of the postmaster, at the time of the connection.
        let loaded = || self.ask("SELECT pg_conf_load_time()");
        let before = loaded();
        let _ = self.ask("SELECT pg_reload_conf()");
        wait::poll("PostgreSQL to reload", LIMIT, || (loaded() != before).then_some(()))
            .unwrap_or_else(|e| panic!("{}", self.failed(&e.to_string())));
    }

    fn take_certificate(&self, certificate: &Certificate) -> Result<()> {
        for (from, name) in
            [(&certificate.certificate, "server.crt"), (&certificate.key, "server.key")]
        {
            let file = self.data_dir().join(name);
            fs::copy(from, &file).context(file.display())?;
            // It takes no key that others can read.
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600))
                .context(file.display())?;
            if let Some(user) = self.install.user {
                user.own(&file)?;
            }
        }
        Ok(())
    }

    /// Runs one query that gives one value, and returns it as text: for `SHOW` and positions.
    ///
    /// # Panics
    ///
    /// When the query fails or gives no value.
    #[must_use]
    #[track_caller]
    pub fn ask(&self, query: &str) -> String {
        let answer = self.client().simple_query(query).unwrap_or_else(|e| panic!("{query}: {e}"));
        let value = answer.iter().find_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        value.unwrap_or_else(|| panic!("{query}: no value"))
    }

    fn running(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    fn failed(&self, how: &str) -> Error {
        let log = process::last_lines(&self.log_text(), 30);
        Error(format!("PostgreSQL {}: {how}\n{log}", self.install.version))
    }

    fn configure(&self, settings: &[(String, String)], hba: &[String]) -> Result<()> {
        let mut conf = format!("port = {}\nunix_socket_directories = ", self.port);
        conf.push_str(&quote(&self.folder.to_string_lossy()));
        conf.push('\n');
        for (name, value) in settings {
            let _ = writeln!(conf, "{name} = {}", quote(value));
        }
        let trust = ["local all all trust", "local replication all trust"]
            .into_iter()
            .chain(["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"]);
        let mut access = String::new();
        for line in hba.iter().map(String::as_str).chain(trust) {
            let _ = writeln!(access, "{line}");
        }
        // The files are the server user's already, and stay so when they are only overwritten.
        let data = self.data_dir();
        let write = |name: &str, text: &str| {
            let file = data.join(name);
            fs::write(&file, text).context(file.display())
        };
        write("postgresql.auto.conf", &conf)?;
        write("pg_hba.conf", &access)
    }

    fn try_start_again(&self) -> Result<()> {
        {
            let mut running = self.running();
            if running.as_ref().is_some_and(|process| process.ended().is_none()) {
                return Ok(());
            }
            let log = File::options().create(true).append(true).open(self.log());
            let log = log.context(self.log().display())?;
            let mut command = self.install.command("postgres");
            command.arg("-D").arg(self.data_dir());
            command.stdout(log.try_clone().context("the server's log")?).stderr(log);
            *running = Some(Process::spawn("PostgreSQL", command)?);
        }
        wait::poll("PostgreSQL to take connections", LIMIT, || {
            if self.running().as_ref().is_none_or(|process| process.ended().is_some()) {
                return Some(Err(self.failed("ended while starting")));
            }
            (self.is_ready() && self.try_client().is_ok()).then_some(Ok(()))
        })
        .unwrap_or_else(|e| Err(self.failed(&e.to_string())))
    }

    /// Whether the postmaster says so in its lock file: asking that is free.
    fn is_ready(&self) -> bool {
        let file = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
        let ours = file.lines().next().and_then(|pid| pid.parse().ok()) == self.pid();
        ours && file.lines().nth(7).is_some_and(|state| state.trim() == "ready")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // An immediate stop frees the shared memory, which a kill would leave behind.
        if let Some(process) = self.running().as_ref() {
            process.signal(Signal::SIGCONT);
            process.signal(Signal::SIGQUIT);
            let _ = process.wait("PostgreSQL to quit", Duration::from_secs(10));
        }
        self.kill9();
        let _ = scratch::remove(&self.folder);
    }
}

fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}
