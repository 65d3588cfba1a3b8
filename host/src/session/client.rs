//! The MQTT client of one connection: how it is set up, how long it is waited
//! for, and what its errors mean.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, Outgoing, Packet, StateError,
    TlsConfiguration, Transport,
};

use super::{Parts, tls, window};
use crate::config::Credentials;

/// The largest packet in either direction; commands are checked more strictly.
const MAX_PACKET: usize = 16 << 20;
/// How long a broker may take to answer a connect, or to take a little that is written.
const PATIENCE: Duration = Duration::from_secs(15);
/// And for much.
pub(super) const LONGEST_PATIENCE: Duration = Duration::from_secs(180);
/// Bytes a second on the slowest way that is still one.
const SLOWEST: usize = 1 << 10;
/// Requests in the client's channel; hardly ever more than one.
const CHANNEL: usize = 16;

impl Parts {
    /// A client that has not connected yet. With `is_clean` the broker forgets
    /// what it has kept, and keeps nothing.
    pub(super) fn client(&self, is_clean: bool) -> Result<(AsyncClient, EventLoop)> {
        let broker = &self.broker;
        let mut options = MqttOptions::new(&self.client_id, &broker.host, broker.port);
        options.set_keep_alive(self.keep_alive);
        options.set_clean_session(is_clean);
        // A command is acknowledged when it is noted.
        options.set_manual_acks(true);
        options.set_inflight(window::MOST);
        options.set_max_packet_size(MAX_PACKET, MAX_PACKET);
        if let Credentials::Password(user, password) = &broker.credentials {
            options.set_credentials(user, &password.0);
        }
        if let Some(tls) = &broker.tls {
            let config = tls::client_config(tls)?;
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(config))));
        }
        let (client, mut events) = AsyncClient::new(options, CHANNEL);
        events.network_options.set_tcp_nodelay(true);
        events.network_options.set_connection_timeout(PATIENCE.as_secs());
        Ok((client, events))
    }

    /// Lets the broker forget what it has kept for this client.
    pub(super) async fn forget(&self) -> Result<()> {
        let (client, mut events) = self.client(true)?;
        while !matches!(events.poll().await.map_err(explain)?, Event::Incoming(Packet::ConnAck(_))) {}
        client.try_disconnect()?;
        farewell(&mut events).await;
        Ok(())
    }
}

/// Waits until a DISCONNECT is written, or the connection is gone.
pub(super) async fn farewell(events: &mut EventLoop) {
    while let Ok(event) = events.poll().await {
        if matches!(event, Event::Outgoing(Outgoing::Disconnect)) {
            return;
        }
    }
}

/// How long a broker may need to take this many bytes.
pub(super) fn patience(bytes: usize) -> Duration {
    (PATIENCE + Duration::from_secs(u64::try_from(bytes / SLOWEST).unwrap_or(u64::MAX))).min(LONGEST_PATIENCE)
}

/// Whether the broker ended a connection, and not the way to it.
pub(super) fn is_closed_by_peer(error: &ConnectionError) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if matches!(error.downcast_ref(), Some(StateError::ConnectionAborted)) {
            return true;
        }
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof);
        }
        cause = error.source();
    }
    false
}

/// What a write is that took too long.
pub(super) fn slow(_: tokio::time::error::Elapsed) -> ConnectionError {
    ConnectionError::FlushTimeout
}

/// Says what a connection error means, without what it may hold.
pub(super) fn explain(error: ConnectionError) -> anyhow::Error {
    match error {
        ConnectionError::ConnectionRefused(code) => match code {
            ConnectReturnCode::BadUserNamePassword => anyhow::anyhow!("the broker refused the user name or password"),
            ConnectReturnCode::NotAuthorized => anyhow::anyhow!("the broker refused: not authorized"),
            code => anyhow::anyhow!("the broker refused: {code:?}"),
        },
        ConnectionError::NetworkTimeout | ConnectionError::FlushTimeout => {
            anyhow::anyhow!("the broker does not answer")
        }
        other => anyhow::anyhow!("connection lost: {other}"),
    }
}
