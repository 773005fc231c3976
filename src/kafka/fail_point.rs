//! Where a relay that is built for tests kills itself, in the life of a transaction.
//!
//! Without the feature `seeded-bugs` there is no way to choose a place: [`FailPoint`] is empty, and passing it does
//! nothing.

/// What is asked of a broker in the course of transactions, in the order in which it comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// InitProducerId of a relay that begins.
    Initialising,
    /// OffsetFetch: at the start, and after a transaction that was given up.
    Reading,
    AddingPartitions,
    Producing,
    AddingOffsets,
    /// TxnOffsetCommit.
    Positioning,
    /// EndTxn to commit.
    Ending,
    /// EndTxn to abort.
    Aborting,
    /// InitProducerId of a relay that goes on.
    NextEpoch,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// No byte has left.
    Asking,
    /// All bytes have left, and nothing was answered.
    Sent,
    /// The answer is here, and the engine has not heard of it.
    Answered,
    /// Of what ends a transaction: the engine has heard of it, and PostgreSQL has not.
    Taken,
}

/// The place where the process kills itself: none, unless `OWLPOST_FAIL_POINT` names one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FailPoint {
    #[cfg(feature = "seeded-bugs")]
    armed: Option<armed::Armed>,
}

#[cfg(not(feature = "seeded-bugs"))]
impl FailPoint {
    /// None in this build.
    pub(crate) const fn from_environment() -> Self {
        Self {}
    }

    /// Nothing.
    pub(super) fn pass(&self, _: Option<Step>, _: Moment) {}
}

impl FailPoint {
    /// The engine has taken a transaction for committed.
    pub(crate) fn committed(&self) {
        self.pass(Some(Step::Ending), Moment::Taken);
    }
}

#[cfg(feature = "seeded-bugs")]
mod armed {
    use super::{FailPoint, Moment, Step};
    use rustix::process::{Signal, getpid, kill_process};
    use std::io::Write as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Debug, Clone)]
    pub(super) struct Armed {
        step: Step,
        moment: Moment,
        /// How often the place is passed until then, this time included.
        passes: Arc<AtomicU32>,
    }

    /// The same place of the same process.
    impl PartialEq for Armed {
        fn eq(&self, other: &Self) -> bool {
            Arc::ptr_eq(&self.passes, &other.passes)
        }
    }

    impl Eq for Armed {}

    impl Step {
        const ALL: [(Self, &'static str); 9] = [
            (Self::Initialising, "initialising"),
            (Self::Reading, "reading"),
            (Self::AddingPartitions, "adding-partitions"),
            (Self::Producing, "producing"),
            (Self::AddingOffsets, "adding-offsets"),
            (Self::Positioning, "positioning"),
            (Self::Ending, "ending"),
            (Self::Aborting, "aborting"),
            (Self::NextEpoch, "next-epoch"),
        ];
    }

    impl Moment {
        const ALL: [(Self, &'static str); 4] = [
            (Self::Asking, "asking"),
            (Self::Sent, "sent"),
            (Self::Answered, "answered"),
            (Self::Taken, "taken"),
        ];
    }

    impl Armed {
        /// `ending:sent:3`: at the third EndTxn that has left and is not answered.
        pub(super) fn parse(text: &str) -> Option<Self> {
            let mut words = text.split(':');
            let (step, moment, passes) = (words.next()?, words.next()?, words.next()?);
            let (step, _) = Step::ALL.into_iter().find(|(_, name)| *name == step)?;
            let (moment, _) = Moment::ALL.into_iter().find(|(_, name)| *name == moment)?;
            let passes = passes.parse().ok().filter(|passes| *passes > 0)?;
            let passes = Arc::new(AtomicU32::new(passes));
            words.next().is_none().then_some(Self { step, moment, passes })
        }

        /// True when the time has come.
        pub(super) fn passed(&self, step: Step, moment: Moment) -> bool {
            (step, moment) == (self.step, self.moment)
                && self.passes.fetch_sub(1, Ordering::Relaxed) == 1
        }
    }

    impl FailPoint {
        /// The one that `OWLPOST_FAIL_POINT` names.
        pub(crate) fn from_environment() -> Self {
            let Ok(text) = std::env::var("OWLPOST_FAIL_POINT") else { return Self::default() };
            let armed = Armed::parse(&text);
            match &armed {
                Some(_) => tracing::error!(fail_point = text, "this relay will kill itself"),
                None => tracing::error!(fail_point = text, "there is no such fail-point"),
            }
            Self { armed }
        }

        /// Kills the process if this is the place, and the time has come.
        pub(in crate::kafka) fn pass(&self, step: Option<Step>, moment: Moment) {
            if let (Some(armed), Some(step)) = (&self.armed, step)
                && armed.passed(step, moment)
            {
                // Not by way of the log, which a thread of its own writes.
                let _ = writeln!(std::io::stderr(), "killed at {step:?} {moment:?}");
                while kill_process(getpid(), Signal::KILL).is_ok() {}
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_place_is_named_with_how_often_it_is_passed() {
            let armed = Armed::parse("ending:sent:2").unwrap();
            assert!(!armed.passed(Step::Ending, Moment::Sent));
            assert!(!armed.passed(Step::Ending, Moment::Answered));
            assert!(!armed.passed(Step::Aborting, Moment::Sent));
            assert!(armed.passed(Step::Ending, Moment::Sent));
            assert!(!armed.passed(Step::Ending, Moment::Sent), "once");
            for nonsense in
                ["", "ending", "ending:sent", "ending:sent:0", "ending:sent:1:1", "x:sent:1"]
            {
                assert!(Armed::parse(nonsense).is_none(), "{nonsense}");
            }
        }
    }
}

#[cfg(all(test, not(feature = "seeded-bugs")))]
mod tests {
    use super::FailPoint;

    #[test]
    fn a_build_for_users_has_no_fail_points() {
        assert_eq!(size_of::<FailPoint>(), 0);
    }
}
