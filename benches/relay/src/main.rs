//! owlpost as a process, between real servers, beside its floor and its ceiling: `make bench-drain` and the like.
//!
//! Each benchmark adds a run to a JSON file with every number that was measured. Tables and plots of the documentation
//! are made from such files by `relay-bench render`, and typed by nobody.
#![allow(clippy::disallowed_methods, reason = "a benchmark lives in real time")]

mod bars;
mod drain;
mod growth;
mod latency;
mod memory;
mod null_broker;
mod proc;
mod raw_reader;
mod render;
mod run;
mod shape;
mod spread;
mod stage;
mod verify;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(about, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How fast a backlog drains, beside the ceiling and pg_recvlogical
    Drain(drain::Arguments),
    /// How long a fact takes while the relay is caught up, and what it costs then
    Latency(latency::Arguments),
    /// How the cost of a fact grows with whatever there is more of
    Growth(growth::Arguments),
    /// Peak memory when Kafka is down, facts are large, topics many; fails when a bound is broken
    Memory(memory::Arguments),
    /// Tables and plots of the documentation from the runs that are kept there, and each bar: met or missed
    Render(render::Arguments),
    /// Be the raw reader
    #[command(hide = true)]
    RawReader(raw_reader::RawReader),
    /// Be the null broker
    #[command(hide = true)]
    NullBroker(shape::Shape),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Drain(arguments) => drain::run(&arguments),
        Command::Latency(arguments) => latency::run(&arguments),
        Command::Growth(arguments) => growth::run(&arguments),
        Command::Memory(arguments) => return memory::run(&arguments),
        Command::Render(arguments) => render::run(&arguments),
        Command::RawReader(reader) => drain::read_raw(&reader),
        Command::NullBroker(shape) => null_broker::serve(shape).expect("the null broker's sockets"),
    }
    ExitCode::SUCCESS
}
