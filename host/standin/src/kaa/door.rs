//! The MQTT side's door: who may come in, the listener, and a task for each
//! connection, which tells why it ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::cloud::Cloud;
use super::mqtt::{PATIENCE, Session};
use super::tls::Acceptor;
use super::user::User;

/// Who may come in, and how.
#[derive(Clone)]
pub(super) struct Door {
    /// Empty lets everybody in.
    pub users: Arc<[User]>,
    /// None for plain MQTT.
    pub tls: Option<Acceptor>,
}

/// Accepts connections as long as the gate is open. While it is closed nothing listens.
pub(super) async fn serve(
    listener: TcpListener,
    cloud: Cloud,
    door: Door,
    mut gate: watch::Receiver<bool>,
    listening: watch::Sender<bool>,
) {
    let address = listener.local_addr();
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        if !*gate.borrow_and_update() {
            listener = None;
            connections.shutdown().await;
            listening.send_replace(false);
            if gate.changed().await.is_err() {
                return;
            }
            continue;
        }
        let Some(open) = &listener else {
            let Ok(address) = address else { return };
            listener = reopen(address).await;
            continue;
        };
        listening.send_replace(true);
        tokio::select! {
            accepted = open.accept() => match accepted {
                Ok((stream, peer)) => {
                    drop(connections.spawn(connection(stream, peer, cloud.clone(), door.clone())));
                }
                // Out of file handles, most likely.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = connections.join_next() => {}
            changed = gate.changed() => if changed.is_err() { return },
        }
    }
}

async fn reopen(address: SocketAddr) -> Option<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Some(listener),
        Err(_) => {
            // Somebody holds the port for a moment.
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, cloud: Cloud, door: Door) {
    let Some((place, inbox)) = cloud.open() else {
        return cloud.tell_ended(&format!("{peer}: too many connections are open"));
    };
    let teller = cloud.clone();
    let serve = async {
        stream.set_nodelay(true).context("setting up the socket")?;
        let Some(tls) = &door.tls else {
            return Session::new(cloud, place, door.users, true).run(stream, inbox).await;
        };
        let (stream, is_trusted) = timeout(PATIENCE, tls.accept(stream)).await.context("no TLS handshake")??;
        Session::new(cloud, place, door.users, is_trusted).run(stream, inbox).await
    };
    if let Err(error) = serve.await {
        teller.tell_ended(&format!("{peer}: {error:#}"));
    }
}
