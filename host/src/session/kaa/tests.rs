//! The dialogue as a table of what is said and answered; no connection needed.

use serde_json::json;

use super::*;
use crate::clock::{Moment, TimeFormat};
use crate::cloud::Cloud;
use crate::cloud::kaa::Kaa;
use crate::config::{Endpoint, KaaEndpoint, Secret, Source};
use crate::message::{DeviceId, OfferKind, SessionName};
use crate::outbox::{Bounds, Class};

struct Talk {
    dialogue: KaaDialogue,
    outbox: Arc<Outbox>,
    picture: Picture,
    now: Instant,
}

fn picture(token: &str, facts: Facts) -> Picture {
    let cloud = Kaa {
        app_version: "v1".into(),
        token: None,
        timestamp_field: "timestamp".into(),
        timestamp_format: TimeFormat::Milliseconds,
    };
    let device = DeviceId::new("d");
    let endpoint =
        KaaEndpoint { token: Source::Value(Secret(token.into())), app_version: None, plain: BTreeMap::new() };
    let channel = cloud.device(&device, Some(&Endpoint::Kaa(endpoint))).unwrap();
    let recipient = Recipient::Device(device);
    Picture {
        table: Table::new([(recipient.clone(), channel)].into_iter()),
        facts: HashMap::from([(recipient, facts)]),
        ..Picture::default()
    }
}

impl Talk {
    fn begin(change: impl FnOnce(&mut Manner), facts: Facts) -> Talk {
        let mut manner = Manner {
            reply_timeout: Duration::from_secs(15),
            configurations: Vec::new(),
            software: true,
            request_status: false,
            check_time: false,
            poll_every: Duration::from_secs(600),
        };
        change(&mut manner);
        let bounds = Bounds { bytes: 1 << 20, age: Duration::from_secs(3600), ..Bounds::default() };
        let outbox = Arc::new(Outbox::new(bounds));
        let dialogue = KaaDialogue::new(&SessionName::new("s"), manner, Arc::clone(&outbox));
        let mut talk = Talk { dialogue, outbox, picture: picture("t", facts), now: Instant::now() };
        talk.dialogue.connected(&talk.picture, 0);
        talk
    }

    fn append(&self, topic: &str, payload: &'static str) {
        let publication = Publication {
            topic: topic.into(),
            payload: Bytes::from_static(payload.as_bytes()),
            joins: true,
            stamp: None,
        };
        self.outbox.append(&DeviceId::new("d"), Class::Keep, Moment::now(), publication);
    }

    /// What is said now: topics without the number, and the whole of the last topic.
    fn said(&mut self) -> (Vec<String>, String) {
        let mut last = String::new();
        let messages = std::iter::from_fn(|| self.dialogue.next(self.now));
        let topics = messages.map(|message| {
            last = message.publication.topic.to_string();
            last.rsplit_once('/').unwrap().0.to_owned()
        });
        (topics.collect(), last)
    }

    /// Answers all that is said now.
    fn settle(&mut self) {
        while let Some(message) = self.dialogue.next(self.now) {
            let topic = format!("{}/status", message.publication.topic);
            self.hear(&topic, b"");
        }
    }

    fn hear(&mut self, topic: &str, payload: &[u8]) -> Vec<Event> {
        let mut events = self.dialogue.receive(topic, payload, self.now);
        events.retain(|event| !matches!(event, Event::Answered { .. }));
        events
    }

    fn refuse(&mut self, topic: &str, code: u16) {
        let error = json!({"statusCode": code, "reasonPhrase": "no"}).to_string();
        self.hear(&format!("{topic}/error"), error.as_bytes());
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.dialogue.wake(self.now, 0);
    }
}

const SAMPLES: &str = "kp1/v1/dcx/t/json";

#[test]
fn the_answer_for_a_device_that_is_gone_still_counts() {
    let mut talk = Talk::begin(|_| (), Facts::default());
    talk.said();
    talk.append(SAMPLES, "1");
    let (_, sent) = talk.said();
    talk.dialogue.changed(&picture("other", Facts::default()), 0);
    assert!(talk.hear(&format!("{sent}/status"), b"").is_empty());
    assert_eq!((talk.outbox.stats().waiting, talk.outbox.stats().delivered), (0, 1));
    let refused = talk.hear("kp1/v1/cex/t/command/go/status", b"[]");
    assert!(matches!(&refused[..], [Event::Refused(text)] if text.contains("not configured")), "{refused:?}");
    // What it asked for itself is not asked again.
    talk.said();
    talk.pass(Duration::from_secs(20));
    let (again, _) = talk.said();
    assert!(again.iter().all(|topic| topic.contains("/other/")), "{again:?}");
}

#[test]
fn what_was_to_be_ascertained_is_not_lost_when_the_connection_ends_at_once() {
    let mut talk = Talk::begin(|manner| manner.request_status = true, Facts::default());
    talk.said();
    talk.append(SAMPLES, "1");
    talk.said();
    talk.dialogue.connected(&talk.picture.clone(), 0);
    talk.dialogue.connected(&talk.picture.clone(), 0);
    let (topics, sent) = talk.said();
    assert_eq!(topics.last().map(String::as_str), Some(SAMPLES), "{topics:?}");
    talk.hear(&format!("{sent}/status"), b"");
    assert_eq!(talk.outbox.stats().waiting, 0);
}

#[test]
fn names_that_mean_something_elsewhere_are_no_answers_end() {
    let mut talk = Talk::begin(|_| (), Facts::default());
    talk.said();
    for topic in ["kp1/v1/cex/t/result/status", "kp1/v1/dcx/t/plain/error", "kp1/v1/dcx/t/plain/7"] {
        talk.append(topic, r#"{"id":1}"#);
        let (topics, sent) = talk.said();
        assert_eq!(topics, [topic]);
        talk.hear(&format!("{sent}/status"), b"");
        assert_eq!(talk.outbox.stats().waiting, 0, "{topic}");
    }
}

#[test]
fn a_refused_property_waits_alone_and_is_kept_as_long_as_nothing_passes() {
    let mut talk = Talk::begin(|_| (), Facts::default());
    talk.settle();
    talk.append("kp1/v1/epmx/t/update/keys", "{}");
    for refusals in 1..=10 {
        let (topics, sent) = talk.said();
        assert!(topics.contains(&"kp1/v1/epmx/t/update/keys".to_owned()), "{refusals}: {topics:?}");
        talk.refuse(&sent, 403);
        talk.pass(Duration::from_millis(1));
        assert_eq!(talk.said().0, Vec::<String>::new());
        talk.pass(Duration::from_secs(121));
    }
    assert_eq!((talk.outbox.stats().rejected, talk.outbox.stats().waiting), (0, 1));
}

#[test]
fn a_refused_property_is_given_up_once_samples_have_passed() {
    let mut talk = Talk::begin(|_| (), Facts::default());
    talk.said();
    talk.append("kp1/v1/epmx/t/update/keys", "{}");
    for _ in 0..3 {
        let (_, sent) = talk.said();
        talk.refuse(&sent, 507);
        talk.append(SAMPLES, "1");
        let (topics, sent) = talk.said();
        assert_eq!(topics, [SAMPLES]);
        talk.hear(&format!("{sent}/status"), b"");
        talk.pass(Duration::from_secs(121));
    }
    assert_eq!((talk.outbox.stats().rejected, talk.outbox.stats().waiting), (1, 0));
}

#[test]
fn the_result_of_a_command_that_the_cloud_does_not_know_is_dropped_and_holds_up_nothing() {
    let mut talk = Talk::begin(|_| (), Facts::default());
    talk.said();
    talk.append("kp1/v1/cex/t/result/go", r#"{"id":1}"#);
    let (_, sent) = talk.said();
    talk.refuse(&sent, 404);
    assert_eq!(talk.outbox.stats().rejected, 1);
    talk.append(SAMPLES, "1");
    assert_eq!(talk.said().0, [SAMPLES]);
}

#[test]
fn many_pending_commands_are_handed_on_as_results_arrive() {
    let facts = Facts { commands: vec!["go".into()], ..Facts::default() };
    let mut talk = Talk::begin(|_| (), facts);
    let (topics, _) = talk.said();
    assert!(topics.contains(&"kp1/v1/cex/t/command/go".to_owned()), "{topics:?}");
    let list = Json::from((0..40).map(|id| json!({ "id": id })).collect::<Vec<_>>()).to_string();
    let mut handed = talk.hear("kp1/v1/cex/t/command/go/status", list.as_bytes()).len();
    assert_eq!(handed, 8);
    // It comes again as an answer.
    assert!(talk.hear("kp1/v1/cex/t/command/go/status", list.as_bytes()).is_empty());
    for id in 0..40 {
        talk.append("kp1/v1/cex/t/result/go", Box::leak(format!(r#"{{"id":{id}}}"#).into_boxed_str()));
        let (_, sent) = talk.said();
        handed += talk.hear(&format!("{sent}/status"), b"").len();
    }
    assert_eq!(handed, 40);
}

#[test]
fn software_and_configurations_that_nobody_wants_are_not_taken() {
    let document = br#"{"configId":"2.0.0","config":{"link":"http://h/f"}}"#;
    let (software, named) = ("kp1/v1/cmx_ota/t/config/json/status", "kp1/v1/cmx/t/config/json/rooms/status");
    let mut talk = Talk::begin(|manner| manner.software = false, Facts::default());
    assert!(talk.hear(software, document).is_empty() && talk.hear(named, document).is_empty());
    let wants = |manner: &mut Manner| manner.configurations = vec!["rooms".into()];
    let mut talk = Talk::begin(wants, Facts::default());
    assert!(matches!(&talk.hear(software, document)[..], [Event::Offered { .. }]));
    let heard = talk.hear(named, document);
    let [Event::Offered { offer, .. }] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!(offer.kind, OfferKind::Configuration(Some("rooms".into())));
}

#[test]
fn an_endpoint_with_another_token_is_asked_for_everything_and_all_are_now_and_then() {
    let facts = || Facts { commands: vec!["go".into()], version: Some("1.0.0".into()), ..Facts::default() };
    let mut talk = Talk::begin(|_| (), facts());
    let all = ["cex/t/command/go", "cmx/t/config/json", "cmx_ota/t/applied/json", "cmx_ota/t/config/json"];
    assert_eq!(talk.said().0, all.map(|end| format!("kp1/v1/{end}")));
    talk.dialogue.changed(&talk.picture.clone(), 0);
    assert_eq!(talk.said().0, Vec::<String>::new());
    talk.dialogue.changed(&picture("u", facts()), 0);
    assert_eq!(talk.said().0, all.map(|end| format!("kp1/v1/{}", end.replace("/t/", "/u/"))));
    // Answered, so that only the poll remains.
    talk.dialogue.connected(&talk.picture.clone(), 0);
    talk.settle();
    talk.pass(Duration::from_secs(599));
    assert_eq!(talk.said().0, Vec::<String>::new());
    talk.pass(Duration::from_secs(2));
    let polled = [all[0], all[1], all[3]].map(|end| format!("kp1/v1/{end}"));
    assert_eq!(talk.said().0, polled);
    // Without an answer it is asked again, and polls do not add to it.
    for _ in 0..3 {
        talk.pass(Duration::from_secs(601));
        let (mut again, _) = talk.said();
        again.sort();
        assert_eq!(again, polled);
    }
}

#[test]
fn a_question_that_is_answered_with_too_much_ends_all_the_same() {
    let mut talk = Talk::begin(|_| (), Facts { commands: vec!["go".into()], ..Facts::default() });
    let mut first = None;
    while let Some(message) = talk.dialogue.next(talk.now) {
        first.get_or_insert(message.publication.topic);
    }
    let topic = format!("{}/status", first.unwrap());
    let heard = talk.hear(&topic, &vec![b' '; MAX_ANSWER + 1]);
    assert!(matches!(&heard[..], [Event::Refused(text)] if text.contains("expected at most 4194304 bytes")));
    talk.pass(Duration::from_secs(16));
    assert!(!talk.said().0.iter().any(|topic| topic.contains("cex")), "it is not asked again");
}

#[test]
fn a_service_that_is_unwell_holds_up_its_own_messages_only_and_a_suspended_token_all() {
    let (metadata, sample) = ("kp1/v1/epmx/t/update/keys", "1");
    for (code, expected) in [(503, vec![SAMPLES]), (500, vec![SAMPLES])] {
        let mut talk = Talk::begin(|_| (), Facts::default());
        talk.settle();
        talk.append(metadata, sample);
        let (_, sent) = talk.said();
        talk.refuse(&sent, code);
        talk.append(metadata, sample);
        talk.append(SAMPLES, sample);
        assert_eq!(talk.said().0, expected, "{code}");
        talk.pass(Duration::from_secs(2));
        assert_eq!(talk.said().0, [metadata, metadata], "{code}");
    }
    let mut talk = Talk::begin(|_| (), Facts::default());
    talk.settle();
    talk.append(SAMPLES, sample);
    let (_, sent) = talk.said();
    talk.refuse(&sent, 401);
    talk.append(metadata, sample);
    assert!(talk.said().0.is_empty());
    talk.pass(Duration::from_secs(2));
    assert_eq!(talk.said().0, [SAMPLES, metadata]);
}
