//! Whether the server would take this relay for a synchronous standby.
//!
//! <https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-SYNCHRONOUS-STANDBY-NAMES>

/// True if `synchronous_standby_names` names `application_name`, or everybody.
///
/// A walsender of a logical slot counts like any other: each COMMIT of the application would wait until the
/// relay has confirmed it, so that a Kafka that is away would freeze the database (seen on 15 and 18).
pub(super) fn names_us(setting: &str, application_name: &str) -> bool {
    // `FIRST 2 (a, b)`, `ANY 1 (a, b)`, `2 (a, b)`, or the names alone.
    let list = match setting.split_once('(') {
        Some((method, list)) if !method.contains('"') => list,
        _ => setting,
    };
    let mut rest = list.trim_start();
    while !rest.is_empty() {
        let (name, behind) = if let Some(quoted) = rest.strip_prefix('"') {
            quoted_name(quoted)
        } else {
            let end = rest.find([',', ')', ' ', '\t', '\n']).unwrap_or(rest.len());
            let (name, behind) = rest.split_at(end);
            (name.to_owned(), behind)
        };
        // As the server compares them.
        if name == "*" || (!name.is_empty() && name.eq_ignore_ascii_case(application_name)) {
            return true;
        }
        rest = behind.trim_start_matches([',', ')', ' ', '\t', '\n']);
    }
    false
}

/// What stands before the closing quote, where two of them are one, and what is behind it.
fn quoted_name(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('"') {
        name.push_str(before);
        match behind.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return (name, behind),
        }
    }
    (name, "")
}

#[cfg(test)]
mod tests {
    use super::names_us;

    #[test]
    fn everybody_and_our_own_name_are_found_in_every_form() {
        let ours = [
            "*",
            "FIRST 1 (*)",
            "owlpost",
            "ANY 2 (standby1, OwlPost, standby2)",
            "1(standby1,\"owlpost\")",
            "standby1, \"owlpost\"",
        ];
        for setting in ours {
            assert!(names_us(setting, "owlpost"), "{setting}");
        }
        let others = ["", "  ", "standby1", "FIRST 2 (owlpost2, \"owl\"\"post\", not_owlpost)"];
        for setting in others {
            assert!(!names_us(setting, "owlpost"), "{setting}");
        }
        assert!(names_us("a, \"owl\"\"post\"", "owl\"post"));
    }
}
