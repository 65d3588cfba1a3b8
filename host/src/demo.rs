//! x
use clap::Args;
/// x
#[derive(Debug, Args)]
pub struct Options {}
/// x
pub async fn run(_: Options) -> anyhow::Result<()> { Ok(()) }
