//! The commands, one file each. This is the only place that prints.
mod bench;
mod data;
mod doctor;
mod download;
mod export;
mod generate;
mod init;
mod inspect;
mod interrupt;
mod plan;
mod progress;
mod quantize;
mod train;
use clap::{Parser, Subcommand};

/// A line on standard error; one that nobody reads any more must not end a run.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}
pub(crate) use say;

use luthier::{Error, Result};
use std::io::{self, ErrorKind, Write};

/// Fine-tunes language models on any GPU: CUDA, Vulkan, Metal, DX12, or the CPU.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 ok · 2 command line · 65 content of a file · 69 device · 70 bug · 73 cannot write · \
74 cannot read · 75 stopped itself, resumable · 130 interrupted, resumable"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(train::Train),
    Plan(plan::Plan),
    Generate(generate::Generate),
    Init(init::Init),
    Quantize(quantize::Quantize),
    Export(export::Export),
    Inspect(inspect::Inspect),
    Data(data::Data),
    Bench(bench::Bench),
    Doctor(doctor::Doctor),
}

pub fn run() -> Result<()> {
    match Cli::parse().command {
        Command::Train(args) => args.run(),
        Command::Plan(args) => args.run(),
        Command::Generate(args) => args.run(),
        Command::Init(args) => args.run(),
        Command::Quantize(args) => args.run(),
        Command::Export(args) => args.run(),
        Command::Inspect(args) => args.run(),
        Command::Data(args) => args.run(),
        Command::Bench(args) => args.run(),
        Command::Doctor(args) => args.run(),
    }
}

/// Writes to standard output at once. A reader that went away (`| head`) ends the program quietly.
fn out(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(Error::write("standard output")),
    }
}

/// For clap: the names of a dtype that a model can have.
fn dtype(name: &str) -> Result<luthier::dtype::DType, String> {
    let dtype = luthier::dtype::DType::parse(name);
    dtype.ok_or_else(|| "choose one of bfloat16, float16, float32".to_string())
}
