//! What must hold, whatever is done.

macro_rules! invariants {
    ($( $(#[doc = $doc:literal])+ $name:ident = $title:literal; )*) => {
        /// What must hold.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Invariant { $( $(#[doc = $doc])+ $name, )* }

        /// All of them.
        pub(crate) const ALL: &[Invariant] = &[$(Invariant::$name,)*];

        impl Invariant {
            /// Its number and name.
            pub(crate) fn title(self) -> &'static str {
                match self { $( Self::$name => $title, )* }
            }
        }
    };
}

invariants! {
    /// Every fact that was committed is in Kafka, once everything is healed.
    Loss = "I1 no loss";
    /// Nothing is in Kafka that was not committed, or emitted outside of a transaction.
    Phantom = "I2 no phantom";
    /// In a partition first occurrences rise in `factlib_position`; an aggregate's are 1, 2, 3, …
    Order = "I3 order";
    /// Repeats are equal to the byte, and there are none while the relay's process lives.
    Repeats = "I4 honest repeats";
    /// After SIGKILL and before a restart, whatever is confirmed is in Kafka.
    Acknowledged = "I5 confirmed is stored";
    /// Some time after the last fault everything is there and confirmed.
    Progress = "I6 progress";
    /// The write-ahead log that is kept follows.
    Retained = "I7 bounded WAL";
    /// PostgreSQL stops, checkpoints, and gives the slot to somebody else.
    Citizen = "I8 good citizen";
    /// What is beyond repair ends the relay with its exit code; nothing else does.
    Loud = "I9 fails loud";
    /// Where Java would put it.
    Routing = "I10 routing";
    /// Memory and sockets have a bound.
    Resources = "I11 resources";
    /// Key, value and headers are those of the fact.
    Exact = "I12 exactness";
    /// One relay streams; who waits for the slot publishes nothing.
    Single = "I13 single active";
    /// `owlpost audit` finds nothing but repeats.
    Audited = "I14 audit agrees";
}
