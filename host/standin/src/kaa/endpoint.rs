//! One endpoint: its token's state and everything that the platform keeps for it.

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::answer::Refusal;
use super::commands::Commands;
use super::configurations::Configurations;
use super::metadata::Metadata;
use super::outcomes::Outcomes;
use super::samples::Samples;
use super::software::Software;

/// One endpoint. In this stand-in its id is its token.
#[derive(Debug)]
pub struct Endpoint {
    /// The state of its token.
    pub state: TokenState,
    /// The application that it belongs to.
    pub application: String,
    /// The app version in whose name it spoke last.
    pub app_version: String,
    /// When it spoke last, in milliseconds since 1970; 0 if never.
    pub last_seen: u64,
    /// What it measured.
    pub samples: Samples,
    /// Its key-values.
    pub metadata: Metadata,
    /// What it is asked to do.
    pub commands: Commands,
    /// Its configurations.
    pub configurations: Configurations,
    /// Its software.
    pub software: Software,
    /// What became of its requests.
    pub outcomes: Outcomes,
}

/// The state of an endpoint token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenState {
    /// Known, never used; the first use makes it active.
    Inactive,
    /// In use.
    Active,
    /// Refused until it is active again.
    Suspended,
    /// Refused for ever.
    Revoked,
}

impl Endpoint {
    /// Makes an endpoint that has not spoken yet.
    pub fn new(application: &str, app_version: &str) -> Endpoint {
        Endpoint {
            state: TokenState::Inactive,
            application: application.to_owned(),
            app_version: app_version.to_owned(),
            last_seen: 0,
            samples: Samples::default(),
            metadata: Metadata::default(),
            commands: Commands::default(),
            configurations: Configurations::default(),
            software: Software::default(),
            outcomes: Outcomes::default(),
        }
    }

    /// Lets the endpoint in, or says why not.
    pub fn admit(&mut self) -> Result<(), Refusal> {
        match self.state {
            TokenState::Inactive | TokenState::Active => {
                self.state = TokenState::Active;
                Ok(())
            }
            TokenState::Suspended => Err(Refusal::forbidden("token: suspended")),
            TokenState::Revoked => Err(Refusal::new(401, "token: revoked")),
        }
    }

    /// Changes the token's state; a revoked one stays revoked.
    pub fn set_state(&mut self, state: TokenState) -> Result<(), Refusal> {
        if self.state == TokenState::Revoked && state != TokenState::Revoked {
            return Err(Refusal::new(409, "token: revoked, which cannot be taken back"));
        }
        self.state = state;
        Ok(())
    }

    /// Forgets what the endpoint observes, as a new connection begins.
    pub fn forget_observers(&mut self) {
        self.commands.forget_observers();
        self.configurations.forget_observers();
        self.software.forget_observers();
    }

    /// What `endpoints` shows.
    pub fn summary(&self, token: &str, connected: bool) -> Json {
        json!({
            "endpoint": token,
            "state": self.state,
            "connected": connected,
            "application": self.application,
            "appVersion": self.app_version,
            "lastSeen": self.last_seen,
            "samples": self.samples.count(),
            "batches": self.samples.batches(),
            "software": self.software.version(),
            "softwareReport": self.software.last_report(),
            "configurations": self.configurations.applied(),
        })
    }
}
