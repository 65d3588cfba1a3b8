//! The cloud side of the Enapter MQTT API on one machine, for driver authors
//! and tests.
//!
//! Gateways connect to its MQTT port; commands and samples go over HTTP. What
//! the cloud would drop without a word is dropped and counted, and told in the
//! stand-in's log, each thing once for a connection. Everything is in memory
//! and bounded, and ends with `Running`. There are no credentials and no TLS:
//! listen on loopback.
//!
//! | kept | bound |
//! |---|---|
//! | devices | 2,000, the longest gone make room |
//! | telemetry | 10,000 samples a device, 64 MiB in all; whoever has most gives |
//! | properties, log | 64 KiB and 64 KiB or 1,000 lines a device |
//! | commands | 100 open, 1,000 or 16 MiB ended, 64 KiB of progress each |
//! | events | 5,000 or 4 MiB |
//! | a payload | 256 KiB; a packet of more than 4 MiB ends its connection |
//! | connections | 250, with 4,000 subscriptions and 4 MiB of waiting messages each |

pub mod blueprints;
pub mod channel;
pub mod event;
pub mod execution;
mod http;
pub mod platform;
pub mod ring;
pub mod rules;
pub mod topic;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::blueprints::{Blueprints, Sources};
use self::event::Event;
use self::platform::Platform;
use super::broker::{Broker, Happening};
use crate::time::{Time, now};

/// How a stand-in runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where gateways connect; port 0 takes a free one.
    pub mqtt: SocketAddr,
    /// Where the HTTP API listens; port 0 takes a free one.
    pub http: SocketAddr,
    /// The only hardware id that may publish; none for any.
    pub hardware_id: Option<String>,
    /// The blueprints that it knows.
    pub blueprints: Sources,
    /// How long a command may take when nobody says otherwise. The platform's
    /// own time is not public.
    pub command_timeout: Duration,
}

impl Default for Settings {
    /// Free ports on loopback, any hardware id, no blueprints, 30 s for a command.
    fn default() -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Settings {
            mqtt: loopback,
            http: loopback,
            hardware_id: None,
            blueprints: Sources::default(),
            command_timeout: Duration::from_secs(30),
        }
    }
}

/// A stand-in that runs; it ends when this is dropped.
pub struct Running {
    /// Where gateways connect.
    pub mqtt: SocketAddr,
    /// Where the HTTP API listens.
    pub http: SocketAddr,
    /// What it knows at its start, for people.
    pub knows: String,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

/// What the broker and the HTTP side share.
struct Shared {
    platform: Mutex<Platform>,
    /// Changes with everything that happens.
    changed: watch::Sender<()>,
    /// Whether the stand-in has ended; requests that wait end with it.
    closed: AtomicBool,
    command_timeout: Duration,
}

impl Shared {
    /// Looks at the platform.
    fn platform(&self) -> MutexGuard<'_, Platform> {
        self.platform.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the platform and tells those who wait.
    fn change<T>(&self, change: impl FnOnce(&mut Platform, Time) -> T) -> T {
        let result = change(&mut self.platform(), now());
        self.changed.send_replace(());
        result
    }
}

/// Starts a stand-in: reads the blueprints, opens both ports.
pub async fn start(settings: Settings) -> Result<Running> {
    if let Some(id) = settings.hardware_id.as_deref().filter(|id| !topic::is_id(id)) {
        bail!("hardware id: expected visible characters without /, + and #, found {id:?}");
    }
    let blueprints = Blueprints::load(&settings.blueprints)?;
    let knows = knows(&blueprints, settings.hardware_id.as_deref());
    let mqtt = bind(settings.mqtt).await.context("opening the MQTT port")?;
    let http = bind(settings.http).await.context("opening the HTTP port")?;
    let (mqtt_address, http_address) = (mqtt.local_addr()?, http.local_addr()?);
    let shared = Arc::new(Shared {
        platform: Mutex::new(Platform::new(blueprints, settings.hardware_id)),
        changed: watch::Sender::new(()),
        closed: AtomicBool::new(false),
        command_timeout: settings.command_timeout,
    });
    let observer = Arc::clone(&shared);
    let broker = Broker::new(Box::new(move |happening| observe(&observer, &happening)));
    let mut tasks = JoinSet::new();
    tasks.spawn(broker.clone().run(mqtt));
    tasks.spawn(expire(Arc::clone(&shared)));
    tasks.spawn(http::serve(http, Arc::clone(&shared), broker));
    Ok(Running { mqtt: mqtt_address, http: http_address, knows, shared, _tasks: tasks })
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        self.shared.changed.send_replace(());
    }
}

impl Running {
    /// Reads blueprints, which count from now on in the place of those before.
    pub fn know(&self, sources: &Sources) -> Result<()> {
        let blueprints = Blueprints::load(sources)?;
        self.shared.change(|platform, _| platform.know(blueprints));
        Ok(())
    }

    /// The events from a number on, how many before them are forgotten, and the
    /// number to go on from. Waits until there is at least one.
    pub async fn events(&self, from: u64) -> (Vec<Event>, u64, u64) {
        let mut changed = self.shared.changed.subscribe();
        loop {
            {
                let platform = self.shared.platform();
                let ring = platform.events().ring();
                if ring.end() > from {
                    return (ring.from(from).cloned().collect(), ring.missed(from), ring.end());
                }
            }
            // The sender lives as long as this.
            let _ = changed.changed().await;
        }
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))
}

fn observe(shared: &Shared, happening: &Happening<'_>) {
    shared.change(|platform, now| match *happening {
        Happening::Connected { link, client } => platform.connected(link, client, now),
        Happening::Published { link, topic, payload } => platform.take(link, topic, payload, now),
        Happening::Disconnected { link, reason } => platform.disconnected(link, reason, now),
        Happening::Refused { reason } => platform.note(&format!("refused a connection: {reason}"), now),
    });
}

/// Ends commands whose time is over.
async fn expire(shared: Arc<Shared>) {
    let mut changed = shared.changed.subscribe();
    loop {
        changed.mark_unchanged();
        let (next, time) = {
            let mut platform = shared.platform();
            let time = now();
            let before = platform.events().ring().end();
            let next = platform.expire(time);
            let expired = platform.events().ring().end() > before;
            drop(platform);
            if expired {
                shared.changed.send_replace(());
            }
            (next, time)
        };
        let wait = async {
            match next {
                Some(next) => tokio::time::sleep(Duration::from_millis(next.saturating_sub(time))).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {}
            _ = changed.changed() => {}
        }
    }
}

/// What the stand-in holds messages against, in one line.
fn knows(blueprints: &Blueprints, hardware: Option<&str>) -> String {
    let children: Vec<&str> = blueprints.known().collect();
    let children = if children.is_empty() { "none".into() } else { children.join(", ") };
    let parent = blueprints.parent().map_or("none", |parent| parent.blueprint.display_name.as_str());
    let hardware = hardware.unwrap_or("any");
    format!("hardware id: {hardware}; blueprint of the parent: {parent}; of child types: {children}")
}
