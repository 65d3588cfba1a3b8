//! What is different between the clouds' sessions, made from the configuration:
//! for the gateway, and for whoever only checks whether it can be made.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use sha2::Digest;

use super::Dialogue;
use super::enapter::EnapterDialogue;
use super::kaa::{KaaDialogue, Manner};
use crate::cloud::Cloud;
use crate::cloud::enapter::Enapter;
use crate::cloud::kaa::Kaa;
use crate::config::{self, Broker, Communication, EnapterSession, KaaSession};
use crate::message::SessionName;
use crate::outbox::{Batching, Bounds, Outbox};
use crate::upload::BinaryData;

/// See the module documentation.
pub struct Parts {
    /// Its topics and payloads.
    pub cloud: Arc<dyn Cloud>,
    /// What is said and understood.
    pub dialogue: Box<dyn Dialogue>,
    /// Where and as whom to connect.
    pub broker: Broker,
    /// What waits to be sent.
    pub outbox: Arc<Outbox>,
    /// How long accepted messages wait until they are brought to the disk.
    pub sync_every: Duration,
    /// What the topics of its messages depend on: what waits for another one is not sent.
    pub identity: String,
    /// The MQTT client id.
    pub client_id: String,
    /// MQTT quality of service, 0 or 1.
    pub qos: u8,
    /// MQTT keep-alive.
    pub keep_alive: Duration,
    /// Whether the broker is to keep messages while the gateway is away for a
    /// short time. Not where the cloud is asked for what it wants at each connect.
    pub resumes: bool,
    /// Whether the cloud answers questions of drivers.
    pub answers: bool,
    /// Where files go, if the cloud takes any.
    pub binary_data: Option<Arc<BinaryData>>,
    /// The largest software that is taken.
    pub max_software: u64,
}

impl Parts {
    /// The folder of the outbox in the state folder: one for each identity.
    pub fn outbox_folder(&self, name: &SessionName, state: &Path) -> PathBuf {
        state.join("outbox").join(self.label(name))
    }

    /// Where it is noted in the state folder when the broker was heard last.
    pub fn contact_file(&self, name: &SessionName, state: &Path) -> PathBuf {
        state.join("outbox").join(format!("{}.contact", self.label(name)))
    }

    fn label(&self, name: &SessionName) -> String {
        let digest = sha2::Sha256::digest(self.identity.as_bytes());
        let short: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("{name}-{short}")
    }

    /// Where the broker is.
    pub fn address(&self) -> String {
        format!("{}:{}", self.broker.host, self.broker.port)
    }

    /// Those of a session; paths in it start at the configuration's folder.
    pub fn new(name: &SessionName, session: &config::Session, folder: &Path) -> Result<Parts> {
        match session {
            config::Session::Enapter(session) => enapter(name, session, folder),
            config::Session::Kaa(session) => kaa(name, session, folder),
        }
    }
}

fn enapter(name: &SessionName, session: &EnapterSession, folder: &Path) -> Result<Parts> {
    let communication = Communication::load(session, folder)?;
    let cloud = Enapter {
        hardware_id: communication.hardware_id.clone(),
        channel_id: communication.channel_id,
        properties_topic: session.properties_topic,
        needs_ucm: communication.needs_ucm,
    };
    let identity = format!("enapter {} {}", cloud.hardware_id, cloud.channel_id);
    let outbox = Arc::new(Outbox::new(bounds(&session.outbox, Batching::default())));
    Ok(Parts {
        dialogue: Box::new(EnapterDialogue::new(name, cloud.clone(), Arc::clone(&outbox))),
        cloud: Arc::new(cloud),
        broker: communication.broker,
        outbox,
        sync_every: session.outbox.sync_every.0,
        identity,
        client_id: session.client_id.clone().unwrap_or_else(|| format!("sandgate-{}", communication.hardware_id)),
        qos: session.qos,
        keep_alive: session.keep_alive.0,
        resumes: session.qos > 0,
        answers: false,
        binary_data: None,
        max_software: 0,
    })
}

fn kaa(name: &SessionName, session: &KaaSession, folder: &Path) -> Result<Parts> {
    let cloud = Kaa {
        app_version: session.app_version.clone(),
        token: session.gateway_token(folder)?,
        timestamp_field: session.timestamp.field.as_str().into(),
        timestamp_format: session.timestamp.format,
    };
    let outbox = Arc::new(Outbox::new(bounds(&session.outbox, session.batch.batching())));
    let manner = Manner {
        reply_timeout: session.reply_timeout.0,
        configurations: session.configurations.clone(),
        software: session.software,
        request_status: session.request_status,
        check_time: session.check_time,
        poll_every: session.poll_every.0,
    };
    let random = || std::iter::repeat_with(fastrand::alphanumeric).take(8).collect::<String>();
    Ok(Parts {
        cloud: Arc::new(cloud),
        dialogue: Box::new(KaaDialogue::new(name, manner, Arc::clone(&outbox))),
        broker: session.broker(folder)?,
        outbox,
        sync_every: session.outbox.sync_every.0,
        identity: format!("kaa {} {}", session.host, session.app_version),
        client_id: session.client_id.clone().unwrap_or_else(|| format!("sandgate-{}", random())),
        qos: session.qos,
        keep_alive: session.keep_alive.0,
        resumes: false,
        answers: true,
        binary_data: Some(Arc::new(BinaryData::new(&session.binary_data_url(), &session.binary_data_types)?)),
        max_software: session.max_software_size.0,
    })
}

fn bounds(settings: &config::Outbox, batching: Batching) -> Bounds {
    Bounds {
        bytes: settings.max_size.bytes(),
        memory: settings.max_memory.bytes(),
        age: settings.max_age.0,
        batching,
        backfill: settings.backfill.map(|share| share.0),
    }
}
