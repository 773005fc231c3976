//! A physical standby, which can be promoted.

use super::{Builder, DATABASE, LIMIT, Postgres};
use crate::error::{Context as _, Result};
use crate::lsn::Lsn;
use crate::{port, provision, scratch, wait};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

/// The physical slot by which the primary keeps what the standby still needs, and the standby's name.
const STANDBY: &str = "standby";

impl Postgres {
    /// A standby of this server, from a copy of its files, that follows it. From 17 on it synchronises slots that
    /// were made with `failover`.
    ///
    /// # Panics
    ///
    /// When the copy cannot be made or the standby does not start.
    #[must_use]
    #[track_caller]
    pub fn standby(&self) -> Self {
        self.try_standby().unwrap_or_else(|e| panic!("{e}"))
    }

    fn try_standby(&self) -> Result<Self> {
        let install = provision::postgres(self.major())?;
        let folder = scratch::folder("standby")?;
        if let Some(user) = install.user {
            user.own(&folder)?;
        }
        let standby = Self { install, folder, port: port::free(), process: Mutex::new(None) };
        let label = self.base_backup(&standby.data_dir())?;
        let write = |name: &str, text: &str| {
            let file = standby.data_dir().join(name);
            fs::write(&file, text).context(file.display())?;
            match standby.install.user {
                Some(user) => user.own(&file),
                None => Ok(()),
            }
        };
        write("backup_label", &label)?;
        write("standby.signal", "")?;
        let from = format!(
            "host={} port={} user=postgres dbname={DATABASE} application_name={STANDBY}",
            self.folder.display(),
            self.port
        );
        let mut builder = Self::builder()
            .setting("primary_conninfo", &from)
            .setting("primary_slot_name", STANDBY)
            .setting("hot_standby_feedback", "on");
        if self.major() >= 17 {
            builder = builder.setting("sync_replication_slots", "on");
        }
        let Builder { settings, hba, .. } = builder;
        standby.configure(&settings, &hba)?;
        standby.try_start_again()?;
        Ok(standby)
    }

    /// Copies the files of the running server; what belongs into the copy's `backup_label`.
    fn base_backup(&self, to: &Path) -> Result<String> {
        let mut client = self.try_client().context("a base backup")?;
        let (start, stop) = match self.major() {
            14 => (
                "SELECT pg_start_backup('testkit', true, false)::text",
                "SELECT labelfile FROM pg_stop_backup(false)",
            ),
            _ => (
                "SELECT pg_backup_start('testkit', true)::text",
                "SELECT labelfile FROM pg_backup_stop()",
            ),
        };
        let slot = format!("SELECT pg_create_physical_replication_slot('{STANDBY}', true)");
        client.batch_execute(&slot).context("the standby's slot")?;
        client.query_one(start, &[]).context("the base backup's start")?;
        // Files of a server that runs come and go; what is missing comes with the log.
        let copied = Command::new("cp").arg("-a").arg("--").arg(self.data_dir()).arg(to).output();
        copied.context("copying a data directory")?;
        let label: String = client.query_one(stop, &[]).context("the base backup's end")?.get(0);
        let slots = to.join("pg_replslot");
        for entry in fs::read_dir(&slots).context(slots.display())? {
            let path = entry.context(slots.display())?.path();
            fs::remove_dir_all(&path).context(path.display())?;
        }
        let lock = to.join("postmaster.pid");
        if lock.exists() {
            fs::remove_file(&lock).context(lock.display())?;
        }
        Ok(label)
    }

    /// Makes a standby the primary of a new timeline, and waits until it takes writes.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[track_caller]
    pub fn promote(&self) {
        let promoted = self.ask("SELECT pg_promote(true, 60)");
        assert_eq!(promoted, "t", "{}", self.log_text());
        wait::until("the promoted server to take writes", LIMIT, || {
            self.ask("SELECT pg_is_in_recovery()") == "f"
        });
    }

    /// Waits until a standby has replayed everything up to `lsn`.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[track_caller]
    pub fn wait_replayed(&self, lsn: Lsn) {
        wait::until("the standby to replay", LIMIT, || {
            let replayed = self.ask("SELECT coalesce(pg_last_wal_replay_lsn(), '0/0')");
            replayed.parse::<Lsn>().is_ok_and(|replayed| replayed >= lsn)
        });
    }
}
