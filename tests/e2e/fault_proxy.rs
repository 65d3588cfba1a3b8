//! A way to the broker that goes wrong by plan: it closes, resets, stalls, lies.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rumqttc::Packet;
use rumqttc::mqttbytes::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// What happens at a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// It is passed on.
    Pass,
    /// It is lost, and both sides see the end of the connection.
    Close,
    /// It is passed on; after this time the connection is reset.
    ResetAfter(Duration),
    /// Nothing goes any further, and nobody is told.
    Stall,
    /// It is passed on twice.
    Twice,
    /// It is lost, and everything else goes on.
    Swallow,
    /// Rubbish comes in its place.
    Garble,
    /// A SUBACK refuses all.
    Refuse,
}

/// Decides about a packet to the broker, or from it.
pub type Plan = Box<dyn FnMut(Way, &Packet) -> Act + Send>;

/// In which direction a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Up,
    Down,
}

/// See the module documentation.
pub struct FaultProxy {
    pub port: u16,
    plan: Arc<Mutex<Plan>>,
}

impl FaultProxy {
    pub async fn to(target: u16, plan: Plan) -> FaultProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let plan = Arc::new(Mutex::new(plan));
        let plans = Arc::clone(&plan);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let plan = Arc::clone(&plans);
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(("127.0.0.1", target)).await else { return };
                    connection(near, far, plan).await;
                });
            }
        });
        FaultProxy { port, plan }
    }

    /// From now on another plan counts.
    pub fn follow(&self, plan: Plan) {
        *self.plan.lock().unwrap() = plan;
    }

    /// From now on all is well.
    pub fn heal(&self) {
        self.follow(Box::new(|_, _| Act::Pass));
    }
}

/// Whether a packet is a sample of a device or of the gateway.
pub fn is_sample(packet: &Packet) -> bool {
    matches!(packet, Packet::Publish(publish) if publish.topic.ends_with("/v1/telemetry"))
}

async fn connection(near: TcpStream, far: TcpStream, plan: Arc<Mutex<Plan>>) {
    // A reset needs a socket that throws away what it has.
    let raw = near.into_std().unwrap();
    let again = TcpStream::from_std(raw.try_clone().unwrap()).unwrap();
    let near = TcpStream::from_std(raw).unwrap();
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    let end = tokio::select! {
        end = pump(Way::Up, near_in, far_out, Arc::clone(&plan)) => end,
        end = pump(Way::Down, far_in, near_out, plan) => end,
    };
    if let Some(End::Reset) = end {
        again.set_zero_linger().unwrap();
    }
}

enum End {
    Close,
    Reset,
}

/// Passes packets on until the plan or a side ends it.
async fn pump(way: Way, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, plan: Arc<Mutex<Plan>>) -> Option<End> {
    let mut input = BytesMut::new();
    loop {
        let before = input.clone();
        let packet = match Packet::read(&mut input, usize::MAX) {
            Ok(packet) => packet,
            Err(Error::InsufficientBytes(_)) => match from.read_buf(&mut input).await {
                Ok(1..) => continue,
                _ => return None,
            },
            Err(error) => panic!("{error}"),
        };
        let mut bytes = before;
        bytes.truncate(bytes.len() - input.len());
        let act = (plan.lock().unwrap())(way, &packet);
        match act {
            Act::Pass | Act::ResetAfter(_) => to.write_all(&bytes).await.ok()?,
            Act::Twice => {
                to.write_all(&bytes).await.ok()?;
                to.write_all(&bytes).await.ok()?;
            }
            Act::Garble => {
                let rubbish: Vec<u8> = bytes.chunk().iter().map(|byte| byte ^ 0x5a).collect();
                to.write_all(&rubbish).await.ok()?;
            }
            Act::Refuse => {
                let mut refusing = bytes.to_vec();
                // Type, length, packet id, and a code for each filter.
                refusing.iter_mut().skip(4).for_each(|code| *code = 0x80);
                to.write_all(&refusing).await.ok()?;
            }
            Act::Swallow => {}
            Act::Stall => std::future::pending().await,
            Act::Close => return Some(End::Close),
        }
        if let Act::ResetAfter(time) = act {
            tokio::time::sleep(time).await;
            return Some(End::Reset);
        }
    }
}
