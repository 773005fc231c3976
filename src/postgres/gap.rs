//! A slot that is lost, made anew by somebody who accepts what that means.

use super::connection::Connection;
use super::identify::{Ask, answered, gone, look};
use super::setup::{self, Gap, Names, leave_gap};
use crate::relay::gone::Gone;
use factlib_protocol::Lsn;

/// The gap that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Where it begins.
    pub gap: Gap,
    /// Where it ends, the new slot's consistent point: facts committed from there on are published.
    pub to: Lsn,
}

/// Drops what is left of a slot of ours that is lost or gone, and makes it anew. A slot that can still be read is
/// never touched.
///
/// # Errors
///
/// [`Gone`]: there is nothing to accept, or what the server says.
///
/// # Cancel safety
///
/// Dropping the future closes the connection. What it leaves is resumed by the next call, which still knows where
/// the gap begins.
pub async fn accept_gap(ask: &Ask) -> Result<Accepted, Gone> {
    let mut connection = Connection::connect(&ask.postgres).await.map_err(gone)?;
    let (_, found) = answered(look(&mut connection, ask)).await.map_err(gone)?;
    let names = Names {
        slot: &ask.slot,
        publication: &ask.publication,
        prefixes: &ask.prefixes,
        failover: ask.failover,
    };
    let gap = setup::gap(&found, names).map_err(|(kind, reason)| Gone::Terminal(kind, reason))?;
    let to = leave_gap(&mut connection, &gap, &found, names).await.map_err(gone)?;
    Ok(Accepted { gap, to })
}
