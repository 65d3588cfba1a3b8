//! What the platform keeps, drops, says and forgets.

use serde_json::json;

use super::*;
use crate::enapter::execution::Order;

const NOW: Time = 1_759_212_723_000;

fn manifest(text: &str) -> Manifest {
    Manifest::parse(&format!(
        "blueprint_spec: device/3.0\ndisplay_name: X\n{text}driver: {{name: x, version: 1.0.0}}\n"
    ))
    .unwrap()
}

/// A cloud that knows meters and takes only them as children.
fn platform() -> Platform {
    let meter = manifest(
        "telemetry:\n  power: {type: float, display_name: P}\nproperties:\n  model: {type: string, display_name: M}\n\
         alerts:\n  hot: {severity: warning, display_name: Too hot}\ncommand_groups:\n  g: {display_name: G}\n\
         commands:\n  set:\n    group: g\n    display_name: Set\n    arguments:\n      \
         pin: {type: integer, display_name: P, sensitive: true, max: 9999}\n",
    );
    let parent = manifest("properties:\n  version: {type: string, display_name: V}\n");
    let blueprints = Blueprints::of(Some(parent), Some(["meter".to_owned()].into()), &[("meter", &meter)]);
    Platform::new(blueprints, Some("S01".into()))
}

fn send(platform: &mut Platform, end: &str, payload: &Json) {
    platform.take(1, &format!("v1/from/S01/{end}"), payload.to_string().as_bytes(), NOW);
}

fn announce(platform: &mut Platform, children: Json) {
    send(platform, "s/v1/properties", &json!({"timestamp": 1_759_212_723, "children": children}));
}

/// The lines since a mark, without their times.
fn lines(platform: &Platform, from: u64) -> Vec<String> {
    let cut =
        |line: String| line.split_once(' ').map(|(_, rest)| rest.split_whitespace().collect::<Vec<_>>().join(" "));
    platform.events().ring().from(from).filter_map(|event| cut(event.to_string())).collect()
}

fn mark(platform: &Platform) -> u64 {
    platform.events().ring().end()
}

fn meter() -> Address {
    Address { hardware: "S01".into(), channel: "s--m1".into() }
}

fn order(name: &str, arguments: Json) -> Order {
    let arguments = arguments.as_object().cloned().unwrap();
    Order { device: meter(), name: name.into(), arguments, timeout: std::time::Duration::from_secs(2) }
}

#[test]
fn messages_of_strangers_are_dropped_and_shown() {
    let mut platform = platform();
    announce(&mut platform, json!({"m1": {"type": "meter"}}));
    for (topic, payload, expected) in [
        ("nonsense", "{}", "dropped topic \"nonsense\": expected a topic v1/from/<hardware_id>/<channel_id>/…"),
        ("v1/from/S02/s/v1/telemetry", "{\"timestamp\":1}", "dropped S02:s expected the hardware id S01, found S02"),
        (
            "v1/from/S01/s--m2/v1/telemetry",
            "{\"timestamp\":1}",
            "dropped S01:s--m2 expected an announced child; its parent has not named it under children",
        ),
        ("v1/from/S01/s--m1/v1/telemetry", "[]", "dropped S01:s--m1 expected a JSON object, found an array"),
        (
            "v1/from/S01/s--m1/v1/telemetry",
            "{\"power\":1}",
            "dropped S01:s--m1 timestamp: expected whole seconds since the epoch, found nothing",
        ),
        (
            "v1/from/S01/s--m1/v1/command/responses",
            "{\"id\":\"x\",\"state\":\"completed\"}",
            "dropped S01:s--m1 id: expected the id of a command that was sent to this device, found \"x\"",
        ),
        (
            "v1/from/S01/s--m1/v3/logs",
            "{\"timestamp\":1,\"message\":\"\",\"severity\":1}",
            "dropped S01:s--m1 severity: expected one of debug, info, warning, error, found 1",
        ),
    ] {
        let from = mark(&platform);
        platform.take(1, topic, payload.as_bytes(), NOW);
        assert_eq!(lines(&platform, from), [expected]);
    }
    assert_eq!(platform.channels().count(), 2);
    let channel = platform.channel(&meter()).unwrap();
    assert_eq!((channel.dropped, channel.samples.end(), channel.logs.end()), (4, 0, 0));
}

#[test]
fn an_announcement_replaces_the_set_and_the_removed_are_gone() {
    let mut platform = platform();
    let state = |platform: &Platform| {
        let of = |(address, channel): (&Address, &Channel)| format!("{} {}", address.channel, channel.state());
        platform.channels().map(of).collect::<Vec<_>>().join(", ")
    };
    announce(&mut platform, json!({"m1": {"type": "meter"}, "m2": {"type": "meter"}, "x": {"type": "lamp"}}));
    assert_eq!(state(&platform), "s online, s--m1 online, s--m2 online");
    let from = mark(&platform);
    announce(&mut platform, json!({"m1": {"type": "meter"}, "m2": {"type": "meter"}}));
    assert_eq!(lines(&platform, from), Vec::<String>::new());

    send(&mut platform, "s--m2/v1/telemetry", &json!({"timestamp": 1_759_212_723, "power": 1}));
    let from = mark(&platform);
    announce(&mut platform, json!({"m1": {"type": "meter"}, "m3": {"type": "meter"}}));
    assert_eq!(lines(&platform, from), ["children S01:s 2 now: removed s--m2, added s--m3 (meter)"]);
    assert_eq!(state(&platform), "s online, s--m1 online, s--m2 gone, s--m3 online");
    let from = mark(&platform);
    send(&mut platform, "s--m2/v1/telemetry", &json!({"timestamp": 1_759_212_723, "power": 2}));
    assert_eq!(lines(&platform, from), ["dropped S01:s--m2 expected an announced child; this one was removed"]);
    let gone = Order { device: Address { channel: "s--m2".into(), ..meter() }, ..order("set", json!({})) };
    assert_eq!(platform.execute("c", gone, NOW), Err(Refused::Gone("s--m2".into())));

    // A malformed set changes nothing; an empty one removes all.
    announce(&mut platform, json!(["m1"]));
    assert_eq!(state(&platform), "s online, s--m1 online, s--m2 gone, s--m3 online");
    announce(&mut platform, json!({"m2": {"type": "meter"}}));
    let back = platform.find("s--m2").unwrap();
    assert_eq!(platform.channel(&back).unwrap().samples.end(), 1);
    announce(&mut platform, json!({}));
    assert_eq!(state(&platform), "s online, s--m1 gone, s--m2 gone, s--m3 gone");
    // A child's own properties announce nobody, also not when it is there again.
    announce(&mut platform, json!({"m1": {"type": "meter"}}));
    let from = mark(&platform);
    let body = json!({"timestamp": 1, "children": {"a": {"type": "meter"}}, "model": "x"});
    send(&mut platform, "s--m1/v1/register", &body);
    assert_eq!(
        lines(&platform, from),
        [
            "properties S01:s--m1 model=x",
            "dropped S01:s--m1 children: is reserved; only the parent's properties can hold it"
        ]
    );
}

#[test]
fn telemetry_alerts_and_properties_are_kept_as_far_as_they_fit() {
    let mut platform = platform();
    announce(&mut platform, json!({"m1": {"type": "meter"}}));
    let from = mark(&platform);
    let sample = json!({"timestamp": 1_759_212_723, "power": 1.5, "volts": 3, "alerts": ["hot", "odd"],
        "alert_details": {"hot": {"errmsg": "90 C"}}});
    send(&mut platform, "s--m1/v1/telemetry", &sample);
    assert_eq!(
        lines(&platform, from),
        [
            "telemetry S01:s--m1 power=1.5",
            "alerts S01:s--m1 hot (warning: Too hot, 90 C), odd (error: odd)",
            "note S01:s--m1 alerts [\"odd\"]: not declared in the blueprint; shown as errors, with their ids as names",
            "dropped S01:s--m1 volts: expected an attribute that the blueprint declares under telemetry",
        ]
    );
    let kept = platform.channel(&meter()).unwrap().samples.from(0).next().unwrap().json();
    let expected = json!({"timestamp": 1_759_212_723, "received": NOW, "power": 1.5, "alerts": ["hot", "odd"],
        "alert_details": {"hot": {"errmsg": "90 C"}}});
    assert_eq!(kept, expected);
    // The same alerts again are no news; null and [] are different ones.
    for (alerts, news) in [
        (json!(["hot", "odd"]), None),
        (json!(null), Some("alerts S01:s--m1 unknown")),
        (json!([]), Some("alerts S01:s--m1 none")),
        (json!([]), None),
    ] {
        let mut body = json!({"timestamp": 1_759_212_723, "alerts": alerts});
        if alerts == json!(["hot", "odd"]) {
            body["alert_details"] = json!({"hot": {"errmsg": "90 C"}});
        }
        let from = mark(&platform);
        send(&mut platform, "s--m1/v1/telemetry", &body);
        let lines = lines(&platform, from);
        assert_eq!(lines.get(1).map(String::as_str), news, "{lines:?}");
    }
    // What is dropped again is counted and said no more, until a new connection.
    let volts = json!({"timestamp": 1_759_212_723, "volts": 4});
    for (link, told) in [(1, 1), (2, 2), (2, 1)] {
        let (from, before) = (mark(&platform), platform.channel(&meter()).unwrap().dropped);
        platform.take(link, "v1/from/S01/s--m1/v1/telemetry", volts.to_string().as_bytes(), NOW);
        assert_eq!(lines(&platform, from).len(), told);
        assert_eq!(platform.channel(&meter()).unwrap().dropped, before + 1);
    }
    // Back-dated samples are kept and shown as such.
    let from = mark(&platform);
    send(&mut platform, "s--m1/v1/telemetry", &json!({"timestamp": 1_759_209_123, "power": 2}));
    assert_eq!(lines(&platform, from), ["telemetry S01:s--m1 (1h old) power=2"]);

    send(&mut platform, "s--m1/v1/properties", &json!({"timestamp": 1, "model": "A"}));
    send(&mut platform, "s--m1/v1/properties", &json!({"timestamp": 2, "model": 7}));
    assert_eq!(Json::Object(platform.channel(&meter()).unwrap().properties.clone()), json!({"model": "A"}));
}

#[test]
fn a_command_is_sent_followed_and_timed_out() {
    let mut platform = platform();
    announce(&mut platform, json!({"m1": {"type": "meter"}}));
    let from = mark(&platform);
    let request = platform.execute("c1", order("set", json!({"pin": 1234})), NOW).unwrap();
    assert_eq!(request.topic, "v1/to/S01/s--m1/v1/command/requests");
    let payload: Json = serde_json::from_slice(&request.payload).unwrap();
    assert_eq!(payload, json!({"id": "c1", "name": "set", "arguments": {"pin": 1234}}));
    send(
        &mut platform,
        "s--m1/v1/command/responses",
        &json!({"id": "c1", "state": "log", "payload": {"message": "a"}}),
    );
    send(&mut platform, "s--m1/v1/command/responses", &json!({"id": "c1", "state": "completed"}));
    send(&mut platform, "s--m1/v1/command/responses", &json!({"id": "c1", "state": "error"}));
    assert_eq!(
        lines(&platform, from),
        [
            "command S01:s--m1 set NEW pin=…",
            "command S01:s--m1 set log {\"message\":\"a\"}",
            "command S01:s--m1 set SUCCESS {}",
            "dropped S01:s--m1 id: \"c1\" ended with SUCCESS 0s before",
        ]
    );
    let from = mark(&platform);
    platform.execute("c2", order("set", json!({"pin": 12345})), NOW).unwrap();
    platform.execute("c3", order("fly", json!({})), NOW).unwrap();
    platform.delivered("c3", 0, NOW);
    assert_eq!(platform.expire(NOW), Some(NOW + 2000));
    assert_eq!(platform.expire(NOW + 2000), None);
    assert_eq!(
        lines(&platform, from),
        [
            "command S01:s--m1 set NEW pin=…",
            "note S01:s--m1 set: the cloud's form would not send this: pin: expected at most 9999, found a hidden value",
            "command S01:s--m1 fly NEW",
            "note S01:s--m1 the blueprint declares no command \"fly\"; expected one of \"set\"",
            "note S01:s--m1 fly is lost: nobody is subscribed to v1/to/S01/s--m1/v1/command/requests",
            "command S01:s--m1 set TIMEOUT after 2s",
            "command S01:s--m1 fly TIMEOUT after 2s",
        ]
    );
}

#[test]
fn a_lost_connection_takes_its_devices_offline() {
    let mut platform = platform();
    platform.connected(1, "gateway", NOW);
    announce(&mut platform, json!({"m1": {"type": "meter"}}));
    let from = mark(&platform);
    platform.disconnected(1, "the connection was closed", NOW);
    let line = "disconnected client \"gateway\": the connection was closed; 2 devices are offline";
    assert_eq!(lines(&platform, from), [line]);
    assert!(platform.channels().all(|(_, channel)| channel.state() == "offline"));
    platform.connected(2, "gateway", NOW);
    platform.take(
        2,
        "v1/from/S01/s/v1/properties",
        b"{\"timestamp\":1,\"children\":{\"m1\":{\"type\":\"meter\"}}}",
        NOW,
    );
    assert!(platform.channels().all(|(_, channel)| channel.state() == "online"));
}

#[test]
fn devices_are_found_by_channel_when_that_is_clear() {
    let mut platform = Platform::new(Blueprints::default(), None);
    assert!(platform.find("s").unwrap_err().to_string().contains("none (nothing has published yet)"));
    for hardware in ["S01", "S02"] {
        platform.take(1, &format!("v1/from/{hardware}/s/v1/telemetry"), b"{\"timestamp\":1}", NOW);
    }
    platform.take(1, "v1/from/S02/t/v1/telemetry", b"{\"timestamp\":1}", NOW);
    assert_eq!(platform.find("t").unwrap().to_string(), "S02:t");
    assert_eq!(platform.find("S01:s").unwrap().to_string(), "S01:s");
    for (name, expected) in [
        ("s", "\"s\" is more than one device; expected S01:s, S02:s or another full id"),
        ("x", "no device \"x\"; expected one of: s, s, t"),
    ] {
        assert_eq!(platform.find(name).unwrap_err().to_string(), expected);
    }
}

#[test]
fn floods_stay_within_their_bounds() {
    let mut platform = Platform::new(Blueprints::default(), None);
    for number in 0..MOST_CHANNELS + 50 {
        platform.take(1, &format!("v1/from/S01/c{number}/v1/telemetry"), b"{\"timestamp\":1}", NOW);
    }
    assert_eq!(platform.channels().count(), MOST_CHANNELS);
    // One device floods the history; the others keep what they have.
    let text = "x".repeat(200 << 10);
    for _ in 0..400 {
        send(&mut platform, "c0/v1/telemetry", &json!({"timestamp": 1, "text": text}));
    }
    let bytes: usize = platform.channels().map(|(_, channel)| channel.samples.bytes()).sum();
    assert!(bytes <= HISTORY_BYTES && bytes > HISTORY_BYTES / 2, "{bytes}");
    assert_eq!(platform.history, bytes);
    assert!(platform.channels().all(|(_, channel)| channel.samples.from(0).count() > 0));
    for number in 0..1000 {
        let name = format!("p{number}");
        send(&mut platform, "c0/v1/properties", &json!({"timestamp": 1, name: "y".repeat(1000)}));
    }
    let address = platform.find("c0").unwrap();
    let properties = &platform.channel(&address).unwrap().properties;
    assert!(properties.len() > 30 && Json::Object(properties.clone()).to_string().len() < 70 << 10);
    // A message with many wrong attributes gets few lines.
    let from = mark(&platform);
    let body: Map<String, Json> = (0..500).map(|number| (format!("{number}"), json!(1))).collect();
    let mut body = Json::Object(body);
    body["timestamp"] = json!(1);
    platform.take(2, "v1/from/S01/c0/v1/telemetry", body.to_string().as_bytes(), NOW);
    assert_eq!(lines(&platform, from).len(), MOST_TOLD + 2);
    assert!(lines(&platform, from).last().unwrap().contains("80 more attributes of the same message"));
}
