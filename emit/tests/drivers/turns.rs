//! How often a driver asks the server.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A way to the server that counts what is asked and answered: simple queries, and what ends with a Sync or a Flush,
/// but for those that only close a statement, for which nobody waits.
pub(crate) struct Counter {
    port: u16,
    turns: Arc<AtomicUsize>,
}

impl Counter {
    pub(crate) fn new(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&turns);
        // Ends with the process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, counted) = (client.unwrap(), Arc::clone(&counted));
                let server = TcpStream::connect(("127.0.0.1", server)).unwrap();
                let (asks, asked) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                // That one of them hangs up is how a session ends.
                thread::spawn(move || ask(asks, asked, &counted));
                thread::spawn(move || io::copy(&mut &server, &mut &client));
            }
        });
        Self { port, turns }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn turns(&self) -> usize {
        self.turns.load(Ordering::SeqCst)
    }
}

/// Carries message by message.
fn ask(mut from: TcpStream, mut to: TcpStream, turns: &AtomicUsize) -> io::Result<()> {
    let mut closes = true;
    // The first ones have no type: a length, and a request's code or the version. The former are answered by one byte.
    let mut has_type = false;
    loop {
        let mut head = vec![0; if has_type { 5 } else { 4 }];
        if let Err(error) = from.read_exact(&mut head) {
            to.shutdown(Shutdown::Write)?;
            return Err(error);
        }
        let length = u32::from_be_bytes(*head.last_chunk().unwrap());
        let mut body = vec![0; usize::try_from(length).unwrap() - 4];
        from.read_exact(&mut body)?;
        match head[0] {
            _ if !has_type => has_type = body[..4] == [0, 3, 0, 0],
            b'Q' => drop(turns.fetch_add(1, Ordering::SeqCst)),
            b'S' | b'H' => {
                turns.fetch_add(usize::from(!closes), Ordering::SeqCst);
                closes = true;
            }
            kind => closes &= kind == b'C',
        }
        to.write_all(&[head, body].concat())?;
    }
}
