//! While a fact waits for its topic, the topics of those behind it are asked for as well: else a thousand new topics
//! are found, or created, or given up, one after the other.
//!
//! Nothing is read past the fact that waits. What stands behind it is only looked at, and stays where it is.

use super::engine::Relay;
use super::fact::Fact;
use factlib_protocol::pgoutput::{self, LogicalMessage};
use factlib_protocol::{Frame, backend, replication};
use std::time::Instant;

/// So many messages are looked at: some milliseconds' worth.
const MESSAGES_MAX: usize = 4096;

/// So many topics are asked for at once.
const TOPICS_MAX: usize = 100;

impl Relay {
    /// Asks for the topics of facts in `rest`, which stands behind one that waits for its topic. Once for each such
    /// fact.
    pub(super) fn foresee(&mut self, now: Instant, mut rest: &[u8]) {
        if self.stopping.is_some() || self.foreseen == Some(self.enqueued) {
            return;
        }
        self.foreseen = Some(self.enqueued);
        let mut topics = 0;
        for _ in 0..MESSAGES_MAX {
            // What is cut off or cannot be read is complained of when it is its turn.
            let Ok(Some(frame)) = Frame::decode(rest, self.settings.frame_bytes_max) else { break };
            if let Some(message) = message(frame)
                && self.name_topic(&message)
                && self.producer.foresee(now, &self.topic)
            {
                topics += 1;
                if topics == TOPICS_MAX {
                    break;
                }
            }
            rest = rest.get(frame.encoded_len()..).unwrap_or_default();
        }
    }

    /// The topic of a message that is ours, in `self.topic`; false if it has none.
    fn name_topic(&mut self, message: &LogicalMessage<'_>) -> bool {
        let mut prefixes = self.settings.prefixes.iter();
        let Some(prefix) = prefixes.find(|prefix| prefix.as_bytes() == message.prefix) else {
            return false;
        };
        let Ok(fact) = Fact::decode(message.content) else { return false };
        self.settings.naming.name_topic(prefix, &fact, &mut self.topic)
    }
}

fn message(frame: Frame<'_>) -> Option<LogicalMessage<'_>> {
    let backend::Message::CopyData(payload) = backend::Message::decode(frame).ok()? else {
        return None;
    };
    let replication::Message::XLogData(data) = replication::Message::decode(payload).ok()? else {
        return None;
    };
    // What the stream is in the middle of matters to later versions of the protocol only.
    match pgoutput::Decoder::default().decode(data.data).ok()? {
        pgoutput::Message::Message(message) => Some(message),
        _ => None,
    }
}
