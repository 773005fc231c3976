//! What kind of error it is.

use core::fmt;

/// What kind of error it is, in five characters.
///
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState(pub [u8; 5]);

impl SqlState {
    /// Not of the server: it sent none, or not five characters.
    pub const UNKNOWN: Self = Self(*b"?????");
    /// The role may not log in this way.
    pub const INVALID_AUTHORIZATION: Self = Self(*b"28000");
    /// The password is wrong, or the role has none.
    pub const INVALID_PASSWORD: Self = Self(*b"28P01");
    /// There is no such database.
    pub const INVALID_CATALOG_NAME: Self = Self(*b"3D000");
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
    /// The server is stopping, or somebody ended this session.
    pub const ADMIN_SHUTDOWN: Self = Self(*b"57P01");
    /// Another process of the server has crashed.
    pub const CRASH_SHUTDOWN: Self = Self(*b"57P02");
    /// The server is starting, stopping or recovering.
    pub const CANNOT_CONNECT_NOW: Self = Self(*b"57P03");
    /// A file is gone, such as a segment of the log.
    pub const UNDEFINED_FILE: Self = Self(*b"58P01");

    /// The five characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.0).unwrap_or("?????")
    }

    /// The first two, which name the class: `28` is a failed login, `57` the operator's doing.
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
