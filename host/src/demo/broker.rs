//! An MQTT broker in this process, for the demo and the tests.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, Result};
use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

/// Starts a broker on loopback and returns its port. It runs until the program
/// ends: the library has no way to stop it.
pub fn start() -> Result<u16> {
    let listen = free_address()?;
    let connections = ConnectionSettings {
        connection_timeout_ms: 10_000,
        max_payload_size: 4 << 20,
        max_inflight_count: 500,
        auth: None,
        external_auth: None,
        dynamic_filters: true,
    };
    let server = ServerSettings { name: "demo".into(), listen, tls: None, next_connection_delay_ms: 1, connections };
    let router = RouterConfig {
        max_connections: 1000,
        max_outgoing_packet_count: 1000,
        max_segment_size: 10 << 20,
        max_segment_count: 4,
        ..RouterConfig::default()
    };
    let config = Config {
        id: 0,
        router,
        v4: Some(HashMap::from([("demo".to_owned(), server)])),
        v5: None,
        ws: None,
        cluster: None,
        console: None,
        bridge: None,
        prometheus: None,
        metrics: None,
    };
    std::thread::Builder::new()
        .name("broker".into())
        .spawn(move || {
            if let Err(error) = Broker::new(config).start() {
                tracing::error!("the broker ended: {error}");
            }
        })
        .context("starting the broker")?;
    wait_for(listen)?;
    Ok(listen.port())
}

/// An address that nobody listens on now. Below the ports that the system
/// gives away by itself, or somebody could get it before the broker does.
fn free_address() -> Result<SocketAddr> {
    let mut candidates = std::iter::repeat_with(|| fastrand::u16(15_000..32_000)).take(100);
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let port = candidates.find(is_free).context("finding a free port")?;
    Ok((Ipv4Addr::LOCALHOST, port).into())
}

/// Waits until the broker accepts connections.
fn wait_for(address: SocketAddr) -> Result<()> {
    for _ in 0..6000 {
        if std::net::TcpStream::connect(address).is_ok() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    anyhow::bail!("the broker does not listen on {address}")
}
