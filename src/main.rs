//! owlpost.
fn main() {}
