//! HTTP of the gateway itself, to its clouds: uploads and downloads.
//!
//! What drivers do over HTTP is in `sandbox::http`, with its own rules.

use std::time::Duration;

use anyhow::{Context, Result};

/// How long a cloud may be silent before it counts as gone.
const SILENCE: Duration = Duration::from_secs(30);

/// A client that follows a few redirects, as stores of files need it.
pub fn client() -> Result<reqwest::Client> {
    // The first one in the process counts; all are the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::limited(3))
        .connect_timeout(Duration::from_secs(15))
        .read_timeout(SILENCE)
        .user_agent(concat!("sandgate/", env!("CARGO_PKG_VERSION")))
        .build()
        .context("starting the HTTP client")
}

/// An error with its causes, without the URL: it may hold a secret.
pub fn describe(error: &reqwest::Error) -> String {
    let mut text = match (error.is_connect(), error.is_builder()) {
        (true, _) => "cannot connect".to_owned(),
        (_, true) => "malformed request".to_owned(),
        _ => "exchange failed".to_owned(),
    };
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
