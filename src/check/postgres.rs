//! What follows from what was found on the PostgreSQL side. Pure.

#[cfg(test)]
mod tests;

use super::health::Running;
use super::report::{Check, Verdict};
use crate::config::{Config, SslMode};
use crate::postgres::functions::{VERSION, is_older};
use crate::postgres::survey::{HostState, OpenTransaction, SlotState, Survey, Transport};
use crate::postgres::{
    Ask, Names, Plan, computed, dropped_words, not_logical, outdated, plan_of_objects, synchronous,
    too_old, without_failover,
};
use crate::relay::gone::Gone;
use crate::size;
use std::time::Duration;

/// A transaction that is open for so long holds back write-ahead log, and whoever makes a slot.
const OPEN_LONG: Duration = Duration::from_secs(300);

/// A limit on the log that a slot may hold back is reached within minutes of a busy server below this.
const WAL_KEEP_SMALL: u64 = 1024 * 1024 * 1024;

/// Less room than this until the slot is lost is worth a warning.
const SAFE_WAL_SMALL: u64 = 256 * 1024 * 1024;

/// Commit timestamps are the server's, and brokers compare them with their own clock.
const CLOCKS_APART: f64 = 60.0;

/// The server does not let us in, or not as far as we need.
pub(super) fn unreached(gone: &Gone) -> Check {
    Check::failure("PostgreSQL", gone.reason())
}

/// Everything about a server that let us in. `now` is our clock, in seconds since 1970.
pub(super) fn judge(
    config: &Config,
    ask: &Ask,
    survey: &Survey,
    running: Option<&Running>,
    now: f64,
) -> Vec<Check> {
    let found = &survey.found;
    let names = Names {
        slot: &ask.slot,
        publication: &ask.publication,
        prefixes: &ask.prefixes,
        failover: ask.failover,
    };
    let shown = |name: &str| survey.settings.get(name).map_or("unknown", |s| s.shown.as_str());
    let plan = plan_of_objects(found, names);
    let over = through(survey.transport, config.postgres.ssl.mode);
    let mut checks = vec![let_in(survey, shown("server_version"), &over)];
    checks.push(version(survey));
    checks.push(Check::unless(not_logical(found), "wal_level", || found.wal_level.clone()));
    checks.push(Check::unless(synchronous(found), "synchronous_standby_names", || {
        match found.synchronous_standby_names.as_str() {
            "" => "empty".to_owned(),
            names => format!("{names:?} does not name {}", found.application_name),
        }
    }));
    if let Some(sentence) = without_failover(found, names) {
        checks.push(Check::failure("REPLICATION_SLOT_FAILOVER", &sentence));
    }
    checks.push(objects(ask, survey, &plan));
    checks.extend(rights(ask, survey, &plan));
    checks.extend(free_slots(ask, survey, &plan));
    checks.extend(walsenders(survey));
    checks.push(timeouts(survey));
    if let Some(slot) = &survey.slot {
        checks.push(reader(ask, survey, slot, running));
        checks.extend(slot_position(ask, survey, slot));
        checks.extend(slot_state(config, survey, slot));
    }
    checks.push(wal_keep(survey));
    checks.extend(idle_timeout(survey));
    if found.publication.as_ref().is_some_and(|publication| publication.has_tables) {
        let sentence = format!(
            "publication {} has tables, whose rows are sent to the relay and thrown away; make one without",
            ask.publication
        );
        checks.push(Check::warning("publication", &sentence));
    }
    checks.push(open_transactions(survey));
    checks.push(prepared_transactions(survey));
    checks.push(encoding(shown("server_encoding")));
    checks.push(sql_functions(survey.functions.as_deref()));
    checks.push(clock(survey.clock - now));
    checks
}

/// What the bytes go through. What a mode says of who is at the other end is in libpq's manual.
fn through(transport: Transport, mode: SslMode) -> String {
    let (version, channel_bound) = match transport {
        Transport::UnixSocket => return "over a Unix socket".to_owned(),
        Transport::Clear => return "in clear text".to_owned(),
        Transport::Tls { version, channel_bound } => (version.unwrap_or("TLS"), channel_bound),
    };
    let bound = if channel_bound { ", the log-in bound to it" } else { "" };
    format!("over {version} (sslmode={}){bound}", mode.name())
}

fn let_in(survey: &Survey, version: &str, through: &str) -> Check {
    const NAME: &str = "PostgreSQL";
    let (role, database) = (&survey.role.name, &survey.found.database);
    let is_read = survey.slot.as_ref().and_then(|slot| slot.column("active_pid")).is_some();
    match &survey.not_replicating {
        None => Check::ok(
            NAME,
            format!(
                "{version} lets role {role} into database {database} for replication, {through}"
            ),
        ),
        // The relay that reads the slot has a walsender; another one has not.
        Some(gone @ Gone::Lost(_)) if is_read => Check::warning(NAME, gone.reason()),
        Some(gone) => unreached(gone),
    }
}

fn version(survey: &Survey) -> Check {
    const NAME: &str = "server version";
    let version = survey.found.version;
    if let Some(sentence) = too_old(&survey.found) {
        return Check::failure(NAME, &sentence);
    }
    match outdated(version) {
        Some(sentence) => Check::warning(NAME, &sentence),
        None => Check::ok(NAME, format!("{}.{}", version / 10_000, version % 10_000)),
    }
}

/// Slot and publication together: one without the other is what matters most.
fn objects(ask: &Ask, survey: &Survey, plan: &Plan) -> Check {
    const NAME: &str = "slot and publication";
    let (slot, publication) = (&ask.slot, &ask.publication);
    match plan {
        Plan::Ready { adopted } => {
            let by_hand = match adopted {
                true => {
                    ", not made by owlpost, so that a change of cluster or prefixes goes unnoticed"
                }
                false => "",
            };
            let confirmed = survey.identity.confirmed_flush;
            Check::ok(
                NAME,
                format!(
                    "slot {slot} and publication {publication}, confirmed up to {confirmed}{by_hand}"
                ),
            )
        }
        Plan::Create => Check::ok(
            NAME,
            format!(
                "neither slot {slot} nor publication {publication} is there; the first start makes both"
            ),
        ),
        Plan::CreateSlot | Plan::Finish => Check::ok(
            NAME,
            format!(
                "slot {slot} and publication {publication} are half made; the next start finishes that"
            ),
        ),
        Plan::OtherPrefixes { dropped, .. } if !dropped.is_empty() => {
            Check::failure(NAME, &dropped_words(ask, dropped))
        }
        Plan::OtherPrefixes { added, .. } => Check::warning(
            NAME,
            &format!(
                "slot {slot} was set up without the prefixes {}, whose facts may have been passed over until \
                 now; run `owlpost init`, which records them",
                added.join(", ")
            ),
        ),
        // On a standby the relay waits for a promotion, for no longer than STARTUP_TIMEOUT.
        Plan::Wait(sentence) if survey.found.in_recovery => Check::failure(NAME, sentence),
        Plan::Wait(sentence) => Check::warning(NAME, sentence),
        Plan::Refuse(_, sentence) => Check::failure(NAME, sentence),
    }
}

/// What the role must be allowed to do, beside REPLICATION, without which we would not be here.
fn rights(ask: &Ask, survey: &Survey, plan: &Plan) -> Option<Check> {
    const NAME: &str = "role";
    let (role, publication, database) = (&survey.role, &ask.publication, &survey.found.database);
    let name = &role.name;
    match plan {
        Plan::Create if !role.may_create => Some(Check::failure(
            NAME,
            &format!(
                "{name} may not make publication {publication} in database {database}; GRANT CREATE ON DATABASE \
                 {database} TO {name}, or let another role run `owlpost init`"
            ),
        )),
        Plan::CreateSlot | Plan::Finish | Plan::OtherPrefixes { .. } if !role.owns_publication => {
            let sentence = format!(
                "{name} does not own publication {publication} and cannot finish its set-up; let the owner run \
                 `owlpost init`"
            );
            Some(match plan {
                Plan::OtherPrefixes { .. } => Check::warning(NAME, &sentence),
                _ => Check::failure(NAME, &sentence),
            })
        }
        Plan::Create => Some(Check::ok(NAME, format!("{name} may make the publication"))),
        _ => None,
    }
}

fn limit(survey: &Survey, name: &str) -> Option<u64> {
    survey.settings.get(name)?.value.parse().ok()
}

fn free_slots(ask: &Ask, survey: &Survey, plan: &Plan) -> Option<Check> {
    const NAME: &str = "max_replication_slots";
    let (used, max) = (survey.slots, limit(survey, NAME)?);
    let wanted = matches!(plan, Plan::Create | Plan::CreateSlot);
    Some(if used < max || !wanted {
        Check::ok(NAME, format!("{used} of {max} slots are there"))
    } else {
        let sentence = format!(
            "all {max} replication slots are in use, and slot {} is to be made; drop one that nobody needs, or raise \
             max_replication_slots and restart the server",
            ask.slot
        );
        Check::failure(NAME, &sentence)
    })
}

/// Nothing, where that there is none for us is said already.
fn walsenders(survey: &Survey) -> Option<Check> {
    const NAME: &str = "max_wal_senders";
    if survey.not_replicating.is_some() {
        return None;
    }
    let Some(max) = limit(survey, NAME) else { return Some(Check::ok(NAME, "unknown")) };
    // One of them is ours.
    let used = survey.walsenders.saturating_sub(1);
    if used + 1 < max {
        return Some(Check::ok(NAME, format!("{used} of {max} walsenders run")));
    }
    let sentence = format!(
        "{used} of {max} walsenders run: one is left for a relay, and none for a second one, a tail or an audit \
         beside it; end those that nobody needs, or raise max_wal_senders and restart the server"
    );
    Some(Check::warning(NAME, &sentence))
}

/// Those of our sessions, which we set ourselves.
fn timeouts(survey: &Survey) -> Check {
    const NAME: &str = "timeouts";
    let shown = survey.settings.get("wal_sender_timeout").map_or("unknown", |s| s.shown.as_str());
    Check::ok(NAME, format!("wal_sender_timeout {shown} in the relay's session, and no other"))
}

/// Who has the slot.
fn reader(ask: &Ask, survey: &Survey, slot: &SlotState, running: Option<&Running>) -> Check {
    const NAME: &str = "reader of the slot";
    let name = &ask.slot;
    let Some(pid) = slot.column("active_pid") else {
        return Check::ok(NAME, format!("nobody reads slot {name}"));
    };
    let reader = slot.reader.clone().unwrap_or_else(|| format!("process {pid}"));
    // Synchronising slots is done by a process of the server's own.
    if survey.found.in_recovery {
        return Check::ok(NAME, format!("{reader} of the standby reads slot {name}"));
    }
    match running {
        Some(Running { state, .. })
            if state == "streaming" || state == "halted" || state == "stalled" =>
        {
            Check::ok(NAME, format!("the relay here reads slot {name}: {reader}"))
        }
        _ => Check::warning(
            NAME,
            &format!(
                "another relay reads slot {name}: {reader}, and one that is started waits until it ends; stop \
                 that, if it is not meant"
            ),
        ),
    }
}

/// Where the slot stands, if that is no place where a relay leaves one that confirms what it was sent.
fn slot_position(ask: &Ask, survey: &Survey, slot: &SlotState) -> Option<Check> {
    const NAME: &str = "position of the slot";
    let (name, confirmed) = (&ask.slot, survey.identity.confirmed_flush);
    if let Some(ahead) = slot.ahead.filter(|ahead| *ahead > 0) {
        let sentence = format!(
            "slot {name} stands at {confirmed}, {ahead} bytes past the end of the log: whoever had it computed that \
             place, as factlib's relay does; what is committed within these bytes is not sent to whoever takes the slot \
             next; while nobody emits facts, let the log pass it (SELECT pg_switch_wal(), or messages of a prefix that is \
             nobody's)"
        );
        return Some(Check::failure(NAME, &sentence));
    }
    computed(name, confirmed).map(|sentence| Check::warning(NAME, &sentence))
}

fn slot_state(config: &Config, survey: &Survey, slot: &SlotState) -> Vec<Check> {
    let name = &config.slot;
    let retained = slot.retained.and_then(|n| u64::try_from(n).ok());
    let held = retained.map_or_else(|| "an unknown amount".to_owned(), size::human);
    let safe = slot.column("safe_wal_size").and_then(|text| text.parse::<i64>().ok());
    let safe = safe.map(|n| u64::try_from(n).unwrap_or(0));
    let status = slot.column("wal_status").unwrap_or_default();
    let mut checks = Vec::new();
    let room = safe.map_or_else(String::new, |n| format!(", {} until it is lost", size::human(n)));
    let seen = format!("slot {name} holds back {held} of it ({status}{room})");
    let is_short = status == "unreserved" || safe.is_some_and(|n| n < SAFE_WAL_SMALL);
    checks.push(match (status.as_str(), is_short) {
        // Said above.
        ("lost", _) => Check::ok("write-ahead log", "none is held back"),
        (_, true) => Check::warning(
            "write-ahead log",
            &format!("{seen}; let the relay catch up, or raise max_slot_wal_keep_size"),
        ),
        _ => Check::ok("write-ahead log", seen),
    });
    let follows = slot.column("failover");
    if config.slot_failover && follows.as_deref() == Some("false") && !survey.found.in_recovery {
        let sentence = format!(
            "slot {name} was made without failover, and standbys do not follow it; ALTER_REPLICATION_SLOT {name} \
             (FAILOVER true) on a replication connection, while no relay runs"
        );
        checks.push(Check::warning("REPLICATION_SLOT_FAILOVER", &sentence));
    }
    checks
}

fn wal_keep(survey: &Survey) -> Check {
    const NAME: &str = "max_slot_wal_keep_size";
    let Some(setting) = survey.settings.get(NAME) else { return Check::ok(NAME, "unknown") };
    // In megabytes.
    let limit = setting.value.parse::<u64>().ok().map(|n| n.saturating_mul(1024 * 1024));
    match limit {
        None => Check::ok(NAME, "no limit: a relay that is away fills the disk, and loses nothing"),
        Some(limit) if limit < WAL_KEEP_SMALL => Check::warning(
            NAME,
            &format!(
                "{}: a relay that is away while more is written loses its slot, and facts with it; raise it to \
                 what an outage of Kafka takes",
                setting.shown
            ),
        ),
        Some(_) => Check::ok(
            NAME,
            format!("{}: whoever is away for longer than that loses facts", setting.shown),
        ),
    }
}

fn idle_timeout(survey: &Survey) -> Option<Check> {
    const NAME: &str = "idle_replication_slot_timeout";
    // From 18 on.
    let setting = survey.settings.get(NAME)?;
    Some(match setting.value.as_str() {
        "0" => Check::ok(NAME, "off"),
        _ => Check::warning(
            NAME,
            &format!(
                "{}: a relay that is away for so long loses its slot, and facts with it; switch it off, or set it \
                 above the longest outage",
                setting.shown
            ),
        ),
    })
}

fn open_transactions(survey: &Survey) -> Check {
    const NAME: &str = "open transactions";
    let sight = match survey.role.sees_all {
        true => String::new(),
        false => {
            format!(" of role {} (it sees no others without pg_read_all_stats)", survey.role.name)
        }
    };
    match &survey.oldest_open {
        Some(open) if open.age >= OPEN_LONG => {
            let OpenTransaction { whose, .. } = open;
            let sentence = format!(
                "one has been open for {}: {whose}; the slot holds back log until it ends, however well the relay \
                 is doing, and a new slot is not ready before; end it",
                seconds(open.age)
            );
            Check::warning(NAME, &sentence)
        }
        Some(open) => Check::ok(NAME, format!("the oldest{sight} for {}", seconds(open.age))),
        None => Check::ok(NAME, format!("none{sight} that has written")),
    }
}

fn prepared_transactions(survey: &Survey) -> Check {
    const NAME: &str = "prepared transactions";
    match &survey.oldest_prepared {
        Some(OpenTransaction { age, whose }) if *age >= OPEN_LONG => Check::warning(
            NAME,
            &format!(
                "one has been prepared for {}: {whose}, and its facts and the log since wait for its end; COMMIT \
                 PREPARED or ROLLBACK PREPARED",
                seconds(*age)
            ),
        ),
        Some(open) => Check::ok(NAME, format!("the oldest for {}", seconds(open.age))),
        None => Check::ok(NAME, "none"),
    }
}

fn seconds(age: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(age.as_secs()))
}

fn encoding(encoding: &str) -> Check {
    const NAME: &str = "server_encoding";
    if encoding == "UTF8" {
        return Check::ok(NAME, encoding);
    }
    let sentence = format!(
        "{encoding}: an envelope that is emitted as text is written in it, and unreadable with other letters than \
         ASCII; emit convert_to(envelope, 'UTF8')"
    );
    Check::warning(NAME, &sentence)
}

/// Those that applications emit with. Not everybody does.
fn sql_functions(version: Option<&str>) -> Check {
    const NAME: &str = "SQL functions";
    match version {
        None => Check::ok(NAME, "not installed; `owlpost init --sql-only` would"),
        Some(version) if is_older(version, VERSION) => Check::warning(
            NAME,
            &format!(
                "version {version}, and this owlpost has {VERSION}; run `owlpost init --sql-only`"
            ),
        ),
        Some(version) => Check::ok(NAME, format!("version {version}")),
    }
}

/// By how many seconds the server's clock is ahead of ours.
fn clock(ahead: f64) -> Check {
    const NAME: &str = "clock";
    if ahead.abs() < CLOCKS_APART {
        return Check::ok(NAME, "the server's agrees with the one here");
    }
    let (by, than) = (ahead.abs().round(), if ahead > 0.0 { "ahead of" } else { "behind" });
    let sentence = format!(
        "the server's is {by} s {than} the one here, and brokers compare the time of commits with their own; set the \
         clocks, or set KAFKA_TIMESTAMP=publish"
    );
    Check::warning(NAME, &sentence)
}

/// Several hosts, each by itself.
pub(super) fn hosts(states: &[HostState]) -> Vec<Check> {
    let check = |HostState { host, state }: &HostState| {
        let name = format!("host {host}");
        match state {
            Ok((false, _)) => Check::ok(name, "a primary"),
            Ok((true, true)) => Check::ok(name, "a standby that has the slot"),
            Ok((true, false)) => Check::warning(
                name,
                "a standby without the slot: after a failover to it facts may be missing; let it follow the slot \
                 (REPLICATION_SLOT_FAILOVER, sync_replication_slots)",
            ),
            Err(cause) => Check { verdict: Verdict::Warning, ..Check::failure(name, cause) },
        }
    };
    states.iter().map(check).collect()
}
