//! A broker's settings and its data directory.

use crate::error::{Context as _, Result};
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::Path;

/// Where one broker listens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    pub(crate) id: usize,
    pub(crate) port: u16,
    pub(crate) controller_port: u16,
}

/// One more listener of a broker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listener<'a> {
    pub(crate) name: &'a str,
    pub(crate) protocol: &'a str,
    pub(crate) port: u16,
    /// Where clients find it.
    pub(crate) advertised: u16,
}

/// The text of `server.properties`: broker and controller in one process, nothing that waits.
pub(crate) fn properties(
    node: Node,
    nodes: &[Node],
    data: &Path,
    listeners: &[Listener<'_>],
    settings: &[(String, String)],
) -> String {
    let copies = nodes.len().min(3);
    let voters: Vec<String> =
        nodes.iter().map(|n| format!("{}@127.0.0.1:{}", n.id, n.controller_port)).collect();
    let Node { id, port, controller_port } = node;
    let (mut others, mut protocols) = (String::new(), String::new());
    let mut advertised_others = String::new();
    for Listener { name, protocol, port, advertised } in listeners {
        let _ = write!(others, ",{name}://127.0.0.1:{port}");
        let _ = write!(advertised_others, ",{name}://127.0.0.1:{advertised}");
        let _ = write!(protocols, ",{name}:{protocol}");
    }
    let mut text = format!(
        "process.roles=broker,controller
node.id={id}
controller.quorum.voters={voters}
listeners=CLIENT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}{others}
advertised.listeners=CLIENT://127.0.0.1:{port}{advertised_others}
listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENT
log.dirs={data}
auto.create.topics.enable=false
num.partitions=1
default.replication.factor={copies}
offsets.topic.replication.factor={copies}
offsets.topic.num.partitions=1
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor={copies}
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.segment.delete.delay.ms=1000
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
",
        voters = voters.join(","),
        data = data.display(),
    );
    for (name, value) in settings {
        let _ = writeln!(text, "{name}={value}");
    }
    text
}

/// What `kafka.tools.StorageTool format` writes, with a checkpoint that it has written once.
pub(crate) fn format(data: &Path, id: usize, cluster: &str, checkpoint: &Path) -> Result<()> {
    fs::create_dir_all(data).context(data.display())?;
    let meta =
        format!("node.id={id}\ndirectory.id={}\nversion=1\ncluster.id={cluster}\n", random_uuid()?);
    fs::write(data.join("meta.properties"), meta).context(data.display())?;
    fs::copy(checkpoint, data.join("bootstrap.checkpoint")).context(checkpoint.display())?;
    Ok(())
}

/// A UUID as Kafka writes them: base64 of 16 bytes.
pub(crate) fn random_uuid() -> Result<String> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).context("random")?;
    // Not a dash first: command lines would take it for an option.
    bytes[0] &= 0x7f;
    let number = u128::from_be_bytes(bytes);
    // 128 bits are 22 digits of six bits, the last one with four bits of padding.
    let digit = |place: u32| -> u8 {
        let bits = if place == 21 { number << 4 } else { number >> (122 - 6 * place) };
        ALPHABET[(bits & 0x3f) as usize]
    };
    Ok((0..22).map(|place| char::from(digit(place))).collect())
}
