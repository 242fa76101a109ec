//! `luthier bench`: how fast this device runs, next to what it can do at most.
#![expect(non_snake_case, reason = "N, C, F … are the dims of the ops")]
mod attention;
mod fp8;
mod generate;
mod ops;
mod profile;
mod train;
mod weights;
use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand};
use luthier::Result;

/// Measure ops, whole training steps, or generation.
#[derive(Args)]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Ops(ops::Ops),
    Train(train::Train),
    Generate(generate::Generate),
}

/// For clap: a size.
fn at_least(least: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..)
}

impl Bench {
    pub fn run(self) -> Result<()> {
        match self.what {
            What::Ops(args) => args.run(),
            What::Train(args) => args.run(),
            What::Generate(args) => args.run(),
        }
    }
}
