//! What kind of error it is.

use core::fmt;

/// What kind of error it is, in five characters.
///
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState(pub [u8; 5]);

impl SqlState {
    /// The connection is gone, or never was.
    pub const CONNECTION_FAILURE: Self = Self(*b"08006");
    /// A message that the server could not read.
    pub const PROTOCOL_VIOLATION: Self = Self(*b"08P01");
    /// The server cannot do this, such as decode at the `wal_level` it has.
    pub const FEATURE_NOT_SUPPORTED: Self = Self(*b"0A000");
    /// An option has a value that it cannot have.
    pub const INVALID_PARAMETER_VALUE: Self = Self(*b"22023");
    /// Not of the server: it sent none, or not five characters.
    pub const UNKNOWN: Self = Self(*b"?????");
    /// The role may not log in this way.
    pub const INVALID_AUTHORIZATION: Self = Self(*b"28000");
    /// The password is wrong, or the role has none.
    pub const INVALID_PASSWORD: Self = Self(*b"28P01");
    /// There is no such database.
    pub const INVALID_CATALOG_NAME: Self = Self(*b"3D000");
    /// The command cannot be read: misspelt, or of a later version.
    pub const SYNTAX_ERROR: Self = Self(*b"42601");
    /// The role may not do this.
    pub const INSUFFICIENT_PRIVILEGE: Self = Self(*b"42501");
    /// There is no such slot, publication or other object.
    pub const UNDEFINED_OBJECT: Self = Self(*b"42704");
    /// There is one of that name already.
    pub const DUPLICATE_OBJECT: Self = Self(*b"42710");
    /// All connections are taken.
    pub const TOO_MANY_CONNECTIONS: Self = Self(*b"53300");
    /// A limit of the server's configuration is reached, such as the number of slots.
    pub const CONFIGURATION_LIMIT_EXCEEDED: Self = Self(*b"53400");
    /// The object is not in a state for this, such as a slot that has lost its log.
    pub const OBJECT_NOT_IN_PREREQUISITE_STATE: Self = Self(*b"55000");
    /// Another session uses the slot.
    pub const OBJECT_IN_USE: Self = Self(*b"55006");
    /// A lock was not to be had at once, or within `lock_timeout`.
    pub const LOCK_NOT_AVAILABLE: Self = Self(*b"55P03");
    /// The statement was cancelled, or took longer than `statement_timeout`.
    pub const QUERY_CANCELED: Self = Self(*b"57014");
    /// The server is stopping, or somebody ended this session.
    pub const ADMIN_SHUTDOWN: Self = Self(*b"57P01");
    /// Another process of the server has crashed.
    pub const CRASH_SHUTDOWN: Self = Self(*b"57P02");
    /// The server is starting, stopping or recovering.
    pub const CANNOT_CONNECT_NOW: Self = Self(*b"57P03");
    /// The session was idle for longer than `idle_session_timeout`.
    pub const IDLE_SESSION_TIMEOUT: Self = Self(*b"57P05");
    /// A file is gone, such as a segment of the log.
    pub const UNDEFINED_FILE: Self = Self(*b"58P01");
    /// The server found itself to be wrong.
    pub const INTERNAL_ERROR: Self = Self(*b"XX000");
    /// What the server has stored cannot be right.
    pub const DATA_CORRUPTED: Self = Self(*b"XX001");

    /// The five characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.0).unwrap_or("?????")
    }

    /// The first two, which name the [`class`].
    #[must_use]
    pub fn class(&self) -> &str {
        self.as_str().get(..2).unwrap_or("??")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlState({self})")
    }
}

/// The classes that a client decides by, as [`SqlState::class`] tells them.
pub mod class {
    /// The connection broke, or what came over it was not the protocol: connect again.
    pub const CONNECTION_EXCEPTION: &str = "08";
    /// The server cannot do it, in this version or with these settings.
    pub const FEATURE_NOT_SUPPORTED: &str = "0A";
    /// A value that cannot be.
    pub const DATA_EXCEPTION: &str = "22";
    /// A constraint forbids it.
    pub const INTEGRITY_CONSTRAINT_VIOLATION: &str = "23";
    /// Not in this state of the transaction.
    pub const INVALID_TRANSACTION_STATE: &str = "25";
    /// The log-in failed.
    pub const INVALID_AUTHORIZATION: &str = "28";
    /// There is no such database.
    pub const INVALID_CATALOG_NAME: &str = "3D";
    /// The transaction met another: run it again.
    pub const TRANSACTION_ROLLBACK: &str = "40";
    /// The command cannot be read, names what is not there, or what the role may not touch.
    pub const SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION: &str = "42";
    /// No memory, no disk, no free connection, no free slot.
    pub const INSUFFICIENT_RESOURCES: &str = "53";
    /// Too long or too complex for the server.
    pub const PROGRAM_LIMIT_EXCEEDED: &str = "54";
    /// What it is about is in use, or not in a state for it.
    pub const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55";
    /// The operator, or a time limit, ended it; or the server is not up yet.
    pub const OPERATOR_INTERVENTION: &str = "57";
    /// The operating system failed: a file, a disk.
    pub const SYSTEM_ERROR: &str = "58";
    /// The configuration files cannot be read.
    pub const CONFIG_FILE_ERROR: &str = "F0";
    /// The server found itself, or its data, to be wrong.
    pub const INTERNAL_ERROR: &str = "XX";
}
