//! The byte stream beneath rskafka's `Messenger`: sees what the messenger does not tell.

use futures_util::task::AtomicWaker;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Writes up to this long wait for the next one. The messenger writes each request's length, four
/// bytes, by itself; sent alone it would cost a system call and a packet.
const HELD_BACK_MAX: usize = 16;

/// What a [`Link`] has seen, shared with the task that owns the connection.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Bytes that the transport has accepted. Whatever is counted here may reach the broker.
    written: AtomicU64,
    /// Requests written to their end (the messenger flushes after each).
    requests: AtomicU64,
    /// The peer closed its half, or reading failed.
    ended: AtomicBool,
    /// Who waits for `ended`.
    waker: AtomicWaker,
}

impl Traffic {
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Acquire)
    }

    /// Ready once nothing more can be read.
    pub(super) fn poll_ended(&self, cx: &Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.ended.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// A transport that joins a request's length to its body and reports to [`Traffic`].
#[derive(Debug)]
pub(super) struct Link<S> {
    transport: S,
    held_back: Vec<u8>,
    traffic: Arc<Traffic>,
}

impl<S> Link<S> {
    pub(super) fn new(transport: S, traffic: Arc<Traffic>) -> Self {
        Self { transport, held_back: Vec::with_capacity(HELD_BACK_MAX), traffic }
    }
}

impl<S: AsyncWrite + Unpin> Link<S> {
    /// Writes what was held back, then from `buf`; the result counts the bytes of both.
    fn poll_write_joined(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let transport = Pin::new(&mut self.transport);
        let n = if self.held_back.is_empty() {
            ready!(transport.poll_write(cx, buf))?
        } else {
            let slices = [IoSlice::new(&self.held_back), IoSlice::new(buf)];
            ready!(transport.poll_write_vectored(cx, &slices))?
        };
        self.traffic.written.fetch_add(n as u64, Ordering::AcqRel);
        if n == 0 { Poll::Ready(Err(io::ErrorKind::WriteZero.into())) } else { Poll::Ready(Ok(n)) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Link<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.transport).poll_read(cx, buf));
        if result.is_err() || buf.filled().len() == before {
            self.traffic.end();
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Link<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.held_back.len() + buf.len() <= HELD_BACK_MAX {
            this.held_back.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        loop {
            let n = ready!(this.poll_write_joined(cx, buf))?;
            let ours = n.min(this.held_back.len());
            this.held_back.drain(..ours);
            // "0 bytes of `buf`" would be taken for an error.
            if n > ours {
                return Poll::Ready(Ok(n - ours));
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while !this.held_back.is_empty() {
            let n = ready!(this.poll_write_joined(cx, &[]))?;
            this.held_back.drain(..n.min(this.held_back.len()));
        }
        ready!(Pin::new(&mut this.transport).poll_flush(cx))?;
        this.traffic.requests.fetch_add(1, Ordering::AcqRel);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_length_leaves_with_its_body_and_both_are_counted() {
        // A pipe of 7 bytes cuts the writes in every possible place.
        for capacity in 1..=12 {
            let (ours, mut theirs) = tokio::io::duplex(capacity);
            let traffic = Arc::new(Traffic::default());
            let mut link = Link::new(ours, Arc::clone(&traffic));
            let reader = tokio::spawn(async move {
                let mut got = Vec::new();
                theirs.read_to_end(&mut got).await.unwrap();
                got
            });
            link.write_all(&[0, 0, 0, 20]).await.unwrap();
            assert_eq!(traffic.written(), 0, "the length waits");
            link.write_all(&[7; 20]).await.unwrap();
            link.flush().await.unwrap();
            assert_eq!((traffic.written(), traffic.requests()), (24, 1));
            drop(link);
            let mut expected = vec![0, 0, 0, 20];
            expected.extend([7; 20]);
            assert_eq!(reader.await.unwrap(), expected, "capacity {capacity}");
        }
    }

    #[tokio::test]
    async fn a_short_request_leaves_at_the_flush() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let traffic = Arc::new(Traffic::default());
        let mut link = Link::new(ours, Arc::clone(&traffic));
        link.write_all(b"abc").await.unwrap();
        link.flush().await.unwrap();
        let mut got = [0; 3];
        theirs.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"abc");
    }

    #[tokio::test]
    async fn the_peers_end_is_noticed() {
        let (ours, theirs) = tokio::io::duplex(64);
        let traffic = Arc::new(Traffic::default());
        let mut link = Link::new(ours, Arc::clone(&traffic));
        drop(theirs);
        assert_eq!(link.read(&mut [0; 8]).await.unwrap(), 0);
        std::future::poll_fn(|cx| traffic.poll_ended(cx)).await;
    }
}
