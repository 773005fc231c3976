//! Deliberate defects. A test that stays green with one of them is no evidence.
//!
//! Without the feature `seeded-bugs` there is no way to choose one: [`Seeded::bug`] is a constant.

/// A defect that the tests must notice, by what the relay does, without knowing its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeededBug {
    /// Confirms up to the newest settled batch instead of before the oldest unsettled one.
    ConfirmNewest,
    /// Confirms `WALStart` plus the length of the data, as for physical replication.
    WalStartPlusLength,
    /// Confirms a transaction when its Commit is read, settled or not.
    ConfirmOnRead,
    /// Confirms a transaction whose Commit was not read yet, once what was read of it is settled.
    ConfirmBeforeCommit,
    /// Takes a keepalive's `walEnd` for confirmed while facts before it are in flight.
    KeepaliveInFlight,
    /// Takes a batch for stored when the broker says that it could not store it just now.
    DropOnError,
    /// Gives a batch that is sent again the next sequence instead of its own.
    NewSequenceOnRetry,
    /// Takes a throttled answer for a failure.
    ResendThrottled,
    /// Uses new partitions of a topic at once.
    RekeyOnGrowth,
    /// Counts a dead letter as settled when it is given to the producer.
    SettleDeadLetterEarly,
    /// Reads what a partition has already before Kafka has acknowledged anything behind it.
    TrustVisible,
    /// Takes everything up to the last fact that a partition has for stored there.
    SkipUpToLast,
    /// After a failover asks for what is behind the old timeline's position.
    OldLsnAfterFailover,
    /// Tells the server nothing unless asked.
    NoStatusTimer,
    /// Leaves the socket unread for as long as Kafka takes nothing.
    NoHangUp,
    /// Commits its position in a transaction of which the coordinator has not said that the group is in it.
    PositionBeforeAddOffsets,
    /// Commits a transaction although a batch of it was not stored.
    CommitWithFailedBatch,
    /// Begins where the slot stands instead of behind the position in Kafka.
    ResumeFromSlot,
    /// Reads the position while a transaction of the process before may still be committed.
    NoAbortOnRestart,
    /// Makes a slot where there was one.
    RecreateSlot,
    /// Has the server stream transactions before they are committed.
    StreamingOn,
}

impl SeededBug {
    /// Each of them.
    pub const ALL: [Self; 21] = [
        Self::ConfirmNewest,
        Self::WalStartPlusLength,
        Self::ConfirmOnRead,
        Self::ConfirmBeforeCommit,
        Self::KeepaliveInFlight,
        Self::DropOnError,
        Self::NewSequenceOnRetry,
        Self::ResendThrottled,
        Self::RekeyOnGrowth,
        Self::SettleDeadLetterEarly,
        Self::TrustVisible,
        Self::SkipUpToLast,
        Self::OldLsnAfterFailover,
        Self::NoStatusTimer,
        Self::NoHangUp,
        Self::PositionBeforeAddOffsets,
        Self::CommitWithFailedBatch,
        Self::ResumeFromSlot,
        Self::NoAbortOnRestart,
        Self::RecreateSlot,
        Self::StreamingOn,
    ];

    /// Its name, as `OWLPOST_SEEDED_BUG` gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConfirmNewest => "confirm-newest",
            Self::WalStartPlusLength => "wal-start-plus-length",
            Self::ConfirmOnRead => "confirm-on-read",
            Self::ConfirmBeforeCommit => "confirm-before-commit",
            Self::KeepaliveInFlight => "keepalive-in-flight",
            Self::DropOnError => "drop-on-error",
            Self::NewSequenceOnRetry => "new-sequence-on-retry",
            Self::ResendThrottled => "resend-throttled",
            Self::RekeyOnGrowth => "rekey-on-growth",
            Self::SettleDeadLetterEarly => "settle-dead-letter-early",
            Self::TrustVisible => "trust-visible",
            Self::SkipUpToLast => "skip-up-to-last",
            Self::OldLsnAfterFailover => "old-lsn-after-failover",
            Self::NoStatusTimer => "no-status-timer",
            Self::NoHangUp => "no-hang-up",
            Self::PositionBeforeAddOffsets => "position-before-add-offsets",
            Self::CommitWithFailedBatch => "commit-with-failed-batch",
            Self::ResumeFromSlot => "resume-from-slot",
            Self::NoAbortOnRestart => "no-abort-on-restart",
            Self::RecreateSlot => "recreate-slot",
            Self::StreamingOn => "streaming-on",
        }
    }

    /// By its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|bug| bug.name() == name)
    }
}

/// Which defect a relay has, if any.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seeded {
    #[cfg(feature = "seeded-bugs")]
    bug: Option<SeededBug>,
}

impl Seeded {
    /// With this defect.
    #[cfg(feature = "seeded-bugs")]
    pub const fn with(bug: SeededBug) -> Self {
        Self { bug: Some(bug) }
    }

    /// The one that `OWLPOST_SEEDED_BUG` names.
    #[cfg(feature = "seeded-bugs")]
    pub fn from_environment() -> Self {
        let name = std::env::var("OWLPOST_SEEDED_BUG").unwrap_or_default();
        Self { bug: SeededBug::from_name(&name) }
    }

    /// The one that `OWLPOST_SEEDED_BUG` names; none in this build.
    #[cfg(not(feature = "seeded-bugs"))]
    pub const fn from_environment() -> Self {
        Self {}
    }

    /// The defect.
    #[cfg(feature = "seeded-bugs")]
    pub const fn bug(self) -> Option<SeededBug> {
        self.bug
    }

    /// None.
    #[cfg(not(feature = "seeded-bugs"))]
    pub const fn bug(self) -> Option<SeededBug> {
        None
    }

    /// True if the relay has this defect.
    pub fn is(self, bug: SeededBug) -> bool {
        self.bug() == Some(bug)
    }
}
