//! What commands that list things by name have in common.

use clap::Args;

/// Which part of a long list, and how it is printed.
#[derive(Debug, Args)]
pub(super) struct Listing {
    /// Only those that start so
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(super) prefix: String,
    /// Go on behind this one
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(super) after: String,
    /// Print one JSON object per line
    #[arg(long)]
    pub(super) json: bool,
}
