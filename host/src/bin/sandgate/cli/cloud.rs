//! `sandgate cloud`: local stand-ins for clouds, and the commands that ask a running one.

mod enapter;
mod kaa;

use anyhow::Result;
use clap::Subcommand;

use super::Outcome;

#[derive(Debug, Subcommand)]
pub(super) enum Cloud {
    /// Run a stand-in for the Kaa communication service, or ask a running one.
    #[command(args_conflicts_with_subcommands = true)]
    Kaa(Box<kaa::Options>),
    /// Run a stand-in for the cloud side of Enapter, or ask a running one.
    #[command(args_conflicts_with_subcommands = true)]
    Enapter(Box<enapter::Options>),
}

/// `sandgate cloud …`
pub(super) async fn run(cloud: Cloud, json: bool) -> Result<Outcome> {
    match cloud {
        Cloud::Kaa(options) => kaa::run(*options, json).await,
        Cloud::Enapter(options) => enapter::run(*options, json).await,
    }
}
