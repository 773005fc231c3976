//! What tables looked like when they were named last, for whoever needs columns with the rows.
//!
//! <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>

use alloc::{collections::BTreeMap, string::String, sync::Arc, vec::Vec};
use core::fmt;

use super::{Relation, ReplicaIdentity};
use crate::Oid;

/// The tables that a stream has described, by number.
///
/// Beside the decoder and not inside it, so that who needs only messages pays nothing. Hand in every
/// [`Relation`]; the server sends one before a table's first row and again after each change. In a
/// streamed block the description is that of an open transaction, which may be rolled back; the server
/// then describes the table again.
///
/// A server with many tables decides how many are kept, so the most is required.
#[derive(Debug, Clone)]
pub struct Relations {
    known: BTreeMap<Oid, Arc<RelationSchema>>,
    max: usize,
}

/// A [`Relation`] that outlives its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationSchema {
    /// The number that rows refer to.
    pub id: Oid,
    /// Its schema; empty for `pg_catalog`. What is not UTF-8 is replaced.
    pub namespace: String,
    /// Its name. What is not UTF-8 is replaced.
    pub name: String,
    /// What the log tells about old rows.
    pub replica_identity: ReplicaIdentity,
    /// Its columns, in the order of a [`Tuple`](super::Tuple)'s values.
    pub columns: Vec<ColumnSchema>,
}

/// One column of a [`RelationSchema`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnSchema {
    /// Whether it is part of the key.
    pub key: bool,
    /// Its name. What is not UTF-8 is replaced.
    pub name: String,
    /// The type of its values.
    pub type_oid: Oid,
    /// The type's modifier, such as the precision of a number; -1 for none.
    pub type_modifier: i32,
}

impl Relations {
    /// Keeps up to `max` tables.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self { known: BTreeMap::new(), max }
    }

    /// Keeps what `relation` says, in the place of what was known of that table.
    ///
    /// # Errors
    ///
    /// [`TooManyRelations`] if that would be one table too many; nothing is changed.
    pub fn insert(
        &mut self,
        relation: &Relation<'_>,
    ) -> Result<Arc<RelationSchema>, TooManyRelations> {
        if self.known.len() >= self.max && !self.known.contains_key(&relation.id) {
            return Err(TooManyRelations { max: self.max });
        }
        let schema = Arc::new(RelationSchema::from(relation));
        self.known.insert(relation.id, Arc::clone(&schema));
        Ok(schema)
    }

    /// The table that a row refers to, if it was described.
    #[must_use]
    pub fn get(&self, id: Oid) -> Option<&Arc<RelationSchema>> {
        self.known.get(&id)
    }

    /// How many tables are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether no table is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Forgets all tables, for a new stream: its server describes each again.
    pub fn clear(&mut self) {
        self.known.clear();
    }
}

impl From<&Relation<'_>> for RelationSchema {
    fn from(relation: &Relation<'_>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let columns = relation.columns.iter().map(|column| ColumnSchema {
            key: column.key,
            name: text(column.name),
            type_oid: column.type_oid,
            type_modifier: column.type_modifier,
        });
        Self {
            id: relation.id,
            namespace: text(relation.namespace),
            name: text(relation.name),
            replica_identity: relation.replica_identity,
            columns: columns.collect(),
        }
    }
}

/// A stream has described more tables than are to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyRelations {
    /// As many as are kept.
    pub max: usize,
}

impl fmt::Display for TooManyRelations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the stream describes more than {} tables; allow more, or publish fewer",
            self.max
        )
    }
}

impl core::error::Error for TooManyRelations {}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::{super::Columns, *};

    fn relation(id: Oid, name: &[u8]) -> Relation<'_> {
        Relation {
            xid: None,
            id,
            namespace: b"public",
            name,
            replica_identity: ReplicaIdentity::Index,
            columns: Columns::decode(b"\0\x01\x01id\0\0\0\0\x17\0\0\0\x18").unwrap(),
        }
    }

    #[test]
    fn a_table_is_known_as_it_was_described_last() {
        let mut relations = Relations::new(2);
        let before = relations.insert(&relation(1, b"old")).unwrap();
        relations.insert(&relation(1, b"n\xffw")).unwrap();
        let now = relations.get(1).unwrap();
        assert_eq!((before.name.as_str(), now.name.as_str()), ("old", "n\u{fffd}w"));
        assert_eq!(
            now.columns,
            [ColumnSchema { key: true, name: "id".into(), type_oid: 23, type_modifier: 24 }]
        );
        assert_eq!((now.id, now.replica_identity), (1, ReplicaIdentity::Index));
        assert_eq!(now.namespace, "public");
        assert_eq!(relations.get(2), None);
        relations.clear();
        assert!(relations.is_empty());
    }

    #[test]
    fn a_server_does_not_decide_how_many_are_kept() {
        let mut relations = Relations::new(1);
        relations.insert(&relation(1, b"a")).unwrap();
        let refused = relations.insert(&relation(2, b"b")).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the stream describes more than 1 tables; allow more, or publish fewer"
        );
        relations.insert(&relation(1, b"c")).unwrap();
        assert_eq!((relations.len(), relations.get(1).unwrap().name.as_str()), (1, "c"));
    }
}
