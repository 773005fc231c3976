//! A relay that was far behind when it began, until it has caught up. Pure.

use super::{Seen, Step, Unit};
use std::time::Duration;

/// Who is less behind, in bytes, has caught up before anybody has read what a bar says.
const BEHIND_MIN: u64 = 16 << 20;

/// Who has so little left to read, in bytes, and nothing that is older than this, has caught up: under load there is
/// always something on its way.
const UNREAD_MAX: u64 = 1 << 20;
const AGE_MAX: f64 = 1.0;

/// Where the relay stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stands {
    /// Its state, as health says it.
    pub(crate) state: &'static str,
    /// Bytes of log that are not confirmed, or that are left of what is to be published.
    pub(crate) behind: u64,
    /// Bytes of log that are not read.
    pub(crate) unread: u64,
    /// Age of the oldest fact that was read and is not published.
    pub(crate) age: f64,
    /// Facts that were published.
    pub(crate) published: u64,
}

/// Whether a bar is shown, and what it says.
#[derive(Debug, Default)]
pub(crate) struct CatchUp {
    /// How far it was behind at most.
    from: Option<u64>,
}

/// What was caught up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CaughtUp {
    pub(crate) bytes: u64,
    pub(crate) facts: u64,
}

impl CatchUp {
    /// What to show of a relay that stands there; and once, that it has caught up.
    pub(crate) fn look(&mut self, stands: &Stands) -> (Step, Option<CaughtUp>) {
        let &Stands { state, behind, unread, age, published } = stands;
        let Some(from) = &mut self.from else {
            return match state {
                "streaming" | "stalled" | "halted" if behind >= BEHIND_MIN => {
                    self.from = Some(behind);
                    (Step::Show(seen(stands, behind)), None)
                }
                "streaming" => (Step::End, None),
                // It is not known yet how far behind it is.
                _ => (Step::Hide, None),
            };
        };
        let is_near = behind == 0 || (unread < UNREAD_MAX && age < AGE_MAX);
        if state == "streaming" && is_near {
            let caught_up = CaughtUp { bytes: from.saturating_sub(behind), facts: published };
            return (Step::End, Some(caught_up));
        }
        if state == "failed" {
            return (Step::End, None);
        }
        *from = behind.max(*from);
        (Step::Show(seen(stands, *from)), None)
    }
}

fn seen(stands: &Stands, from: u64) -> Seen {
    let what = match stands.state {
        "streaming" => "catching up".to_owned(),
        state => state.replace('_', " "),
    };
    let done = from.saturating_sub(stands.behind);
    Seen { what, done, of: from, unit: Unit::Bytes, facts: stands.published }
}

/// How long it took, for people.
pub(crate) fn shortly(took: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(
        u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(state: &'static str, behind: u64) -> Stands {
        Stands { state, behind, unread: behind, age: 30.0, published: 7 }
    }

    fn shown(step: Step) -> (String, u64, u64) {
        let Step::Show(seen) = step else { panic!("{step:?}") };
        (seen.what, seen.done, seen.of)
    }

    #[test]
    fn who_is_hardly_behind_gets_no_bar_also_later() {
        let mut catch_up = CatchUp::default();
        assert_eq!(catch_up.look(&at("starting", 0)), (Step::Hide, None));
        assert_eq!(catch_up.look(&at("waiting_for_slot", 99 * MIB)), (Step::Hide, None));
        assert_eq!(catch_up.look(&at("streaming", 15 * MIB)), (Step::End, None));
    }

    #[test]
    fn who_is_far_behind_gets_one_until_the_rest_is_young() {
        let mut catch_up = CatchUp::default();
        let show = |catch_up: &mut CatchUp, stands: &Stands| {
            let (step, caught_up) = catch_up.look(stands);
            assert_eq!(caught_up, None);
            shown(step)
        };
        let words = |words: &str, done, of| (words.to_owned(), done * MIB, of * MIB);
        assert_eq!(show(&mut catch_up, &at("streaming", 64 * MIB)), words("catching up", 0, 64));
        assert_eq!(show(&mut catch_up, &at("streaming", 48 * MIB)), words("catching up", 16, 64));
        assert_eq!(show(&mut catch_up, &at("stalled", 48 * MIB)), words("stalled", 16, 64));
        assert_eq!(
            show(&mut catch_up, &at("waiting_for_slot", 0)),
            words("waiting for slot", 64, 64)
        );
        // More is written than published.
        assert_eq!(show(&mut catch_up, &at("streaming", 80 * MIB)), words("catching up", 0, 80));
        // All is read, but waits; or is young, but not all there is.
        let waits = Stands { unread: 0, ..at("streaming", 8 * MIB) };
        assert_eq!(show(&mut catch_up, &waits), words("catching up", 72, 80));
        let unread = Stands { age: 0.0, ..at("streaming", 8 * MIB) };
        assert_eq!(show(&mut catch_up, &unread), words("catching up", 72, 80));
        let near = Stands { age: 0.3, ..waits };
        let caught_up = CaughtUp { bytes: 72 * MIB, facts: 7 };
        assert_eq!(catch_up.look(&near), (Step::End, Some(caught_up)));
    }

    #[test]
    fn who_is_confirmed_to_the_end_has_caught_up_and_who_has_failed_has_not() {
        for (state, told) in [("streaming", true), ("failed", false)] {
            let mut catch_up = CatchUp::default();
            catch_up.look(&at("streaming", 64 * MIB));
            let (step, caught_up) = catch_up.look(&at(state, 0));
            assert_eq!((step, caught_up.is_some()), (Step::End, told));
        }
    }
}
