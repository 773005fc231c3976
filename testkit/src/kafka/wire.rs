//! Requests to a broker, through rskafka's messages and with a limit around each.
//!
//! Not through rskafka's client: that one's metadata requests may create topics, keep a stale leader
//! for ever and have no time limit.

use crate::error::{Context as _, Error, Result};
use rskafka::messenger::Messenger;
use rskafka::protocol::messages::{
    MetadataRequest, MetadataRequestTopic, MetadataResponse, ReadVersionedType, RequestBody,
    WriteVersionedType,
};
use rskafka::protocol::primitives::{Boolean, String_};
use std::future::Future;
use std::io::Cursor;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Runs a future on a runtime of our own, so that callers may or may not have one.
pub(crate) fn block_on<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    static RUNTIME: OnceLock<Handle> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let handle = runtime.handle().clone();
        std::thread::Builder::new()
            .name("kafka client".to_owned())
            .spawn(move || runtime.block_on(std::future::pending::<()>()))
            .expect("a thread");
        handle
    });
    let (done, result) = mpsc::sync_channel(1);
    runtime.spawn(async move {
        let _ = done.send(future.await);
    });
    result.recv().expect("the Kafka client's task panicked")
}

/// A connection to one broker.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    address: String,
    messenger: Arc<Messenger<BufReader<TcpStream>>>,
}

impl Wire {
    pub(crate) async fn connect(address: String) -> Result<Self> {
        let connecting = async {
            let stream = TcpStream::connect(&address).await.context(&address)?;
            stream.set_nodelay(true).context(&address)?;
            let mut messenger =
                Messenger::new(BufReader::new(stream), 256 << 20, Arc::from("testkit"));
            messenger.sync_versions().await.context(&address)?;
            Ok(messenger)
        };
        let messenger = tokio::time::timeout(LIMIT, connecting)
            .await
            .map_err(|_| Error(format!("{address}: no answer within {LIMIT:?}")))??;
        Ok(Self { address, messenger: Arc::new(messenger) })
    }

    pub(crate) async fn ask<R>(&self, request: R) -> Result<R::ResponseBody>
    where
        R: RequestBody + Send + WriteVersionedType<Vec<u8>>,
        R::ResponseBody: ReadVersionedType<Cursor<Vec<u8>>>,
    {
        tokio::time::timeout(LIMIT, self.messenger.request(request))
            .await
            .map_err(|_| Error(format!("{}: no answer within {LIMIT:?}", self.address)))?
            .context(&self.address)
    }

    /// All brokers, and the named topics or all.
    pub(crate) async fn metadata(&self, topics: Option<&[String]>) -> Result<MetadataResponse> {
        let topics = topics.map(|names| {
            names.iter().map(|name| MetadataRequestTopic { name: String_(name.clone()) }).collect()
        });
        self.ask(MetadataRequest { topics, allow_auto_topic_creation: Some(Boolean(false)) }).await
    }

    /// A connection to the first broker that answers.
    pub(crate) async fn any(addresses: &[String]) -> Result<Self> {
        let mut failed = Error::new("no broker");
        for address in addresses {
            match Self::connect(address.clone()).await {
                Ok(wire) => return Ok(wire),
                Err(e) => failed = e,
            }
        }
        Err(failed)
    }
}
