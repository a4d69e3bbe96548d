//! `millrace-dataplane`: the forwarder's command line.

fn main() {}
