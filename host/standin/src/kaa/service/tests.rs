//! What the core answers, as a whole and for any request.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn service() -> Service {
    Service::new(Rules::default())
}

fn send(service: &mut Service, connection: u64, topic: &str, payload: &[u8]) -> Vec<Dispatch> {
    let source = Source::Mqtt(ConnectionId(connection), 1);
    service.handle(7, Message { source, topic, payload });
    std::mem::take(&mut service.outgoing)
}

#[test]
fn unknown_tokens_and_app_versions_are_refused_where_the_rules_say_so() {
    let applications = [("a-v1", "a"), ("b-v1", "b")].map(|(version, name)| (version.to_owned(), name.to_owned()));
    let mut service = Service::new(Rules {
        applications: applications.into(),
        auto_provision: false,
        relaxed_path: false,
        ..Rules::default()
    });
    service.provision(0, "T", "a-v1").unwrap();
    for (topic, status) in [
        ("kp1/a-v1/dcx/T/json/1", None),
        ("kp1/a-v1/dcx/U/json/1", Some(404)),
        ("kp1/c-v1/dcx/T/json/1", Some(404)),
        ("kp1/b-v1/dcx/T/json/1", Some(404)),
        ("kp1/a-v1/dcx/T/json/more/1", Some(404)),
        ("kp1/a-v1/dcx/T/plain/x/1", Some(404)),
    ] {
        let sent = send(&mut service, 1, topic, b"1");
        let error = sent[0].topic.ends_with("/error");
        assert_eq!(sent.len(), 1, "{topic}");
        assert_eq!(error, status.is_some(), "{topic}");
        if let Some(status) = status {
            let body: serde_json::Value = serde_json::from_slice(&sent[0].payload).unwrap();
            assert_eq!(body["statusCode"], json!(status), "{topic}");
        }
    }
}

#[test]
fn a_path_that_begins_with_json_is_a_sample_but_an_answer_that_comes_back_is_not() {
    let mut service = service();
    for (topic, end) in [
        ("kp1/a-v1/dcx/T/json/any/thing/1", "/status"),
        ("kp1/a-v1/dcx/T/json/1/status", "/error"),
        ("kp1/a-v1/dcx/T/json/1/error", "/error"),
        ("kp1/a-v1/dcx/T/other/1", "/error"),
    ] {
        let sent = send(&mut service, 1, topic, b"1");
        assert_eq!(sent[0].topic, format!("{topic}{end}"));
    }
    assert_eq!(service.endpoint("T").unwrap().samples.count(), 1);
}

#[test]
fn there_is_an_end_to_new_endpoints() {
    let mut service = service();
    for token in 0..MAX_ENDPOINTS {
        service.provision(0, &token.to_string(), "a-v1").unwrap();
    }
    let sent = send(&mut service, 1, "kp1/a-v1/dcx/new/json", b"1");
    assert_eq!(sent[0].topic, "kp1/a-v1/dcx/new/json/error");
    assert!(send(&mut service, 1, "kp1/a-v1/dcx/5/json", b"1").is_empty());
}

fn resource() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "dcx/T/json",
        "dcx/T/plain/x",
        "epmx/T/get",
        "epmx/T/get/keys",
        "epmx/T/update",
        "epmx/U/update/keys",
        "epmx/T/delete/keys",
        "cex/T/command/go",
        "cex/U/result/go",
        "cmx/T/config/json",
        "cmx/T/config/json/rooms",
        "cmx/T/applied/json",
        "cmx_ota/U/config/json",
        "cmx_ota/T/applied/json",
        "bcx/T/token",
        "rsx/T/dcx",
        "tsx/T",
        "nothing/T/x",
    ])
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    let sensible = proptest::sample::select(vec![
        "",
        "{}",
        "[]",
        "5m",
        r#"{"observe":true}"#,
        r#"{"configId":"1"}"#,
        r#"["a"]"#,
        r#"[{"id":1,"statusCode":200}]"#,
    ]);
    prop_oneof![sensible.prop_map(|text| text.as_bytes().to_vec()), proptest::collection::vec(any::<u8>(), 0..40)]
}

proptest! {
    #[test]
    fn every_request_with_an_id_gets_one_answer_with_this_id(
        requests in proptest::collection::vec((resource(), 0..=i32::MAX as u32, payload(), 1..3u64), 1..30)
    ) {
        let mut service = service();
        for (resource, id, payload, connection) in requests {
            let topic = format!("kp1/a-v1/{resource}/{id}");
            let sent = send(&mut service, connection, &topic, &payload);
            let mine = |end: &str| sent.iter().filter(|sent| sent.topic == format!("{topic}/{end}")).count();
            prop_assert_eq!(mine("status") + mine("error"), 1);
            // Besides it there are pushes only, which have no id.
            let others = sent.iter().filter(|sent| !sent.topic.starts_with(&topic));
            for push in others {
                let pushed = push.topic.strip_suffix("/status").map(Topic::parse);
                prop_assert!(matches!(pushed, Some(Ok(Topic { request_id: None, .. }))), "{}", push.topic);
            }
        }
    }

    #[test]
    fn a_request_without_an_id_is_never_confirmed(resource in resource(), payload in payload()) {
        let mut service = service();
        let topic = format!("kp1/a-v1/{resource}");
        let sent = send(&mut service, 1, &topic, &payload);
        prop_assert!(sent.len() <= 1);
        for answer in sent {
            let confirmed = answer.topic == format!("{topic}/status") && answer.payload.is_empty();
            prop_assert!(!confirmed, "{}", answer.topic);
        }
    }
}
