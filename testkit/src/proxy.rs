//! A TCP port that leads to another, and does to the bytes what networks do to them.
//!
//! ```no_run
//! # let postgres = testkit::Postgres::builder().start();
//! use testkit::proxy::{Direction, Proxy, Way};
//!
//! let proxy = Proxy::to(&format!("127.0.0.1:{}", postgres.port()));
//! proxy.set(Direction::ToServer, Way { held: true, ..Way::default() });
//! // What the client sends from now on is not heard of, and nobody is told.
//! proxy.heal();
//! ```
//!
//! Two threads for each connection, one for each direction. Bytes are never lost: a way that is held and
//! opened again delivers what it held, late, as a network does.

use crate::port;
use socket2::SockRef;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How soon a change of [`Way`] reaches a connection on which nothing moves.
const NAP: Duration = Duration::from_millis(20);

/// What is read at once.
const GULP: usize = 64 * 1024;

/// What a way that is held takes in, as buffers along a network would.
const HELD_MAX: usize = 16 * 1024 * 1024;

/// Bytes a second through a way that is sliced: each one is a packet.
const SLICED_RATE: u64 = 20_000;

/// A TCP port that leads to another. Dropping it closes the port; what is connected stays so.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

/// Who bytes are on their way to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From who has connected to what is behind the port.
    ToServer,
    /// Back.
    ToClient,
}

/// What becomes of the bytes in one direction; by default they go on as they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Way {
    /// They are taken and kept: whoever sends does not notice, whoever should receive gets nothing.
    pub held: bool,
    /// They are not read, so that the sender's socket fills up.
    pub unread: bool,
    /// Each byte is a segment of its own, 20,000 of them a second.
    pub sliced: bool,
    /// So much later than they came.
    pub latency: Duration,
    /// At most so many bytes a second.
    pub bytes_per_second: Option<u64>,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<String>,
    closed: AtomicBool,
    ways: Mutex<[Way; 2]>,
    connections: Mutex<BTreeMap<u64, Arc<Connection>>>,
    opened: AtomicU64,
}

#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: TcpStream,
    reset: AtomicBool,
}

impl Proxy {
    /// A port of its own that leads to `target`, `host:port`.
    ///
    /// # Panics
    ///
    /// When the port cannot be opened.
    #[must_use]
    #[track_caller]
    pub fn to(target: &str) -> Self {
        Self::at(port::free(), target)
    }

    /// The same with a port that [`port::free`] has given.
    #[track_caller]
    pub(crate) fn at(port: u16, target: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a port that is free");
        let shared = Arc::new(Shared {
            target: Mutex::new(target.to_owned()),
            closed: AtomicBool::new(false),
            ways: Mutex::default(),
            connections: Mutex::default(),
            opened: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.closed.load(Ordering::Acquire) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                // Without a server behind it the client's connection is closed.
                thread::spawn(move || shared.join(client));
            }
        });
        Self { port, shared }
    }

    /// Where it listens, `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Leads new connections elsewhere.
    pub fn lead_to(&self, target: &str) {
        target.clone_into(&mut lock(&self.shared.target));
    }

    /// What becomes of the bytes in one direction from now on, also on connections that there are.
    pub fn set(&self, direction: Direction, way: Way) {
        lock(&self.shared.ways)[direction as usize] = way;
    }

    /// The same for both directions.
    pub fn set_both(&self, way: Way) {
        *lock(&self.shared.ways) = [way; 2];
    }

    /// Lets everything through again, beginning with what was held.
    pub fn heal(&self) {
        self.set_both(Way::default());
    }

    /// Ends all connections with a reset to both sides; how many there were. What was on its way is lost.
    pub fn reset(&self) -> usize {
        let connections = std::mem::take(&mut *lock(&self.shared.connections));
        connections.values().for_each(|connection| connection.reset());
        connections.len()
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        lock(&self.shared.connections).len()
    }

    /// How many connections there have been.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.shared.opened.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl Shared {
    fn way(&self, direction: Direction) -> Way {
        lock(&self.ways)[direction as usize]
    }

    /// Carries both ways until both sides have ended.
    fn join(&self, client: TcpStream) -> io::Result<()> {
        // What swallows bytes swallows the first segment, too: the server hears of no connection. One that has
        // heard of it, and is not told more, cannot stop: it waits for the startup packet (PostgreSQL up to 16).
        let mute = |way: Way| way.held || way.unread;
        while mute(self.way(Direction::ToServer)) && !self.closed.load(Ordering::Acquire) {
            thread::sleep(NAP);
        }
        let target = lock(&self.target).clone();
        let server = TcpStream::connect(target)?;
        for socket in [&client, &server] {
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(NAP))?;
            socket.set_write_timeout(Some(NAP))?;
        }
        let connection = Arc::new(Connection { client, server, reset: AtomicBool::new(false) });
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        lock(&self.connections).insert(number, Arc::clone(&connection));
        thread::scope(|scope| {
            scope.spawn(|| self.carry(&connection, Direction::ToClient));
            self.carry(&connection, Direction::ToServer);
        });
        lock(&self.connections).remove(&number);
        Ok(())
    }

    /// Carries one way until it has ended. A way that failed takes the other with it; one that ended
    /// does not.
    fn carry(&self, connection: &Connection, direction: Direction) {
        let (from, to) = match direction {
            Direction::ToServer => (&connection.client, &connection.server),
            Direction::ToClient => (&connection.server, &connection.client),
        };
        let carried = self.copy(connection, direction, from, to);
        if connection.reset.load(Ordering::Acquire) {
            // An orderly end would come before the reset.
            return;
        }
        let _ = to.shutdown(if carried.is_ok() { Shutdown::Write } else { Shutdown::Both });
    }

    fn copy(
        &self,
        connection: &Connection,
        direction: Direction,
        mut from: &TcpStream,
        mut to: &TcpStream,
    ) -> io::Result<()> {
        let mut chunk = vec![0; GULP];
        let mut pending: VecDeque<u8> = VecDeque::new();
        let mut ended = false;
        let mut due = Instant::now();
        while !ended || !pending.is_empty() {
            if connection.reset.load(Ordering::Acquire) {
                return Err(ErrorKind::ConnectionReset.into());
            }
            let way = self.way(direction);
            let room = if way.held { HELD_MAX } else { GULP };
            if !ended && !way.unread && pending.len() < room && (way.held || pending.is_empty()) {
                match from.read(&mut chunk) {
                    Ok(0) => ended = true,
                    Ok(read) => {
                        pending.extend(&chunk[..read]);
                        due = due.max(Instant::now() + self.way(direction).latency);
                    }
                    Err(e) if is_timeout(&e) => {}
                    Err(e) => return Err(e),
                }
            } else if way.held || way.unread {
                thread::sleep(NAP);
            }
            // It may have changed while we waited for bytes.
            let way = self.way(direction);
            if pending.is_empty() || way.held {
                continue;
            }
            let now = Instant::now();
            if now < due {
                thread::sleep((due - now).min(NAP));
                continue;
            }
            let rate = match (way.bytes_per_second, way.sliced) {
                (rate, false) => rate,
                (rate, true) => Some(rate.unwrap_or(u64::MAX).min(SLICED_RATE)),
            };
            // Fifty portions a second.
            let portion = rate.map_or(GULP, |rate| (rate as usize / 50).clamp(1, GULP));
            let mut sent = 0;
            while sent < portion && !pending.is_empty() {
                let (front, _) = pending.as_slices();
                let length = if way.sliced { 1 } else { front.len().min(portion - sent) };
                match to.write(&front[..length]) {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        pending.drain(..written);
                        sent += written;
                    }
                    Err(e) if is_timeout(&e) => break,
                    Err(e) => return Err(e),
                }
            }
            if let Some(rate) = rate {
                thread::sleep(Duration::from_secs_f64(sent as f64 / rate as f64));
            }
        }
        Ok(())
    }
}

impl Connection {
    fn reset(&self) {
        for socket in [&self.client, &self.server] {
            // The close that follows, when both threads have let go, is then a reset.
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
        self.reset.store(true, Ordering::Release);
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{Direction, Proxy, Way, is_timeout};
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    /// For what must happen. Only a failure waits so long.
    const LIMIT: Duration = Duration::from_secs(20);

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

    /// A proxy and both ends of one connection through it.
    fn pair() -> (Proxy, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::to(&listener.local_addr().unwrap().to_string());
        let client = TcpStream::connect(proxy.address()).unwrap();
        let (server, _) = listener.accept().unwrap();
        for socket in [&client, &server] {
            socket.set_nodelay(true).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
        }
        (proxy, client, server)
    }

    fn receive(mut from: &TcpStream, length: usize) -> String {
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// Whether nothing comes for a while.
    fn is_silent(mut socket: &TcpStream) -> bool {
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let read = socket.read(&mut [0; 1]);
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        read.is_err_and(|e| is_timeout(&e))
    }

    #[test]
    fn the_address_stays_while_the_server_behind_it_changes() {
        let proxy = Proxy::to(&server("one"));
        assert_eq!(read(&proxy.address()), "one");
        proxy.lead_to(&server("two"));
        assert_eq!(read(&proxy.address()), "two");
        assert_eq!(proxy.opened(), 2);
    }

    #[test]
    fn what_is_held_one_way_arrives_when_it_is_healed_and_the_other_way_is_open() {
        let (proxy, mut client, mut server) = pair();
        proxy.set(Direction::ToServer, Way { held: true, ..Way::default() });
        client.write_all(b"late").unwrap();
        server.write_all(b"soon").unwrap();
        assert_eq!(receive(&client, 4), "soon");
        assert!(is_silent(&server));
        proxy.heal();
        assert_eq!(receive(&server, 4), "late");
    }

    #[test]
    fn an_end_behind_held_bytes_is_held_too() {
        let (proxy, mut client, server) = pair();
        proxy.set_both(Way { held: true, ..Way::default() });
        client.write_all(b"last words").unwrap();
        drop(client);
        assert!(is_silent(&server));
        proxy.heal();
        assert_eq!(receive(&server, 10), "last words");
        assert_eq!((&server).read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn where_nothing_is_read_the_sender_is_held_up_in_the_end() {
        let (proxy, mut client, server) = pair();
        proxy.set(Direction::ToServer, Way { unread: true, ..Way::default() });
        client.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let block = vec![b'x'; 1 << 20];
        let mut sent = 0;
        let error = loop {
            match client.write(&block) {
                Ok(written) => sent += written,
                Err(e) => break e,
            }
            assert!(sent < 1 << 28, "nothing holds it up");
        };
        assert!(is_timeout(&error), "{error}");
        proxy.heal();
        assert!(receive(&server, sent).bytes().all(|byte| byte == b'x'));
    }

    #[test]
    fn bytes_of_a_sliced_way_come_one_by_one_and_unchanged() {
        let (proxy, mut client, mut server) = pair();
        proxy.set(Direction::ToServer, Way { sliced: true, ..Way::default() });
        let text = "0123456789".repeat(20);
        client.write_all(text.as_bytes()).unwrap();
        let (mut got, mut reads) = (Vec::new(), 0);
        while got.len() < text.len() {
            let mut buffer = [0; 1000];
            let read = server.read(&mut buffer).unwrap();
            got.extend_from_slice(&buffer[..read]);
            reads += 1;
        }
        assert_eq!(got, text.as_bytes());
        assert!(reads > 1, "in one piece");
    }

    #[test]
    fn a_slow_way_takes_its_time() {
        let (proxy, mut client, server) = pair();
        let begun = Instant::now();
        proxy.set_both(Way { bytes_per_second: Some(10_000), ..Way::default() });
        client.write_all(&[b'x'; 2000]).unwrap();
        receive(&server, 2000);
        assert!(begun.elapsed() >= Duration::from_millis(100), "{:?}", begun.elapsed());

        proxy.set_both(Way { latency: Duration::from_millis(100), ..Way::default() });
        let begun = Instant::now();
        client.write_all(b"there").unwrap();
        receive(&server, 5);
        (&server).write_all(b"back").unwrap();
        receive(&client, 4);
        assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_reset_reaches_both_ends_as_one() {
        let (proxy, mut client, mut server) = pair();
        client.write_all(b"hello").unwrap();
        assert_eq!(receive(&server, 5), "hello");
        assert_eq!(proxy.reset(), 1);
        for socket in [&mut client, &mut server] {
            let error = socket.read(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        assert_eq!(proxy.connections(), 0);
    }
}
