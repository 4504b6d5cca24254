//! run
fn main() {}
