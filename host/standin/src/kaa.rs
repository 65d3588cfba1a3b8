//! A stand-in for the Kaa communication service: the device side of 1/KP over MQTT and HTTP, and the
//! platform calls that a tester needs.
//!
//! `sandgate cloud kaa` runs it as a program, tests call `start`. It follows the public 1/KP documents and what has
//! been seen of the real service. An endpoint's id is its token here. All state is in memory and every store has a
//! bound, which stands as a constant in its module.
//!
//! Where the documents are silent it does this:
//!
//! - A token speaks when a message with it comes; SUBSCRIBE alone attaches nothing. What goes to an endpoint goes to
//!   its last speaker, subscribed or not, and a copy to every other connection that has subscribed to the topic, so
//!   that a generic client can look on. The knob `broker-mode` delivers to subscribers only.
//! - A newly attached endpoint is sent the configuration and software that it has not applied, but no commands, and
//!   what it observes is forgotten: it is pushed to until it says `"observe": false` again.
//! - 400 for a payload or topic that is wrong, 401 for a revoked token, 403 for a suspended one and for metadata that
//!   devices may not touch, 404 for what is not known, 413 for what is too large, 504 for a reliable receiver that
//!   does not answer, 507 for a store that is full. The reason says what was expected.
//! - A topic that is not of 1/KP is dropped and noted; the connection stays, unless `close-on-bad-topic` is set.
//! - A second result of a command is taken without complaint and the first one stays; an id that is not known or has
//!   expired is a 404, and the other results of the same message are recorded all the same.
//! - Software is pushed when it is offered, when an endpoint attaches and when it tells a new version; the newest offer
//!   that fits counts, and a rejected one is offered again.
//! - MQTT is 3.1, 3.1.1 or 5, sessions are always clean, a second connection with the same client id closes the first one.

pub mod answer;
mod body;
mod clock;
pub mod cloud;
pub mod cmp;
pub mod commands;
pub mod configurations;
mod door;
pub mod endpoint;
pub mod events;
pub mod faults;
mod http;
mod links;
pub mod metadata;
mod mqtt;
mod mqtt31;
mod outcomes;
mod platform;
mod routes;
pub mod samples;
mod series;
pub mod service;
pub mod software;
mod tls;
pub mod topic;
mod uploads;
mod user;

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use self::cloud::Cloud;
pub use self::faults::Fault;
pub use self::service::Rules;
pub use self::tls::Tls;
pub use self::user::User;

/// How a stand-in is started.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where MQTT is served; port 0 takes a free one.
    pub mqtt: SocketAddr,
    /// Where HTTP is served; port 0 takes a free one.
    pub http: SocketAddr,
    /// Who may connect by MQTT; empty lets everybody in.
    pub users: Vec<User>,
    /// MQTT by TLS instead of plain; HTTP stays plain.
    pub tls: Option<Tls>,
    /// How the platform is set up.
    pub rules: Rules,
    /// What goes wrong from the start.
    pub faults: Vec<Fault>,
}

impl Default for Settings {
    /// Free ports of this machine, everything allowed, nothing goes wrong.
    fn default() -> Settings {
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Settings { mqtt: free, http: free, users: Vec::new(), tls: None, rules: Rules::default(), faults: Vec::new() }
    }
}

/// A running stand-in; it stops when this is dropped.
#[derive(Debug)]
pub struct Running {
    /// Where MQTT is served.
    pub mqtt: SocketAddr,
    /// Where HTTP is served.
    pub http: SocketAddr,
    /// The state, to look at and to play the platform.
    pub cloud: Cloud,
    gate: watch::Sender<bool>,
    listening: watch::Receiver<bool>,
    // HTTP connections end when this is dropped.
    stop: Option<watch::Sender<()>>,
    tasks: JoinSet<()>,
}

/// Starts a stand-in with empty state.
pub async fn start(settings: Settings) -> Result<Running> {
    let cloud = Cloud::new(settings.rules.clone());
    start_with(cloud, settings).await
}

/// Starts a stand-in with the state of an earlier one; the rules stay as they were.
pub async fn start_with(cloud: Cloud, settings: Settings) -> Result<Running> {
    for fault in &settings.faults {
        cloud.set_fault(&fault.to_string()).context("setting a fault")?;
    }
    let tls = settings.tls.as_ref().map(tls::Acceptor::new).transpose()?;
    let door = door::Door { users: settings.users.into(), tls };
    let mqtt = bind(settings.mqtt).await?;
    let http = bind(settings.http).await?;
    let (mqtt_address, http_address) = (mqtt.local_addr()?, http.local_addr()?);
    let (gate, is_open) = watch::channel(true);
    let (report, listening) = watch::channel(true);
    let mut tasks = JoinSet::new();
    tasks.spawn(door::serve(mqtt, cloud.clone(), door, is_open, report));
    let (stop, is_stopped) = watch::channel(());
    tasks.spawn(http::serve(http, cloud.clone(), is_stopped));
    Ok(Running { mqtt: mqtt_address, http: http_address, cloud, gate, listening, stop: Some(stop), tasks })
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))
}

impl Running {
    /// Closes all MQTT connections and refuses new ones until `resume`; HTTP goes on.
    pub async fn pause(&mut self) {
        self.gate.send_replace(false);
        // It ends only if the task has ended, and then nothing listens either.
        let _ = self.listening.wait_for(|listening| !listening).await;
    }

    /// Accepts MQTT connections again, on the same port.
    pub async fn resume(&mut self) {
        self.gate.send_replace(true);
        let _ = self.listening.wait_for(|listening| *listening).await;
    }

    /// Closes all MQTT connections at once; clients may come back.
    pub fn disconnect_all(&self) {
        self.cloud.disconnect_all();
    }

    /// Stops; the ports are free afterwards, and the state can be started again with `start_with`.
    pub async fn stop(mut self) -> Cloud {
        self.stop = None;
        self.tasks.shutdown().await;
        self.cloud.clone()
    }
}
