//! `millrace-bench`: the programs that load the data plane and stand in for a model server.

fn main() {}
