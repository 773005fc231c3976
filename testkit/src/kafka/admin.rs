//! What an operator does to a running cluster, by Kafka's own tools.

use super::{Kafka, LIMIT, config};
use crate::error::{Context as _, Result};
use crate::wait;
use std::fs;

impl Kafka {
    /// Gives a topic more partitions, and waits until each has a leader.
    ///
    /// # Panics
    ///
    /// When the broker refuses.
    #[track_caller]
    pub fn grow_topic(&self, topic: &str, partitions: usize) {
        let (brokers, count) = (self.bootstrap(), partitions.to_string());
        let arguments =
            ["--bootstrap-server", &brokers, "--alter", "--topic", topic, "--partitions", &count];
        self.java("org.apache.kafka.tools.TopicCommand", &arguments);
        wait::until(&format!("leaders of topic {topic}"), LIMIT, || {
            let leaders = self.leaders(topic);
            leaders.len() == partitions && leaders.iter().all(|leader| *leader >= 0)
        });
    }

    /// Has another broker lead each partition of a topic that all brokers have replicas of: the next by
    /// number.
    ///
    /// # Panics
    ///
    /// When the cluster refuses, or does not do it.
    #[track_caller]
    pub fn move_leaders(&self, topic: &str) {
        let count = self.brokers();
        let wanted: Vec<usize> = self
            .leaders(topic)
            .iter()
            .map(|leader| usize::try_from(*leader).unwrap_or_default() % count + 1)
            .collect();
        let mut partitions = Vec::new();
        for (index, leader) in wanted.iter().enumerate() {
            let replicas: Vec<String> =
                (0..count).map(|nth| ((leader - 1 + nth) % count + 1).to_string()).collect();
            let replicas = replicas.join(",");
            partitions.push(format!(
                "{{\"topic\":\"{topic}\",\"partition\":{index},\"replicas\":[{replicas}]}}"
            ));
        }
        let plan = format!("{{\"version\":1,\"partitions\":[{}]}}", partitions.join(","));
        let file = self.folder.join(format!("plan-{topic}.json"));
        fs::write(&file, plan).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let (brokers, file) = (self.bootstrap(), file.display().to_string());
        let arguments =
            ["--bootstrap-server", &brokers, "--reassignment-json-file", &file, "--execute"];
        self.java("org.apache.kafka.tools.reassign.ReassignPartitionsCommand", &arguments);
        let arguments = [
            "--bootstrap-server",
            &brokers,
            "--election-type",
            "preferred",
            "--path-to-json-file",
            &file,
        ];
        self.java("org.apache.kafka.tools.LeaderElectionCommand", &arguments);
        wait::until(&format!("other leaders of topic {topic}"), LIMIT, || {
            let leaders = self.leaders(topic);
            leaders
                .iter()
                .map(|leader| usize::try_from(*leader).ok())
                .eq(wanted.iter().copied().map(Some))
        });
    }

    /// Lets a client produce so many bytes a second, or as many as it likes.
    ///
    /// # Panics
    ///
    /// When the broker refuses.
    #[track_caller]
    pub fn set_producer_quota(&self, client_id: &str, bytes_per_second: Option<u64>) {
        let brokers = self.bootstrap();
        let (how, config) = match bytes_per_second {
            Some(rate) => ("--add-config", format!("producer_byte_rate={rate}")),
            None => ("--delete-config", "producer_byte_rate".to_owned()),
        };
        let arguments = [
            "--bootstrap-server",
            &brokers,
            "--alter",
            how,
            &config,
            "--entity-type",
            "clients",
            "--entity-name",
            client_id,
        ];
        self.java("kafka.admin.ConfigCommand", &arguments);
    }

    /// Takes a feature of the cluster, such as `transaction.version`, back to this level.
    ///
    /// # Panics
    ///
    /// When the cluster refuses.
    #[track_caller]
    pub fn downgrade(&self, feature: &str, level: u16) {
        let (brokers, to) = (self.bootstrap(), format!("{feature}={level}"));
        let arguments = ["--bootstrap-server", &brokers, "downgrade", "--feature", &to];
        self.java("org.apache.kafka.tools.FeatureCommand", &arguments);
    }

    /// Puts an empty cluster with another id at the same addresses.
    ///
    /// # Panics
    ///
    /// When it does not start.
    #[track_caller]
    pub fn replace_by_another_cluster(&self) {
        self.kill9();
        self.format_anew().unwrap_or_else(|e| panic!("{e}"));
        self.start_again();
    }

    fn format_anew(&self) -> Result<()> {
        let checkpoint = self.install.folder.join("bootstrap.checkpoint");
        let cluster = config::random_uuid()?;
        for broker in &self.brokers {
            let data = broker.folder.join(super::DATA);
            fs::remove_dir_all(&data).context(data.display())?;
            config::format(&data, broker.node().id, &cluster, &checkpoint)?;
        }
        Ok(())
    }
}
