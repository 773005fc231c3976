//! Two relays, one slot.
