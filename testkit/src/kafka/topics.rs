//! Making, changing and removing topics.

use super::wire::{Wire, block_on};
use super::{Kafka, LIMIT};
use crate::error::{Error, Result};
use crate::wait;
use rskafka::protocol::api_key::ApiKey;
use rskafka::protocol::api_version::{ApiVersion, ApiVersionRange};
use rskafka::protocol::error::Error as ApiError;
use rskafka::protocol::messages::{
    CreateTopicConfig, CreateTopicRequest, CreateTopicsRequest, DeleteTopicsRequest,
    ReadVersionedError, ReadVersionedType, RequestBody, WriteVersionedError, WriteVersionedType,
};
use rskafka::protocol::primitives::{Array, Boolean, Int8, Int16, Int32, NullableString, String_};
use rskafka::protocol::traits::{ReadType as _, WriteType as _};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

impl Kafka {
    /// Makes a topic and waits until every partition has a leader. Settings are the broker's names,
    /// `("max.message.bytes", "1000")`.
    ///
    /// # Panics
    ///
    /// When the broker refuses.
    #[track_caller]
    pub fn create_topic(&self, name: &str, partitions: usize, settings: &[(&str, &str)]) {
        let copies = self.brokers().min(3);
        self.create_replicated_topic(name, partitions, copies, settings);
    }

    /// As [`create_topic`](Self::create_topic), with a number of replicas.
    ///
    /// # Panics
    ///
    /// When the broker refuses.
    #[track_caller]
    pub fn create_replicated_topic(
        &self,
        name: &str,
        partitions: usize,
        replicas: usize,
        settings: &[(&str, &str)],
    ) {
        let configs = settings
            .iter()
            .map(|(name, value)| CreateTopicConfig {
                name: String_((*name).to_owned()),
                value: NullableString(Some((*value).to_owned())),
                tagged_fields: None,
            })
            .collect();
        let request = CreateTopicsRequest {
            topics: vec![CreateTopicRequest {
                name: String_(name.to_owned()),
                num_partitions: Int32(partitions as i32),
                replication_factor: Int16(replicas as i16),
                assignments: Vec::new(),
                configs,
                tagged_fields: None,
            }],
            timeout_ms: Int32(10_000),
            validate_only: None,
            tagged_fields: None,
        };
        let addresses = self.addresses();
        let made = block_on(async move {
            let answer = Wire::any(&addresses).await?.ask(request).await?;
            answer.topics.into_iter().find_map(|topic| topic.error).map_or(Ok(()), refused)
        });
        if let Err(e) = made {
            panic!("creating topic {name}: {e}");
        }
        wait::until(&format!("leaders of topic {name}"), LIMIT, || {
            let leaders = self.leaders(name);
            leaders.len() == partitions && leaders.iter().all(|leader| *leader >= 0)
        });
    }

    /// The broker id that leads each partition, -1 where none does; empty when there is no topic.
    #[must_use]
    pub fn leaders(&self, topic: &str) -> Vec<i32> {
        let (addresses, names) = (self.addresses(), vec![topic.to_owned()]);
        let answer =
            block_on(async move { Wire::any(&addresses).await?.metadata(Some(&names)).await });
        let Ok(answer) = answer else { return Vec::new() };
        let mut partitions: Vec<(i32, i32)> = answer
            .topics
            .iter()
            .flat_map(|topic| &topic.partitions)
            .map(|p| (p.partition_index.0, p.leader_id.0))
            .collect();
        partitions.sort_unstable();
        partitions.into_iter().map(|(_, leader)| leader).collect()
    }

    /// Waits until every replica of every partition of the topic has what its leader has.
    ///
    /// # Panics
    ///
    /// When one has not in a minute.
    #[track_caller]
    pub fn wait_in_sync(&self, topic: &str) {
        let (addresses, names) = (self.addresses(), vec![topic.to_owned()]);
        let in_sync = || {
            let (addresses, names) = (addresses.clone(), names.clone());
            let asked = async move { Wire::any(&addresses).await?.metadata(Some(&names)).await };
            let Ok(answer) = block_on(asked) else { return false };
            let count = |nodes: &Array<Int32>| nodes.0.as_ref().map_or(0, Vec::len);
            let mut partitions =
                answer.topics.iter().flat_map(|topic| &topic.partitions).peekable();
            partitions.peek().is_some()
                && partitions.all(|p| count(&p.isr_nodes) == count(&p.replica_nodes))
        };
        wait::until(&format!("all replicas of {topic} to be in sync"), LIMIT, in_sync);
    }

    /// The topics there are, without Kafka's own.
    ///
    /// # Panics
    ///
    /// When no broker answers.
    #[must_use]
    pub fn topics(&self) -> Vec<String> {
        let addresses = self.addresses();
        let answer = block_on(async move { Wire::any(&addresses).await?.metadata(None).await });
        let topics = answer.unwrap_or_else(|e| panic!("listing topics: {e}")).topics;
        let mut names: Vec<String> = topics
            .into_iter()
            .filter(|topic| !topic.is_internal.is_some_and(|internal| internal.0))
            .map(|topic| topic.name.0)
            .collect();
        names.sort();
        names
    }

    /// Bytes of a topic's records as the brokers keep them, copies included.
    ///
    /// # Panics
    ///
    /// When a broker's folder cannot be read.
    #[must_use]
    #[track_caller]
    pub fn log_bytes(&self, topic: &str) -> u64 {
        let entries = |folder: &Path| {
            let read = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            read.flatten().map(|entry| entry.path()).collect::<Vec<_>>()
        };
        let is_of_topic = |folder: &PathBuf| {
            let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.rsplit_once('-').is_some_and(|(of, _)| of == topic)
        };
        let folders = self.brokers.iter().flat_map(|broker| entries(&broker.folder.join("data")));
        let files = folders.filter(is_of_topic).flat_map(|folder| entries(&folder));
        let logs = files.filter(|file| file.extension().is_some_and(|kind| kind == "log"));
        logs.map(|log| log.metadata().map_or(0, |metadata| metadata.len())).sum()
    }

    /// Changes one setting of a topic.
    ///
    /// # Panics
    ///
    /// When the broker refuses.
    #[track_caller]
    pub fn set_topic_config(&self, topic: &str, name: &str, value: &str) {
        let addresses = self.addresses();
        let request = IncrementalAlterConfigs {
            topic: topic.to_owned(),
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let changed = block_on(async move {
            let error = Wire::any(&addresses).await?.ask(request).await?.error;
            error.map_or(Ok(()), refused)
        });
        if let Err(e) = changed {
            panic!("setting {name}={value} of topic {topic}: {e}");
        }
    }

    /// Removes a topic and waits until it is gone.
    ///
    /// # Panics
    ///
    /// When the broker refuses.
    #[track_caller]
    pub fn delete_topic(&self, name: &str) {
        let addresses = self.addresses();
        let request = DeleteTopicsRequest {
            topic_names: Array(Some(vec![String_(name.to_owned())])),
            timeout_ms: Int32(10_000),
            tagged_fields: None,
        };
        let removed = block_on(async move {
            let answer = Wire::any(&addresses).await?.ask(request).await?;
            answer.responses.into_iter().find_map(|topic| topic.error).map_or(Ok(()), refused)
        });
        if let Err(e) = removed {
            panic!("deleting topic {name}: {e}");
        }
        wait::until(&format!("topic {name} gone"), LIMIT, || self.leaders(name).is_empty());
    }
}

fn refused(error: ApiError) -> Result<()> {
    Err(Error(format!("{error} ({error:?})")))
}

/// Sets one topic setting (KIP-339), version 0. rskafka has no such message.
struct IncrementalAlterConfigs {
    topic: String,
    name: String,
    value: String,
}

struct IncrementalAlterConfigsResponse {
    error: Option<ApiError>,
}

impl RequestBody for IncrementalAlterConfigs {
    type ResponseBody = IncrementalAlterConfigsResponse;
    const API_KEY: ApiKey = ApiKey::IncrementalAlterConfigs;
    const API_VERSION_RANGE: ApiVersionRange =
        ApiVersionRange::new(ApiVersion(Int16(0)), ApiVersion(Int16(0)));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = ApiVersion(Int16(1));
}

impl<W: Write> WriteVersionedType<W> for IncrementalAlterConfigs {
    fn write_versioned(
        &self,
        writer: &mut W,
        _version: ApiVersion,
    ) -> std::result::Result<(), WriteVersionedError> {
        const TOPIC: Int8 = Int8(2);
        const SET: Int8 = Int8(0);
        Int32(1).write(writer)?;
        TOPIC.write(writer)?;
        String_(self.topic.clone()).write(writer)?;
        Int32(1).write(writer)?;
        String_(self.name.clone()).write(writer)?;
        SET.write(writer)?;
        NullableString(Some(self.value.clone())).write(writer)?;
        Boolean(false).write(writer)?;
        Ok(())
    }
}

impl<R: Read> ReadVersionedType<R> for IncrementalAlterConfigsResponse {
    fn read_versioned(
        reader: &mut R,
        _version: ApiVersion,
    ) -> std::result::Result<Self, ReadVersionedError> {
        let _throttle_ms = Int32::read(reader)?;
        let mut error = None;
        for _ in 0..Int32::read(reader)?.0 {
            error = error.or(ApiError::new(Int16::read(reader)?.0));
            let _message = NullableString::read(reader)?;
            let _kind = Int8::read(reader)?;
            let _name = String_::read(reader)?;
        }
        Ok(Self { error })
    }
}
