//! Those who read what comes from outside, each as a function of bytes. Whatever
//! the bytes are: none panics, hangs, or takes more memory than its bounds say.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sandgate::clock::{Moment, TimeFormat};
use sandgate::cloud::Cloud;
use sandgate::cloud::enapter::Enapter;
use sandgate::cloud::kaa::Kaa;
use sandgate::config::{Config, Endpoint, KaaEndpoint, PropertiesTopic, Secret, Source};
use sandgate::journal::Journal;
use sandgate::manifest::{Manifest, clean_blueprint};
use sandgate::message::{DeviceId, SessionName, Uplink};
use sandgate::outbox::{Bounds, Class, Outbox};
use sandgate::router::{Recipient, Table};
use sandgate::sandbox::replay::describe;
use sandgate::session::kaa::{KaaDialogue, Manner};
use sandgate::session::{Dialogue, Facts, Picture};
use sandgate::tape::{Kind, Tape};

/// A target by its name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 8] = [
    ("enapter", enapter),
    ("kaa", kaa),
    ("configuration", configuration),
    ("manifest", manifest),
    ("component", component),
    ("outbox", outbox),
    ("journal", journal),
    ("tape", tape),
];

/// A topic, a line end, a payload.
fn message(data: &[u8]) -> (String, &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (topic, payload) = data.split_at(end);
    (String::from_utf8_lossy(topic).into_owned(), payload.get(1..).unwrap_or_default())
}

/// A message to Enapter's side.
pub fn enapter(data: &[u8]) {
    let cloud = Enapter {
        hardware_id: "S01".into(),
        channel_id: "s".into(),
        properties_topic: PropertiesTopic::Properties,
        needs_ucm: true,
    };
    let (topic, payload) = message(data);
    if let Ok((channel, request)) = cloud.decode(&topic, payload) {
        assert!(!channel.is_empty() && !request.id.is_empty() && !request.name.is_empty());
        // What answers it can be written.
        let channel = cloud.device(&DeviceId::new("d"), None).unwrap();
        let result = Ok(Vec::new());
        assert!(!channel.encoder.encode(&Uplink::CommandResult { command: &request.id, result: &result }).is_empty());
    }
}

/// Messages to Kaa's side, one after another, with a zero byte between them;
/// between them the dialogue says what it wants to say.
pub fn kaa(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let cloud = Kaa {
            app_version: "v1".into(),
            token: None,
            timestamp_field: "t".into(),
            timestamp_format: TimeFormat::Seconds,
        };
        let token = Source::Value(Secret("token".into()));
        let endpoint = Endpoint::Kaa(KaaEndpoint { token, app_version: None, plain: Default::default() });
        let device = Recipient::Device(DeviceId::new("d"));
        let channel = cloud.device(&DeviceId::new("d"), Some(&endpoint)).unwrap();
        let facts = Facts { commands: vec!["ping".into()], version: Some("1.0.0".into()), ..Facts::default() };
        let picture = Picture {
            table: Table::new([(device.clone(), channel)].into_iter()),
            greeting: Default::default(),
            devices: HashMap::new(),
            facts: [(device, facts)].into(),
        };
        let manner = Manner {
            reply_timeout: Duration::from_secs(15),
            configurations: vec!["named".into()],
            software: true,
            request_status: true,
            check_time: true,
            poll_every: Duration::from_secs(600),
        };
        let outbox =
            Arc::new(Outbox::new(Bounds { bytes: 1 << 20, age: Duration::from_secs(60), ..Bounds::default() }));
        let mut dialogue = KaaDialogue::new(&SessionName::new("s"), manner, outbox);
        dialogue.connected(&picture, 0);
        for part in data.split(|byte| *byte == 0).take(32) {
            let now = tokio::time::Instant::now();
            while dialogue.next(now).is_some() {}
            let (topic, payload) = message(part);
            dialogue.receive(&format!("kp1/v1/{topic}"), payload, now);
            tokio::time::advance(Duration::from_secs(1)).await;
            dialogue.wake(tokio::time::Instant::now(), 0);
        }
    });
}

/// The gateway's configuration.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(error) = Config::parse(text) {
        assert!(!error.is_empty());
    }
}

/// A driver's manifest.
pub fn manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Manifest::parse(text) {
        Ok(manifest) => drop(clean_blueprint(&manifest)),
        Err(error) => assert!(!error.is_empty()),
    }
}

/// A file that says it is a driver.
pub fn component(data: &[u8]) {
    if let Ok(inspection) = sandgate::manifest::component::inspect(data) {
        let _ = inspection.manifest();
    }
}

/// A folder that is gone afterwards, also when threads still write into it for a moment.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap().keep())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for _ in 0..1000 {
            let _ = std::fs::remove_dir_all(&self.0);
            if !self.0.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A file of an outbox that somebody or a disk has changed.
pub fn outbox(data: &[u8]) {
    let folder = Folder::new();
    std::fs::write(folder.0.join(format!("{:016}.log", 3)), data).unwrap();
    let bounds = Bounds { bytes: 1 << 20, memory: 64 << 10, age: Duration::from_secs(3600), ..Bounds::default() };
    let outbox = Arc::new(Outbox::new(bounds));
    outbox.keep_in(&folder.0, Duration::ZERO).unwrap();
    let publication =
        sandgate::message::Publication { topic: "t".into(), payload: bytes::Bytes::new(), joins: false, stamp: None };
    outbox.append(&DeviceId::new("d"), Class::Answer, Moment::now(), publication);
    while let Some(batch) = outbox.take(tokio::time::Instant::now()) {
        batch.parts.iter().for_each(|(sequence, _)| outbox.acknowledge(*sequence));
    }
}

/// A journal of commands that somebody or a disk has changed.
pub fn journal(data: &[u8]) {
    let folder = Folder::new();
    let path = folder.0.join("commands.jsonl");
    std::fs::write(&path, data).unwrap();
    let (journal, leftovers) = Journal::open(&path, Duration::from_secs(60)).unwrap();
    drop(leftovers);
    drop(journal);
}

/// A tape that somebody has sent, or a disk has changed.
pub fn tape(data: &[u8]) {
    let Ok(tape) = Tape::read(data) else { return };
    let mut number = 0;
    for moment in tape.moments() {
        if matches!(moment.event.kind, Kind::Call | Kind::Import) {
            number = moment.event.number;
        }
        assert!(!describe(moment.event, number).is_empty());
    }
    assert!(tape.calls().len() as u64 == tape.extent().0);
    assert!(Tape::read(&tape.to_bytes()).is_ok_and(|again| again.chunks == tape.chunks));
}
