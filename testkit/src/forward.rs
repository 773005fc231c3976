//! An address that stays while what is behind it changes.

use crate::port;
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// A TCP port that leads to another. Dropping it closes the port; what is connected stays so.
#[derive(Debug)]
pub struct Forward {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<String>,
    closed: AtomicBool,
}

impl Forward {
    /// A port of its own that leads to `target`, `host:port`.
    ///
    /// # Panics
    ///
    /// When the port cannot be opened.
    #[must_use]
    #[track_caller]
    pub fn to(target: &str) -> Self {
        let port = port::free();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a port that is free");
        let target = Mutex::new(target.to_owned());
        let shared = Arc::new(Shared { target, closed: AtomicBool::new(false) });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.closed.load(Ordering::Acquire) {
                    return;
                }
                let target = accepting.target();
                // Without a server behind it the client's connection is closed.
                thread::spawn(move || join(&client, &TcpStream::connect(target)?));
            }
        });
        Self { port, shared }
    }

    /// Where it listens, `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Leads new connections elsewhere.
    pub fn lead_to(&self, target: &str) {
        let mut current = self.shared.target.lock().unwrap_or_else(PoisonError::into_inner);
        target.clone_into(&mut current);
    }
}

impl Shared {
    fn target(&self) -> String {
        self.target.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

/// Copies both ways until both sides have ended.
fn join(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let copy = |mut from: &TcpStream, mut to: &TcpStream| {
        let copied = io::copy(&mut from, &mut to);
        // A half that failed takes the other with it; one that ended does not.
        let _ = to.shutdown(if copied.is_ok() { Shutdown::Write } else { Shutdown::Both });
    };
    thread::scope(|scope| {
        scope.spawn(|| copy(server, client));
        copy(client, server);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Forward;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    /// Listens and answers one connection with this text.
    fn server(text: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || listener.accept().unwrap().0.write_all(text.as_bytes()));
        address
    }

    fn read(address: &str) -> String {
        let mut text = String::new();
        TcpStream::connect(address).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn the_address_stays_while_the_server_behind_it_changes() {
        let forward = Forward::to(&server("one"));
        assert_eq!(read(&forward.address()), "one");
        forward.lead_to(&server("two"));
        assert_eq!(read(&forward.address()), "two");
    }
}
