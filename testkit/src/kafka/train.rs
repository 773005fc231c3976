//! What is prepared once per installation.

use super::config::{self, Node};
use crate::error::{Context as _, Error, Result};
use crate::process::{self, Process, Signal};
use crate::provision::KafkaInstall;
use crate::{port, scratch, wait};
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// Has Kafka's own tool format a directory, and keeps its `bootstrap.checkpoint`: it says which
/// features a new cluster starts with, and is the same for all.
pub(crate) fn bootstrap_checkpoint(install: &KafkaInstall) -> Result<()> {
    let folder = scratch::folder("format")?;
    let data = folder.join("data");
    let node = Node { id: 1, port: 1, controller_port: 2 };
    let file = folder.join("server.properties");
    fs::write(&file, config::properties(node, &[node], &data, &[], &[])).context(file.display())?;
    let mut format = install.command();
    format.args(["kafka.tools.StorageTool", "format", "-t", &config::random_uuid()?, "-c"]);
    process::run("formatting a Kafka data directory", format.arg(&file))?;
    let made = data.join("bootstrap.checkpoint");
    fs::copy(&made, install.folder.join("bootstrap.checkpoint")).context(made.display())?;
    scratch::remove(&folder)
}

/// Runs a broker once and has the Java runtime keep its loaded classes in `archive`.
pub(crate) fn class_archive(install: &KafkaInstall, archive: &Path) -> Result<()> {
    let folder = scratch::folder("train")?;
    let data = folder.join("data");
    let node = Node { id: 1, port: port::free(), controller_port: port::free() };
    let checkpoint = install.folder.join("bootstrap.checkpoint");
    config::format(&data, node.id, &config::random_uuid()?, &checkpoint)?;
    let file = folder.join("server.properties");
    fs::write(&file, config::properties(node, &[node], &data, &[], &[])).context(file.display())?;
    let mut command = install.command();
    command.arg(format!("-XX:ArchiveClassesAtExit={}", archive.display()));
    command.arg("kafka.Kafka").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    let broker = Process::spawn("Kafka", command)?;
    let limit = Duration::from_secs(60);
    wait::poll("a broker to learn from", limit, || {
        let listens = TcpStream::connect(("127.0.0.1", node.port)).is_ok();
        (listens || broker.ended().is_some()).then_some(())
    })?;
    broker.signal(Signal::SIGTERM);
    broker.wait("the broker's class archive", limit)?;
    scratch::remove(&folder)?;
    if archive.is_file() { Ok(()) } else { Err(Error::new("no class archive")) }
}
