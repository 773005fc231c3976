//! A real Apache Kafka, of one broker or several.

mod admin;
pub(crate) mod config;
mod fetch;
mod follower;
mod java;
mod reader;
mod segments;
mod topics;
pub(crate) mod train;
mod wire;

pub use self::follower::Follower;
pub use self::java::java_partitions;
pub use self::reader::{Reader, Record};
pub use self::segments::Batch;

use self::config::{Listener, Node};
use self::wire::{Wire, block_on};
use crate::error::{Context as _, Error, Result};
use crate::process::{self, Process, Signal};
use crate::provision::KafkaInstall;
use crate::proxy::Proxy;
use crate::{port, provision, scratch, wait};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a broker may take to start, stop or elect.
const LIMIT: Duration = wait::LIMIT;

/// The listener that is reached through a proxy.
const PROXIED: &str = "PROXIED";

/// The folder of a broker's log, in its own.
const DATA: &str = "data";

/// A cluster on loopback. Dropping it ends it and removes its data.
#[derive(Debug)]
pub struct Kafka {
    install: KafkaInstall,
    folder: PathBuf,
    settings: Vec<(String, String)>,
    brokers: Vec<Broker>,
}

#[derive(Debug)]
struct Broker {
    install: KafkaInstall,
    node: Mutex<Node>,
    /// Each listener beside the plain one.
    listeners: Vec<Extra>,
    /// What stands before the listener [`PROXIED`].
    proxy: Option<Proxy>,
    folder: PathBuf,
    heap: String,
    process: Mutex<Option<Process>>,
}

/// A listener beside the plain one.
#[derive(Debug)]
struct Extra {
    name: String,
    protocol: String,
    port: u16,
    /// Where clients find it.
    advertised: u16,
}

/// What to start.
#[derive(Debug)]
pub struct Builder {
    version: Option<&'static str>,
    brokers: usize,
    heap: String,
    settings: Vec<(String, String)>,
    listeners: Vec<(String, String)>,
    proxied: bool,
}

impl Builder {
    /// One more listener beside the plain one: its name, in capital letters, and its protocol, such as
    /// `SASL_SSL`. What it needs is set by [`Builder::setting`], under `listener.name.` and its name.
    #[must_use]
    pub fn listener(mut self, name: &str, protocol: &str) -> Self {
        self.listeners.push((name.to_owned(), protocol.to_owned()));
        self
    }

    /// A [`Proxy`] before each broker: who starts at [`Kafka::proxied_bootstrap`] gets to the brokers
    /// through them, while the brokers among themselves, and what reads topics here, go around them.
    #[must_use]
    pub fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }

    /// Which of [`crate::versions::KAFKA_VERSIONS`]; `KAFKA_VERSION` or the default unless said.
    #[must_use]
    pub fn version(mut self, version: &'static str) -> Self {
        self.version = Some(version);
        self
    }

    /// How many brokers; 1 unless said.
    #[must_use]
    pub fn brokers(mut self, brokers: usize) -> Self {
        self.brokers = brokers;
        self
    }

    /// The largest heap of each broker, as Java writes it; `384m` unless said.
    #[must_use]
    pub fn heap(mut self, heap: &str) -> Self {
        heap.clone_into(&mut self.heap);
        self
    }

    /// A line of `server.properties`, for every broker.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the brokers and waits until they serve.
    ///
    /// # Panics
    ///
    /// When they do not.
    #[must_use]
    #[track_caller]
    pub fn start(self) -> Kafka {
        self.try_start().unwrap_or_else(|e| panic!("{e}"))
    }

    /// Starts the brokers and waits until they serve.
    ///
    /// # Errors
    ///
    /// When something is missing or a broker does not start.
    pub fn try_start(self) -> Result<Kafka> {
        let install = match self.version {
            Some(version) => provision::kafka(version)?,
            None => provision::kafka(provision::kafka_version()?)?,
        };
        let folder = scratch::folder("kafka")?;
        let nodes: Vec<Node> = (1..=self.brokers)
            .map(|id| Node { id, port: port::free(), controller_port: port::free() })
            .collect();
        let cluster = config::random_uuid()?;
        let mut brokers = Vec::new();
        for node in &nodes {
            let own = folder.join(node.id.to_string());
            config::format(
                &own.join(DATA),
                node.id,
                &cluster,
                &install.folder.join("bootstrap.checkpoint"),
            )?;
            let mut listeners: Vec<Extra> = Vec::new();
            for (name, protocol) in &self.listeners {
                let (name, protocol, port) = (name.clone(), protocol.clone(), port::free());
                listeners.push(Extra { name, protocol, port, advertised: port });
            }
            let proxy = self.proxied.then(|| {
                let port = port::free();
                let proxy = Proxy::to(&format!("127.0.0.1:{port}"));
                let (name, protocol) = (PROXIED.to_owned(), "PLAINTEXT".to_owned());
                listeners.push(Extra { name, protocol, port, advertised: proxy.port() });
                proxy
            });
            brokers.push(Broker {
                install: install.clone(),
                node: Mutex::new(*node),
                listeners,
                proxy,
                folder: own,
                heap: format!("-Xmx{}", self.heap),
                process: Mutex::new(None),
            });
        }
        let kafka = Kafka { install, folder, settings: self.settings, brokers };
        kafka.write_properties()?;
        kafka.try_start_again()?;
        Ok(kafka)
    }
}

impl Kafka {
    /// One broker, unless more are asked for.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            version: None,
            brokers: 1,
            heap: "384m".to_owned(),
            settings: Vec::new(),
            listeners: Vec::new(),
            proxied: false,
        }
    }

    /// The one broker that the tests of this process share, started when first asked for. Use topic
    /// names of your own, and do not stop it.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(|| Self::builder().start())
    }

    /// The brokers' addresses, comma separated.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        self.addresses().join(",")
    }

    /// The brokers' addresses.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.brokers.iter().map(|broker| format!("127.0.0.1:{}", broker.node().port)).collect()
    }

    /// The brokers' addresses on one of [`Builder::listener`], by this host name or address.
    #[must_use]
    pub fn bootstrap_of(&self, listener: &str, host: &str) -> String {
        let all = self.brokers.iter().flat_map(|broker| &broker.listeners);
        let of_it = all.filter(|extra| extra.name == listener);
        of_it.map(|extra| format!("{host}:{}", extra.advertised)).collect::<Vec<_>>().join(",")
    }

    /// The addresses of the proxies before the brokers, where [`Builder::proxied`] was asked for.
    #[must_use]
    pub fn proxied_bootstrap(&self) -> String {
        self.bootstrap_of(PROXIED, "127.0.0.1")
    }

    /// What stands before one broker, where [`Builder::proxied`] was asked for; they are numbered from 1.
    ///
    /// # Panics
    ///
    /// When there is none.
    #[must_use]
    #[track_caller]
    pub fn proxy(&self, id: usize) -> &Proxy {
        self.brokers[id - 1].proxy.as_ref().expect("a proxy before each broker")
    }

    /// How many brokers there are, running or not.
    #[must_use]
    pub fn brokers(&self) -> usize {
        self.brokers.len()
    }

    /// Stops every broker as an operator would.
    ///
    /// # Panics
    ///
    /// When one does not stop.
    #[track_caller]
    pub fn stop(&self) -> Duration {
        let begun = Instant::now();
        self.brokers.iter().for_each(|broker| broker.signal(Signal::SIGTERM));
        self.brokers.iter().for_each(Broker::wait);
        begun.elapsed()
    }

    /// Kills every broker.
    pub fn kill9(&self) {
        self.brokers.iter().for_each(Broker::kill);
    }

    /// Starts what does not run, on the same ports and data, and waits until the cluster serves.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[track_caller]
    pub fn start_again(&self) {
        self.try_start_again().unwrap_or_else(|e| panic!("{e}"));
    }

    /// Gives a broker another port for its clients; it must not run. They are numbered from 1.
    ///
    /// # Panics
    ///
    /// When it runs.
    #[track_caller]
    pub fn change_port(&self, id: usize) {
        let broker = &self.brokers[id - 1];
        assert!(broker.ended(), "broker {id} still has its port");
        broker.locked_node().port = port::free();
        self.write_properties().unwrap_or_else(|e| panic!("{e}"));
    }

    /// Stops and starts every broker.
    ///
    /// # Panics
    ///
    /// When one does not stop or start.
    #[track_caller]
    pub fn restart(&self) {
        self.stop();
        self.start_again();
    }

    /// Stops one broker as an operator would; they are numbered from 1.
    ///
    /// # Panics
    ///
    /// When it does not stop.
    #[track_caller]
    pub fn stop_broker(&self, id: usize) {
        self.brokers[id - 1].signal(Signal::SIGTERM);
        self.brokers[id - 1].wait();
    }

    /// Kills one broker; they are numbered from 1.
    pub fn kill9_broker(&self, id: usize) {
        self.brokers[id - 1].kill();
    }

    /// Sends a signal to one broker: `SIGSTOP` makes it silent, `SIGCONT` lets it go on.
    pub fn signal_broker(&self, id: usize, signal: Signal) {
        self.brokers[id - 1].signal(signal);
    }

    /// The process number of a broker that runs; they are numbered from 1.
    #[must_use]
    pub fn pid(&self, id: usize) -> Option<u32> {
        self.brokers[id - 1].running().as_ref().map(Process::pid)
    }

    /// What the brokers have logged: warnings and errors.
    #[must_use]
    pub fn log_text(&self) -> String {
        self.brokers.iter().map(Broker::log_text).collect()
    }

    fn write_properties(&self) -> Result<()> {
        let nodes: Vec<Node> = self.brokers.iter().map(Broker::node).collect();
        for (broker, node) in self.brokers.iter().zip(&nodes) {
            let data = broker.folder.join(DATA);
            let listeners = broker.listeners.iter();
            let listeners: Vec<Listener<'_>> = listeners
                .map(|Extra { name, protocol, port, advertised }| Listener {
                    name,
                    protocol,
                    port: *port,
                    advertised: *advertised,
                })
                .collect();
            let text = config::properties(*node, &nodes, &data, &listeners, &self.settings);
            let file = broker.folder.join("server.properties");
            fs::write(&file, text).context(file.display())?;
        }
        Ok(())
    }

    fn try_start_again(&self) -> Result<()> {
        for broker in &self.brokers {
            broker.start()?;
        }
        wait::poll("Kafka to serve", LIMIT, || {
            if let Some(down) = self.brokers.iter().find(|broker| broker.ended()) {
                return Some(Err(down.failed("ended while starting")));
            }
            self.serves().then_some(Ok(()))
        })
        .unwrap_or_else(|e| Err(self.brokers[0].failed(&e.to_string())))
    }

    /// Whether each broker answers and knows all of them.
    fn serves(&self) -> bool {
        let addresses = self.addresses();
        block_on(async move {
            for address in &addresses {
                let Ok(wire) = Wire::connect(address.clone()).await else { return false };
                let Ok(metadata) = wire.metadata(None).await else { return false };
                if metadata.brokers.len() != addresses.len() {
                    return false;
                }
            }
            true
        })
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // Nobody reads the data any more, so there is nothing to write out.
        self.kill9();
        let _ = scratch::remove(&self.folder);
    }
}

impl Broker {
    fn locked_node(&self) -> MutexGuard<'_, Node> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self) -> Node {
        *self.locked_node()
    }

    fn running(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> PathBuf {
        self.folder.join("broker.log")
    }

    fn log_text(&self) -> String {
        read_log(&self.log())
    }

    fn failed(&self, how: &str) -> Error {
        let log = process::last_lines(&self.log_text(), 30);
        Error(format!("Kafka broker {}: {how}\n{log}", self.node().id))
    }

    fn start(&self) -> Result<()> {
        let mut running = self.running();
        if running.as_ref().is_some_and(|process| process.ended().is_none()) {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(self.log());
        let log = log.context(self.log().display())?;
        let mut command = self.install.command();
        command.args([self.heap.as_str(), "kafka.Kafka"]);
        command.arg(self.folder.join("server.properties"));
        command.stdout(log.try_clone().context("the broker's log")?).stderr(log);
        *running = Some(Process::spawn("Kafka", command)?);
        Ok(())
    }

    fn ended(&self) -> bool {
        self.running().as_ref().is_none_or(|process| process.ended().is_some())
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = self.running().as_ref() {
            process.signal(signal);
        }
    }

    #[track_caller]
    fn wait(&self) {
        let mut running = self.running();
        if let Some(process) = running.take()
            && let Err(e) = process.wait("Kafka to stop", LIMIT)
        {
            panic!("{}", self.failed(&e.to_string()));
        }
    }

    fn kill(&self) {
        if let Some(process) = self.running().take() {
            process.kill();
        }
    }
}

/// A log file, whatever bytes are in it.
pub(crate) fn read_log(file: &Path) -> String {
    fs::read(file)
        .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}
