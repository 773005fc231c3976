//! What must hold, whatever is done.

use crate::arguments::Delivery;

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
    /// `owlpost audit` finds nothing but repeats; with exactly-once delivery nothing at all.
    Audited = "I14 audit agrees";
    /// Consumers of committed records see nothing a second time, whatever was done.
    Once = "I15 each once";
    /// Behind a Kafka transaction's marker, a transaction of PostgreSQL is complete in that partition; and in all of them,
    /// or in none, once no transaction is open. One that is too large says so in each part but the first.
    Whole = "I16 whole transactions";
    /// A relay whose transactional id another has taken notices, and ends or stands by.
    Fenced = "I17 fenced";
    /// Kafka's own consumer and librdkafka's see the same records at the same places.
    Agreed = "I18 consumers agree";
}

/// What is promised of Kafka transactions.
const OF_TRANSACTIONS: [Invariant; 4] =
    [Invariant::Once, Invariant::Whole, Invariant::Fenced, Invariant::Agreed];

impl Invariant {
    /// What must hold of relays that deliver so.
    pub(crate) fn of(delivery: Delivery) -> impl Iterator<Item = Self> {
        let all = ALL.iter().copied();
        all.filter(move |it| delivery.is_exactly_once() || !OF_TRANSACTIONS.contains(it))
    }
}
