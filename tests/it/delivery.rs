//! Every committed fact arrives, once, as it was emitted.
