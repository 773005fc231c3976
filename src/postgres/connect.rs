//! From the configuration to a connection that is logged in: which host, which address, with TLS or without.

use super::connection::{Connection, NO_CLOCK};
use super::dial::{Stream, addresses, dial, dial_socket};
use super::failure::Failure;
use super::password::Passwords;
use super::socket::Socket;
use super::tls::{Tls, TlsFailure};
use crate::config::{Host, PostgresConfig, SslConfig, SslMode, SslNegotiation, TargetSessionAttrs};
use factlib_protocol::auth::channel_binding::Channel;
use factlib_protocol::feedback::FeedbackPolicy;
use factlib_protocol::handshake::{Credentials, Startup};
use factlib_protocol::session::{Event, Session, SessionError};
use factlib_protocol::tls::{ANSWER_LEN, Answer};
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};

/// How an attempt begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// In clear text.
    Clear,
    /// Under TLS. Where the server has none it goes on in clear text, if that may be.
    Tls { or_clear: bool },
}

impl Attempt {
    /// What comes first.
    fn first(mode: SslMode) -> Self {
        match mode {
            SslMode::Disable | SslMode::Allow => Self::Clear,
            SslMode::Prefer => Self::Tls { or_clear: true },
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
                Self::Tls { or_clear: false }
            }
        }
    }

    /// What comes after an attempt that failed, on a new socket.
    ///
    /// libpq tries again after any error of a log-in. Of those only what `pg_hba.conf` decides can be
    /// different; a server that is full or starting is not asked twice.
    fn second(mode: SslMode, under_tls: bool, failure: &Failure) -> Option<Self> {
        match (mode, under_tls) {
            (SslMode::Allow, false) if failure.is_refused_log_in() => {
                Some(Self::Tls { or_clear: false })
            }
            (SslMode::Prefer, true) => {
                let may_help = match failure {
                    Failure::Tls { failure, .. } => failure.is_of_the_server(),
                    Failure::Alert(_) => true,
                    failure => failure.is_refused_log_in(),
                };
                may_help.then_some(Self::Clear)
            }
            _ => None,
        }
    }
}

/// A failure, and whether it happened under TLS, or on the way to it.
struct Failed {
    failure: Failure,
    under_tls: bool,
}

impl Connection {
    /// Connects to the first host that lets us in as `config` says, for logical replication.
    ///
    /// Names are looked up, and passwords and certificates read, every time.
    ///
    /// # Errors
    ///
    /// The failure at the last host tried. A refused password is not tried at the next host: it
    /// would be the same, as libpq reasons.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the socket, and ends a command that is asked for the password.
    pub async fn connect(config: &PostgresConfig) -> Result<Self, Failure> {
        Self::connect_as(config, true).await
    }

    /// The same for an ordinary session, which takes none of the server's walsenders and needs no REPLICATION.
    pub(super) async fn connect_ordinary(config: &PostgresConfig) -> Result<Self, Failure> {
        Self::connect_as(config, false).await
    }

    /// The same for whoever only asks: an ordinary session, and where there is no room for one a walsender, which has
    /// places of its own.
    pub(super) async fn connect_to_ask(config: &PostgresConfig) -> Result<Self, Failure> {
        let ordinary = Self::connect_ordinary(config).await;
        match ordinary {
            Err(failure) if failure.is_for_want_of_room() => {
                Self::connect(config).await.map_err(|_| failure)
            }
            ordinary => ordinary,
        }
    }

    async fn connect_as(config: &PostgresConfig, replication: bool) -> Result<Self, Failure> {
        let passwords = Passwords::read(&config.password).await?;
        let mut last = Failure::Closed;
        for host in &config.hosts {
            match Self::connect_to(host, config, &passwords, replication).await {
                Ok(connection) => return Ok(connection),
                Err(failure) => last = failure,
            }
            if last.is_the_same_everywhere() {
                break;
            }
        }
        let may_be_renewed = config.password.may_change() && passwords.are_any();
        match last.is_refused_log_in() && may_be_renewed {
            true => Err(Failure::Renewable(Box::new(last))),
            false => Err(last),
        }
    }

    /// Tries the addresses of a host until one answers. The first has what the look-up leaves of
    /// `connect_timeout`, each other all of it.
    async fn connect_to(
        host: &Host,
        config: &PostgresConfig,
        passwords: &Passwords,
        replication: bool,
    ) -> Result<Self, Failure> {
        let password = passwords.of(host, config);
        let login = Login { host, config, password: password.as_deref(), replication };
        let deadline = || config.connect_timeout.map(|limit| Instant::now() + limit);
        let first = deadline();
        if let Host::Unix { .. } = host {
            // Never TLS: nobody can listen there.
            let unix = async { login.in_clear(Stream::Clear(dial_socket(host).await?)).await };
            return by(first, host, unix).await;
        }
        let found = by(first, host, async { Ok(addresses(host).await?) }).await?;
        let mut last = Failure::Dial(format!("the name of {host} has no address"));
        for (index, address) in found.into_iter().enumerate() {
            let deadline = if index == 0 { first } else { deadline() };
            match by(deadline, host, login.at(address)).await {
                Ok(connection) => return Ok(connection),
                Err(failure) if failure.is_of_the_address() => last = failure,
                Err(failure) => return Err(failure),
            }
        }
        Err(last)
    }
}

/// Gives up at the deadline.
async fn by<T>(
    deadline: Option<Instant>,
    host: &Host,
    attempt: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match deadline {
        Some(deadline) => timeout_at(deadline, attempt)
            .await
            .unwrap_or_else(|_| Err(Failure::TimedOut { host: host.to_string() })),
        None => attempt.await,
    }
}

/// Who logs in, and where.
struct Login<'a> {
    host: &'a Host,
    config: &'a PostgresConfig,
    password: Option<&'a [u8]>,
    /// To a walsender.
    replication: bool,
}

impl Login<'_> {
    fn ssl(&self) -> &SslConfig {
        &self.config.ssl
    }

    fn tls_failure(&self, failure: TlsFailure) -> Failure {
        Failure::Tls { host: self.host.to_string(), failure }
    }

    /// At one address, with TLS and without in the order of `sslmode`.
    async fn at(&self, address: SocketAddr) -> Result<Connection, Failure> {
        let mode = self.ssl().mode;
        let Failed { failure: first, under_tls } =
            match self.attempt(Attempt::first(mode), address).await {
                Ok(connection) => return Ok(connection),
                Err(failed) => failed,
            };
        let Some(attempt) = Attempt::second(mode, under_tls, &first) else { return Err(first) };
        match self.attempt(attempt, address).await {
            Ok(connection) => {
                if under_tls {
                    tracing::warn!(
                        host = %self.host,
                        "the connection is not encrypted, because it is refused with TLS: {first}"
                    );
                }
                Ok(connection)
            }
            Err(Failed { failure: second, .. }) if second.to_string() == first.to_string() => {
                Err(first)
            }
            Err(Failed { failure: second, .. }) => {
                let (tls, clear) = if under_tls { (first, second) } else { (second, first) };
                Err(Failure::Neither { tls: Box::new(tls), clear: Box::new(clear) })
            }
        }
    }

    async fn attempt(&self, attempt: Attempt, address: SocketAddr) -> Result<Connection, Failed> {
        let clear = |failure| Failed { failure, under_tls: false };
        let tls = |failure| Failed { failure, under_tls: true };
        let mut socket =
            dial(self.host, address, self.config).await.map_err(|e| clear(e.into()))?;
        let Attempt::Tls { or_clear } = attempt else {
            return self.in_clear(Stream::Clear(socket)).await.map_err(clear);
        };
        let mut session = Session::new(0, FeedbackPolicy::default());
        if self.ssl().negotiation == SslNegotiation::Postgres {
            match self.ask_for_tls(&mut socket, &mut session).await.map_err(tls)? {
                Answer::Tls => {}
                Answer::Plaintext if or_clear => {
                    let connection = Connection::new(Stream::Clear(socket), session);
                    return self.log_in(connection, Channel::Plain).await.map_err(clear);
                }
                Answer::Plaintext => return Err(tls(self.tls_failure(TlsFailure::NotThere))),
            }
        }
        self.encrypt(socket, session).await.map_err(tls)
    }

    async fn ask_for_tls(
        &self,
        socket: &mut Socket,
        session: &mut Session<Duration>,
    ) -> Result<Answer, Failure> {
        session.request_tls()?;
        socket.write_all_buf(session.send_buffer()).await?;
        // No byte more: what stands behind the answer was not sent under a key.
        let mut answer = [0; ANSWER_LEN];
        socket.read_exact(&mut answer).await?;
        session.receive_buffer().extend_from_slice(&answer);
        match session.poll(NO_CLOCK) {
            Ok(Some(Event::TlsAnswered(answer))) => Ok(answer),
            Ok(_) => Err(Failure::Answer { command: "the request for TLS" }),
            Err(SessionError::Tls(error)) => Err(self.tls_failure(TlsFailure::Negotiation(error))),
            Err(error) => Err(error.into()),
        }
    }

    async fn encrypt(
        &self,
        socket: Socket,
        session: Session<Duration>,
    ) -> Result<Connection, Failure> {
        let of_tls = |failure| self.tls_failure(failure);
        let tls = Tls::load(self.host.name(), self.ssl()).await.map_err(of_tls)?;
        let encrypted = tls.encrypt(socket).await.map_err(of_tls)?;
        let connection = Connection::new(Stream::Tls(Box::new(encrypted.stream)), session);
        let server_end_point = encrypted.server_end_point.as_deref();
        self.log_in(connection, Channel::Tls { server_end_point }).await
    }

    async fn in_clear(&self, stream: Stream) -> Result<Connection, Failure> {
        let session = Session::new(0, FeedbackPolicy::default());
        self.log_in(Connection::new(stream, session), Channel::Plain).await
    }

    async fn log_in(
        &self,
        mut connection: Connection,
        channel: Channel<'_>,
    ) -> Result<Connection, Failure> {
        let config = self.config;
        let mut parameters = Vec::with_capacity(4);
        if self.replication {
            parameters.push(("replication", "database"));
        }
        parameters.push(("application_name", config.application_name.as_str()));
        parameters.push(("client_encoding", "UTF8"));
        if let Some(options) = &config.options {
            parameters.push(("options", options));
        }
        let is_tls = matches!(channel, Channel::Tls { .. });
        let credentials = Credentials {
            password: self.password,
            allow: match is_tls && self.ssl().mode == SslMode::VerifyFull {
                true => config.auth_verified,
                false => config.auth,
            },
            channel_binding: config.channel_binding,
            channel,
        };
        let startup = Startup {
            user: &config.user,
            database: Some(&config.database),
            params: &parameters,
            ..Startup::default()
        };
        connection.session.log_in(startup, credentials, nonce()?)?;
        connection.until(|event| matches!(event, Event::LoggedIn).then_some(())).await?;
        let about = connection.session.about();
        tracing::debug!(
            host = %self.host,
            tls = is_tls,
            channel_bound = about.channel_bound,
            "logged in to PostgreSQL"
        );
        // Servers from 14 on report both at log-in.
        let is_on = |name| about.parameter(name) == Some("on");
        let standby = is_on("in_hot_standby");
        let will_do = match config.target_session_attrs {
            TargetSessionAttrs::Any => true,
            TargetSessionAttrs::Primary => !standby,
            TargetSessionAttrs::ReadWrite => !standby && !is_on("default_transaction_read_only"),
        };
        match will_do {
            true => Ok(connection),
            false => Err(Failure::Unwanted { host: self.host.to_string(), standby }),
        }
    }
}

/// 18 random bytes in base64, as libpq.
fn nonce() -> Result<String, Failure> {
    use base64::Engine as _;
    let mut bytes = [0_u8; 18];
    getrandom::fill(&mut bytes).map_err(|error| Failure::Random(error.to_string()))?;
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use factlib_protocol::backend::{ServerError, SqlState};
    use factlib_protocol::handshake::{HandshakeError, Unbound};
    use factlib_protocol::tls::TlsError;

    const MODES: [SslMode; 6] = [
        SslMode::Disable,
        SslMode::Allow,
        SslMode::Prefer,
        SslMode::Require,
        SslMode::VerifyCa,
        SslMode::VerifyFull,
    ];

    fn server(code: &[u8; 5]) -> Failure {
        let error = ServerError {
            severity: "FATAL".to_owned(),
            code: SqlState(*code),
            message: "no".to_owned(),
            detail: None,
            hint: None,
        };
        Failure::Login(HandshakeError::Server(error))
    }

    fn tls(failure: TlsFailure) -> Failure {
        Failure::Tls { host: "db:5432".to_owned(), failure }
    }

    /// The modes that try once more, and how.
    fn second(under_tls: bool, failure: &Failure) -> Vec<(SslMode, Attempt)> {
        let second = |mode| Some((mode, Attempt::second(mode, under_tls, failure)?));
        MODES.into_iter().filter_map(second).collect()
    }

    #[test]
    fn only_prefer_goes_on_in_clear_text_where_the_server_has_no_tls() {
        let first = MODES.map(Attempt::first);
        let (clear, must) = (Attempt::Clear, Attempt::Tls { or_clear: false });
        assert_eq!(first, [clear, clear, Attempt::Tls { or_clear: true }, must, must, must]);
    }

    #[test]
    fn what_pg_hba_conf_decides_is_tried_the_other_way() {
        for code in [b"28000", b"28P01"] {
            assert_eq!(second(true, &server(code)), [(SslMode::Prefer, Attempt::Clear)]);
            let tls = Attempt::Tls { or_clear: false };
            assert_eq!(second(false, &server(code)), [(SslMode::Allow, tls)]);
        }
    }

    #[test]
    fn a_server_that_cannot_do_tls_with_us_is_tried_in_clear_text_only_by_prefer() {
        for failure in [
            TlsFailure::Handshake("expired".to_owned()),
            TlsFailure::Negotiation(TlsError::Refused),
            TlsFailure::Broken { source: std::io::ErrorKind::UnexpectedEof.into(), direct: false },
        ] {
            assert_eq!(second(true, &tls(failure)), [(SslMode::Prefer, Attempt::Clear)]);
        }
    }

    #[test]
    fn nothing_else_is_tried_twice() {
        let file = TlsFailure::File {
            keyword: "sslkey",
            file: "owl.key".to_owned(),
            cause: "others can read it".to_owned(),
        };
        for failure in [
            server(b"57P03"),
            server(b"53300"),
            Failure::Login(HandshakeError::Unbound(Unbound::NoTls)),
            Failure::Closed,
            Failure::TimedOut { host: "db:5432".to_owned() },
            tls(file),
            tls(TlsFailure::Name("a b".to_owned())),
            tls(TlsFailure::Negotiation(TlsError::Answer(b'H'))),
            tls(TlsFailure::Negotiation(TlsError::Unencrypted)),
            tls(TlsFailure::NotAsked),
        ] {
            assert_eq!(second(true, &failure), [], "{failure}");
            assert_eq!(second(false, &failure), [], "{failure}");
        }
    }
}
