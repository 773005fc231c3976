//! `compose.yml`, `Dockerfile` and what is in `ops/` cannot be run where the tests run, so they are held to the code.

#![expect(clippy::unwrap_used, reason = "a test")]

use factlib::cli::Cli;
use factlib::config::{Config, Host, PasswordSource, VARIABLES};
use std::time::Duration;
use yaml_rust2::{Yaml, YamlLoader};

fn file(name: &str) -> String {
    let path = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn compose() -> Yaml {
    YamlLoader::load_from_str(&file("compose.yml")).unwrap().remove(0)
}

/// The environment of a service; values must be text, or a `yes` would arrive as `true`.
fn environment(service: &Yaml) -> Vec<(String, String)> {
    let entries = service["environment"].as_hash().unwrap();
    entries
        .iter()
        .map(|(name, value)| match value {
            Yaml::String(value) => (name.as_str().unwrap().to_owned(), value.clone()),
            _ => panic!("{name:?} is not text"),
        })
        .collect()
}

fn words(list: &Yaml) -> Vec<&str> {
    list.as_vec().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

#[test]
fn the_relays_environment_is_a_configuration_that_works() {
    let compose = compose();
    let environment = environment(&compose["services"]["owlpost"]);
    for (name, _) in &environment {
        assert!(VARIABLES.contains(&name.as_str()), "{name} is no setting");
    }
    let flags = environment
        .iter()
        .map(|(name, value)| format!("--{}={value}", name.to_ascii_lowercase().replace('_', "-")));
    let cli = Cli::try_from_args(std::iter::once("owlpost".to_owned()).chain(flags)).unwrap();
    let config = Config::from_raw(&cli.config, |_| None).unwrap_or_else(|p| panic!("{p}"));

    // It looks for the others where they are.
    assert_eq!(
        config.postgres.hosts,
        [Host::Tcp { host: "postgres".into(), addr: None, port: 5432 }]
    );
    let kafka = &compose["services"]["kafka"]["environment"];
    let broker = config.kafka.brokers[0].to_string();
    assert!(
        kafka["KAFKA_ADVERTISED_LISTENERS"].as_str().unwrap().contains(&format!("//{broker},"))
    );
    let port = config.http.unwrap().port();
    let ports = words(&compose["services"]["owlpost"]["ports"]);
    assert_eq!(ports, [format!("127.0.0.1:{port}:{port}")]);
    assert!(file("Dockerfile").contains(&format!("\nEXPOSE {port}\n")));

    // It is not killed while it stops cleanly.
    let grace = compose["services"]["owlpost"]["stop_grace_period"].as_str().unwrap();
    assert!(humantime::parse_duration(grace).unwrap() > config.limits.shutdown);

    // It may log in, and is the role that the database makes.
    let sql = compose["configs"]["owlpost.sql"]["content"].as_str().unwrap();
    let PasswordSource::Given(password) = config.postgres.password else { panic!("no password") };
    let role = format!(
        "CREATE ROLE {} LOGIN REPLICATION PASSWORD '{}';",
        config.postgres.user,
        password.expose()
    );
    assert!(sql.contains(&role), "{role} in {sql}");
    let database = compose["services"]["postgres"]["environment"]["POSTGRES_DB"].as_str();
    assert_eq!(database, Some(&*config.postgres.database));
    let topic = format!("--topic={}.order", config.prefixes[0]);
    assert!(words(&compose["services"]["topics"]["command"]).contains(&&*topic));
}

#[test]
fn the_services_can_do_their_part() {
    let compose = compose();
    let services = &compose["services"];
    let names: Vec<_> = services.as_hash().unwrap().keys().map(|n| n.as_str().unwrap()).collect();
    assert_eq!(names, ["postgres", "kafka", "topics", "owlpost"]);
    assert!(words(&services["postgres"]["command"]).contains(&"wal_level=logical"));
    assert_eq!(services["kafka"]["image"], services["topics"]["image"]);
    for service in ["postgres", "kafka"] {
        assert!(!services[service]["healthcheck"]["test"].is_badvalue(), "{service}");
    }
    // KRaft: the broker is its own controller, and every listener has a protocol.
    let kafka = &services["kafka"]["environment"];
    assert_eq!(kafka["KAFKA_PROCESS_ROLES"].as_str(), Some("broker,controller"));
    let protocols = kafka["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].as_str().unwrap();
    for listener in kafka["KAFKA_LISTENERS"].as_str().unwrap().split(',') {
        let (name, _) = listener.split_once("://").unwrap();
        assert!(protocols.split(',').any(|p| p == format!("{name}:PLAINTEXT")), "{name}");
    }
    // What is mounted is declared.
    for (service, volume) in [("postgres", "postgres"), ("kafka", "kafka")] {
        assert!(words(&services[service]["volumes"])[0].starts_with(&format!("{volume}:/")));
        assert!(compose["volumes"].as_hash().unwrap().contains_key(&Yaml::String(volume.into())));
    }
}

#[test]
fn the_versions_are_those_that_the_tests_start() {
    assert_eq!(
        testkit::versions::compose_disagreements(&file("compose.yml")),
        Vec::<String>::new()
    );
}

#[test]
fn the_image_is_built_by_a_compiler_that_is_new_enough() {
    let dockerfile = file("Dockerfile");
    let tag = dockerfile.split_once("FROM rust:").unwrap().1;
    let minor = |version: &str| -> u32 {
        let digits = version.strip_prefix("1.").unwrap();
        digits.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    assert!(minor(tag) >= minor(env!("CARGO_PKG_RUST_VERSION")));
}

#[test]
fn both_images_are_one_but_for_what_is_below_the_binary() {
    let dockerfile = file("Dockerfile");
    let stage = |from: &str| {
        let stage = dockerfile.split("\nFROM ").find_map(|stage| stage.strip_prefix(from));
        let lines = stage.unwrap_or_else(|| panic!("no stage is from {from}")).lines();
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect::<Vec<_>>()
    };
    let usual = stage("gcr.io/distroless/cc-debian12:nonroot\n");
    let fixed = stage("gcr.io/distroless/static-debian12:nonroot AS static\n");
    assert_eq!(usual[0], "COPY --from=build /out/owlpost /usr/local/bin/owlpost");
    assert_eq!(fixed[0], "COPY --from=build-static /out/owlpost /usr/local/bin/owlpost");
    assert_eq!(usual[1..], fixed[1..]);
    assert!(usual.contains(&"STOPSIGNAL SIGTERM"));
    // What is built without --target is the last one.
    assert!(dockerfile.rfind("cc-debian12") > dockerfile.rfind("static-debian12"));
    for target in ["source AS build\n", "source AS build-static\n"] {
        assert!(stage(target).join("").contains("--profile dist --package factlib --bin owlpost"));
    }
}

#[test]
fn the_script_of_the_package_makes_what_the_package_is_made_of() {
    let (manifest, script) = (file("Cargo.toml"), file("scripts/deb"));
    let sources = manifest.lines().filter_map(|line| line.trim().strip_prefix("[\"target/"));
    let mut made = 0;
    for source in sources.map(|rest| rest.split('"').next().unwrap()) {
        let wanted = match source.strip_suffix("/*.1") {
            Some(folder) => format!("man --out target/{folder}\n"),
            None if source == "release/owlpost" => "--profile dist --bin owlpost\n".to_owned(),
            None => format!(">target/{source}\n"),
        };
        assert!(script.contains(&wanted), "nothing makes target/{source}");
        made += 1;
    }
    assert!(made > 4, "only {made} files are made");
}

/// These variables as flags, behind a command.
fn config_of<'a>(
    command: &[&str],
    environment: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Config {
    let flags = environment.into_iter().map(|(name, value)| {
        assert!(VARIABLES.contains(&name), "{name} is no setting");
        format!("--{}={value}", name.to_ascii_lowercase().replace('_', "-"))
    });
    let words = std::iter::once("owlpost").chain(command.iter().copied()).map(str::to_owned);
    let cli = Cli::try_from_args(words.chain(flags)).unwrap();
    Config::from_raw(&cli.config, |_| None).unwrap_or_else(|p| panic!("{p}"))
}

#[test]
fn the_unit_of_systemd_starts_what_there_is_and_leaves_it_time_to_stop() {
    let unit = file("ops/systemd/owlpost.service");
    let value = |key: &str| {
        let lines: Vec<&str> =
            unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect();
        assert_eq!(lines.len(), 1, "{key}: {lines:?}");
        lines[0]
    };
    let (binary, command) = value("ExecStart").split_once(' ').unwrap();
    assert_eq!(binary, "/usr/bin/owlpost");
    let environment = file("ops/systemd/owlpost.env");
    let environment = environment.lines().map(|line| line.split_once('=').unwrap());
    let config = config_of(&command.split(' ').collect::<Vec<_>>(), environment);
    let patience: u64 = value("TimeoutStopSec").parse().unwrap();
    assert!(Duration::from_secs(patience) > config.limits.shutdown);
    assert_eq!(value("DynamicUser"), "yes");
    assert_eq!(value("ProtectSystem"), "strict");
}

#[test]
fn the_manifest_of_kubernetes_fits_together_and_to_the_code() {
    let documents = YamlLoader::load_from_str(&file("ops/kubernetes/owlpost.yaml")).unwrap();
    let of_kind = |kind: &str| {
        let mut found = documents.iter().filter(|document| document["kind"].as_str() == Some(kind));
        let document = found.next().unwrap();
        assert!(found.next().is_none(), "{kind} twice");
        document
    };
    let deployment = &of_kind("Deployment")["spec"];
    let pod = &deployment["template"];
    let container = &pod["spec"]["containers"][0];
    let settings = of_kind("ConfigMap")["data"].as_hash().unwrap();
    let settings = settings.iter().map(|(k, v)| (k.as_str().unwrap(), v.as_str().unwrap()));
    // From the secret.
    let url = [("MASTER_DATABASE_URL", "postgres://owlpost:secret@db:5432/orders")];
    let config = config_of(&words(&container["args"]), settings.chain(url));

    let port = i64::from(config.http.unwrap().port());
    assert_eq!(container["ports"][0]["containerPort"].as_i64(), Some(port));
    let policy = &of_kind("NetworkPolicy")["spec"];
    assert_eq!(policy["ingress"][0]["ports"][0]["port"].as_i64(), Some(port));
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(annotations["prometheus.io/port"].as_str(), Some(&*port.to_string()));
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz?standby=ok")] {
        let get = &container[probe]["httpGet"];
        assert_eq!((get["path"].as_str(), get["port"].as_str()), (Some(path), Some("health")));
    }
    let grace = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap();
    assert!(Duration::from_secs(grace.unsigned_abs()) > config.limits.shutdown);
    let security = &container["securityContext"];
    assert_eq!(security["readOnlyRootFilesystem"].as_bool(), Some(true));
    assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"].as_bool(), Some(true));

    // All of them mean the same pods.
    let label = |labels: &Yaml| labels["app.kubernetes.io/name"].as_str().map(str::to_owned);
    let name = label(&pod["metadata"]["labels"]).unwrap();
    for selector in [
        &deployment["selector"]["matchLabels"],
        &policy["podSelector"]["matchLabels"],
        &of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ] {
        assert_eq!(label(selector).as_ref(), Some(&name));
    }
}
