//! Apache Kafka's jars, and a broker that starts fast.

use crate::error::{Context as _, Error, Result};
use crate::kafka::train;
use crate::{process, versions};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Apache Kafka with its Java tools.
#[derive(Debug, Clone)]
pub struct KafkaInstall {
    /// The version.
    pub version: &'static str,
    /// Holds the jars and `bootstrap.checkpoint`.
    pub folder: PathBuf,
    /// The Java runtime.
    pub java: PathBuf,
    /// All jars, in a fixed order.
    pub classpath: String,
    /// Loaded and parsed classes of an earlier run: starting takes half the time with it.
    archive: Option<PathBuf>,
}

pub(super) fn install(kafka: &'static str) -> Result<KafkaInstall> {
    super::need("setpriv", "util-linux", "ending servers with the tests")?;
    let java = java()?;
    let folder = super::cached(&format!("kafka-{kafka}"), |draft| {
        download(draft, kafka)?;
        let draft = KafkaInstall::at(draft.to_owned(), java.clone(), kafka)?;
        train::bootstrap_checkpoint(&draft)
    })?;
    let mut install = KafkaInstall::at(folder, java, kafka)?;
    // The archive fits one Java runtime and one path of jars only.
    let mut version = Command::new(&install.java);
    let version = process::run("java -version", version.arg("-version"))?;
    let key = fnv(&[version.stderr.as_slice(), install.classpath.as_bytes()].concat());
    let name = format!("kafka-{kafka}-classes-{key:016x}");
    let archive = super::cached(&name, |draft| {
        // Only speed is lost without it, so a runtime that cannot do it is no error.
        let _ = train::class_archive(&install, &draft.join("kafka.jsa"));
        Ok(())
    })?
    .join("kafka.jsa");
    install.archive = archive.is_file().then_some(archive);
    Ok(install)
}

impl KafkaInstall {
    fn at(folder: PathBuf, java: PathBuf, version: &'static str) -> Result<Self> {
        let jars = folder.join("jars");
        let mut names: Vec<String> = fs::read_dir(&jars)
            .context(jars.display())?
            .filter_map(|entry| entry.ok()?.path().into_os_string().into_string().ok())
            .filter(|path| path.ends_with(".jar"))
            .collect();
        names.sort();
        Ok(Self { version, folder, java, classpath: names.join(":"), archive: None })
    }

    /// A Java process with Kafka's classes; dies with the calling thread.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = process::guarded(&self.java, None);
        // Short-lived programs on two cores: no second compiler, no threads for the heap.
        command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"]);
        command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Xlog:disable"]);
        command.arg("-Xlog:all=warning:stderr:time");
        command.args(["-Xlog:cds=off", "-Xlog:cds+dynamic=off", "-cp", &self.classpath]);
        if let Some(archive) = &self.archive {
            command.arg(format!("-XX:SharedArchiveFile={}", archive.display()));
        }
        command.env_remove("JAVA_TOOL_OPTIONS").env_remove("CLASSPATH");
        command
    }
}

/// The Java runtime: `JAVA_HOME`, then `PATH`, then Debian's package.
fn java() -> Result<PathBuf> {
    let home = std::env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin/java"));
    match home.filter(|java| java.is_file()) {
        Some(java) => Ok(java),
        None => super::need("java", "default-jdk-headless", "Apache Kafka"),
    }
}

fn download(draft: &Path, kafka: &str) -> Result<()> {
    let mvn = super::need("mvn", "maven", "fetching Apache Kafka")?;
    let mut dependencies = String::new();
    for (group, artifact, version) in [
        ("org.apache.kafka", format!("kafka_{}", versions::KAFKA_SCALA), kafka),
        ("org.apache.kafka", "kafka-tools".to_owned(), kafka),
        ("org.slf4j", "slf4j-simple".to_owned(), versions::SLF4J),
    ] {
        let _ = write!(
            dependencies,
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
             <version>{version}</version></dependency>"
        );
    }
    let pom = format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>factlib</groupId><artifactId>kafka</artifactId><version>1</version>\
         <dependencies>{dependencies}</dependencies></project>\n"
    );
    let file = draft.join("pom.xml");
    fs::write(&file, pom).context(file.display())?;
    let mut copy = Command::new(mvn);
    copy.args(["--quiet", "--batch-mode", "-Dstyle.color=never", "dependency:copy-dependencies"]);
    copy.arg("-DoutputDirectory=jars").current_dir(draft);
    process::run(&format!("fetching Apache Kafka {kafka} with Maven"), &mut copy)?;
    if !draft.join("jars").is_dir() {
        return Err(Error::new("Maven fetched no jars"));
    }
    Ok(())
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
