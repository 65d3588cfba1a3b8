//! The stand-in of a cloud that `demo` and `dev` bring with them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use sandgate_standin::enapter::blueprints::{Source, Sources};
use sandgate_standin::enapter::event::Kind;
use sandgate_standin::{enapter, kaa};

/// Whose API the gateway speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cloud {
    /// The Enapter MQTT API.
    Enapter,
    /// The Kaa MQTT API.
    Kaa,
}

/// The cloud's side; it runs until this is dropped.
pub(crate) struct Standin {
    running: Running,
    /// The gateway's name in Enapter's cloud.
    hardware: String,
}

enum Running {
    Enapter(enapter::Running),
    Kaa(kaa::Running),
}

impl Standin {
    /// Starts the stand-in of a cloud, which knows what the drivers declare.
    pub(crate) async fn start(cloud: Cloud, hardware: &str, drivers: &[PathBuf]) -> Result<Standin> {
        let running = match cloud {
            Cloud::Enapter => {
                let settings = enapter::Settings {
                    hardware_id: Some(hardware.into()),
                    blueprints: sources(drivers),
                    ..enapter::Settings::default()
                };
                Running::Enapter(enapter::start(settings).await?)
            }
            Cloud::Kaa => Running::Kaa(kaa::start(kaa::Settings::default()).await?),
        };
        Ok(Standin { running, hardware: hardware.to_owned() })
    }

    /// Lets it know what the drivers declare now.
    pub(crate) fn know(&self, drivers: &[PathBuf]) -> Result<()> {
        match &self.running {
            Running::Enapter(running) => running.know(&sources(drivers)),
            // Kaa takes whatever comes.
            Running::Kaa(_) => Ok(()),
        }
    }

    /// The session's part of a gateway's configuration.
    pub(crate) fn session(&self) -> String {
        match &self.running {
            Running::Enapter(running) => format!(
                "[sessions.local.enapter]\nhost = \"127.0.0.1\"\nport = {}\nhardware_id = \"{}\"\n",
                running.mqtt.port(),
                self.hardware
            ),
            Running::Kaa(running) => format!(
                "[sessions.local.kaa]\nhost = \"127.0.0.1\"\nport = {}\napp_version = \"demo-v1\"\n\
                 token = {{ value = \"{}\" }}\nbinary_data_url = \"http://127.0.0.1:{}\"\n",
                running.mqtt.port(),
                token_of("gateway"),
                running.http.port()
            ),
        }
    }

    /// A device's part of a gateway's configuration, if it needs one.
    pub(crate) fn token(&self, device: &str) -> Option<String> {
        match self.running {
            Running::Enapter(_) => None,
            Running::Kaa(_) => Some(token_of(device)),
        }
    }

    /// What this cloud calls a device.
    pub(crate) fn name_of(&self, device: &str) -> String {
        match self.running {
            Running::Enapter(_) => format!("s--{device}"),
            Running::Kaa(_) => token_of(device),
        }
    }

    /// A command line that asks it something.
    pub(crate) fn ask(&self, program: &str, what: &str) -> String {
        let (cloud, http) = match &self.running {
            Running::Enapter(running) => ("enapter", running.http.port()),
            Running::Kaa(running) => ("kaa", running.http.port()),
        };
        format!("{program} cloud {cloud} {what} --url http://127.0.0.1:{http}")
    }

    /// Logs what the cloud would drop without a word, for ever.
    pub(crate) async fn tell_drops(&self) {
        let Running::Enapter(running) = &self.running else { return std::future::pending().await };
        let mut next = 0;
        loop {
            let (events, _, after) = running.events(next).await;
            next = after;
            for event in events.iter().filter(|event| event.kind == Kind::Dropped) {
                tracing::warn!("the cloud: {event}");
            }
        }
    }
}

/// A device's token in Kaa's cloud. It counts as a secret, which its id is not.
fn token_of(device: &str) -> String {
    format!("{device}-token")
}

fn sources(drivers: &[PathBuf]) -> Sources {
    let source = |path: &Path| Source { kind: None, path: path.to_owned() };
    Sources { parent: None, children: drivers.iter().map(|path| source(path)).collect() }
}
