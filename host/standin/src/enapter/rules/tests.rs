//! The table of silent drops, row by row.

use serde_json::json;

use super::*;

const NOW: Time = 1_759_212_723_000;

fn manifest() -> Manifest {
    let text = "blueprint_spec: device/3.0\ndisplay_name: Meter\n\
        telemetry:\n  count: {type: integer, display_name: C}\n  half: {type: float, display_name: H}\n  \
        on: {type: boolean, display_name: O}\n  label: {type: string, display_name: L}\n  \
        status: {type: string, display_name: S, enum: [ok, 'off']}\n  level: {type: integer, display_name: L, enum: [1, 2]}\n  \
        names: {type: array_of_strings, display_name: N}\n  conn_alerts: {type: alerts, display_name: A}\n\
        properties:\n  model: {type: string, display_name: M}\n  extra: {type: json, display_name: E}\n\
        alerts:\n  hot: {severity: warning, display_name: Hot}\n\
        driver: {name: meter, version: 1.0.0}\n";
    Manifest::parse(text).unwrap()
}

fn map(json: Json) -> Map<String, Json> {
    json.as_object().unwrap().clone()
}

/// `attribute: problem`, as the log shows it.
fn words(dropped: &Dropped) -> String {
    match &dropped.attribute {
        Some(attribute) => format!("{attribute}: {}", dropped.problem),
        None => dropped.problem.clone(),
    }
}

#[test]
fn what_is_no_object_or_too_large_is_dropped_whole() {
    for (payload, expected) in [
        (&b""[..], "expected a JSON object: EOF"),
        (b"{", "expected a JSON object: EOF"),
        (b"nonsense", "expected a JSON object: expected ident"),
        (b"\xff\xfe", "expected a JSON object: "),
        (b"[1]", "expected a JSON object, found an array"),
        (b"null", "expected a JSON object, found null"),
        (b"{\"a\":1e999}", "expected a JSON object: number out of range"),
        ("[".repeat(1000).as_bytes(), "expected a JSON object: recursion limit"),
        ("x".repeat(MAX_PAYLOAD + 1).as_bytes(), "expected at most 262144 bytes, found 262145"),
    ] {
        let problem = words(&object(payload).unwrap_err());
        assert!(problem.starts_with(expected), "{problem}");
    }
    assert_eq!(object(b"{\"a\":1}").unwrap(), map(json!({"a": 1})));
}

#[test]
fn a_timestamp_is_required_in_whole_seconds() {
    const EXPECTED: &str = "timestamp: expected whole seconds since the epoch, found ";
    for (timestamp, found) in [
        (json!(null), "null"),
        (json!("1759212723"), "\"1759212723\""),
        (json!(1_759_212_723.5), "1759212723.5"),
        (json!(-1), "-1"),
        (json!(true), "true"),
        (json!([1]), "an array"),
        (json!(1_759_212_723_000_u64), "milliseconds: 1759212723000"),
        (json!(1_759_312_723), "a time in the future: 1759312723"),
        (json!(u64::MAX), "milliseconds: 18446744073709551615"),
    ] {
        let dropped = telemetry(None, map(json!({"timestamp": timestamp, "a": 1})), NOW).unwrap_err();
        assert_eq!(words(&dropped), format!("{EXPECTED}{found}"));
        assert!(properties(None, None, false, map(json!({"timestamp": timestamp})), NOW).is_err());
        let body = json!({"timestamp": timestamp, "message": "x", "severity": "info"});
        assert!(line(map(body), NOW).is_err());
    }
    let dropped = telemetry(None, map(json!({"a": 1})), NOW).unwrap_err();
    assert_eq!(words(&dropped), format!("{EXPECTED}nothing"));
    // Back-dated telemetry is used, however old.
    for timestamp in [0, 1, 1_759_212_723, 1_759_212_723 + 3600] {
        let verdict = telemetry(None, map(json!({ "timestamp": timestamp })), NOW).unwrap();
        assert_eq!(verdict.kept.timestamp, timestamp);
    }
}

#[test]
fn undeclared_mistyped_and_foreign_values_are_dropped_alone() {
    for (name, value, expected) in [
        ("count", json!(1.5), "expected integer, found 1.5"),
        ("count", json!("1"), "expected integer, found \"1\""),
        ("half", json!("x"), "expected float, found \"x\""),
        ("on", json!(1), "expected boolean, found 1"),
        ("label", json!(1), "expected string, found 1"),
        ("label", json!({"a": 1}), "expected string, found {\"a\":1}"),
        ("status", json!("broken"), "expected one of \"ok\", \"off\", found \"broken\""),
        ("level", json!(3), "expected one of 1, 2, found 3"),
        ("names", json!(["a", 1]), "expected array_of_strings, found [\"a\",1]"),
        ("conn_alerts", json!("hot"), "expected alerts, found \"hot\""),
        ("model", json!("PM"), "expected an attribute that the blueprint declares under telemetry"),
        ("children", json!({}), "expected an attribute that the blueprint declares under telemetry"),
        ("1x", json!(1), "expected a name of letters, digits and _, starting with a letter"),
        ("", json!(1), "expected a name of letters, digits and _, starting with a letter"),
        ("alerts", json!("hot"), "expected a list of alert ids or null, found \"hot\""),
        ("alerts", json!([1]), "expected a list of alert ids or null, found an array"),
        ("alert_details", json!([]), "expected an object from alert id to details, found an array"),
    ] {
        let mut body = map(json!({"timestamp": 5, "count": 7, "half": 2}));
        body.insert(name.to_owned(), value);
        let verdict = telemetry(Some(&manifest()), body, NOW).unwrap();
        let dropped: Vec<_> = verdict.dropped.iter().map(words).collect();
        assert_eq!(dropped, [format!("{name}: {expected}")]);
        assert!(!verdict.kept.attributes.contains_key(name), "{name}");
        assert!(verdict.kept.attributes.contains_key("half") || name == "half");
    }
}

#[test]
fn what_fits_is_kept_and_null_always_does() {
    let good = json!({"timestamp": 5, "count": 7.0, "half": 2, "on": false, "label": null, "status": "off", "level": 2,
        "names": ["a"], "conn_alerts": ["hot"], "alerts": ["hot"], "alert_details": {"hot": {"errmsg": "90 C"}}});
    let verdict = telemetry(Some(&manifest()), map(good), NOW).unwrap();
    assert_eq!(verdict.dropped, []);
    assert_eq!(verdict.kept.attributes.len(), 8);
    assert_eq!(verdict.kept.alerts, Some(Some(vec!["hot".to_owned()])));
    assert_eq!(Json::Object(verdict.kept.details), json!({"hot": {"errmsg": "90 C"}}));
    for (alerts, expected) in [(json!([]), Some(Some(vec![]))), (json!(null), Some(None))] {
        let verdict = telemetry(Some(&manifest()), map(json!({"timestamp": 5, "alerts": alerts})), NOW).unwrap();
        assert_eq!((verdict.kept.alerts, verdict.dropped), (expected, vec![]));
    }
    assert_eq!(telemetry(None, map(json!({"timestamp": 5})), NOW).unwrap().kept.alerts, None);
}

#[test]
fn without_a_blueprint_every_name_that_could_be_declared_is_kept() {
    let body = json!({"timestamp": 5, "anything": {"a": [1]}, "x_1": "y", "not-a-name": 1, "alerts": 3});
    let verdict = telemetry(None, map(body), NOW).unwrap();
    assert_eq!(Json::Object(verdict.kept.attributes), json!({"anything": {"a": [1]}, "x_1": "y"}));
    let names: Vec<_> = verdict.dropped.iter().filter_map(|dropped| dropped.attribute.as_deref()).collect();
    assert_eq!(names, ["alerts", "not-a-name"]);
}

#[test]
fn properties_and_children_have_their_own_rules() {
    let types: BTreeSet<String> = ["inverter".to_owned()].into();
    let announce = |types, is_child, children: Json| {
        let body = json!({"timestamp": 5, "model": "x", "extra": [1, {"a": 2}], "children": children});
        let verdict = properties(Some(&manifest()), types, is_child, map(body), NOW).unwrap();
        assert_eq!(Json::Object(verdict.kept.attributes), json!({"model": "x", "extra": [1, {"a": 2}]}));
        let dropped: Vec<_> = verdict.dropped.iter().map(words).collect();
        let children = verdict.kept.children.map(|children| children.into_keys().collect::<Vec<_>>().join(","));
        (children, dropped.join("; "))
    };
    for (types, is_child, children, kept, dropped) in [
        (Some(&types), false, json!({"a": {"type": "inverter"}, "b": {"type": "inverter"}}), Some("a,b"), ""),
        (Some(&types), false, json!({}), Some(""), ""),
        (None, false, json!({"a": {"type": "anything"}}), Some("a"), ""),
        (None, false, json!({"a-b": {"type": "x", "more": 1}}), Some("a-b"), ""),
        (
            Some(&types),
            false,
            json!({"a": {"type": "meter"}, "b": {"type": "inverter"}}),
            Some("b"),
            "children.a: expected a type that the parent's blueprint names (\"inverter\"), found \"meter\"",
        ),
        (
            None,
            false,
            json!({"a": {}, "b": 1, "c": {"type": 1}}),
            Some(""),
            "children.a: expected {\"type\": …}, found an object; children.b: expected {\"type\": …}, found 1; \
             children.c: type: expected a text, found 1",
        ),
        (
            None,
            false,
            json!({"a--b": {"type": "x"}}),
            Some(""),
            "children.a--b: expected a child id of 1 to 128 letters, digits, _ and single -",
        ),
        (
            None,
            false,
            json!({"a/b": {"type": "x"}}),
            Some(""),
            "children.a/b: expected a child id of 1 to 128 letters, digits, _ and single -",
        ),
        (
            None,
            false,
            json!(["a"]),
            None,
            "children: expected an object from child id to {\"type\": …}, found an array",
        ),
        (None, false, json!(null), None, "children: expected an object from child id to {\"type\": …}, found null"),
        (None, true, json!({}), None, "children: is reserved; only the parent's properties can hold it"),
    ] {
        let expected = (kept.map(str::to_owned), dropped.to_owned());
        assert_eq!(announce(types, is_child, children.clone()), expected, "{children}");
    }
}

#[test]
fn log_lines_and_responses_are_read_strictly() {
    let good = json!({"timestamp": 5, "message": "hm", "severity": "warning", "persist": true});
    let expected = Line { timestamp: 5, severity: "warning".into(), message: "hm".into(), persist: true };
    assert_eq!(line(map(good), NOW).unwrap(), expected);
    for (body, expected) in [
        (json!({"timestamp": 5, "severity": "info"}), "message: expected a text, found nothing"),
        (json!({"timestamp": 5, "message": 1, "severity": "info"}), "message: expected a text, found 1"),
        (
            json!({"timestamp": 5, "message": "", "severity": "fatal"}),
            "severity: expected one of debug, info, warning, error, found \"fatal\"",
        ),
        (
            json!({"timestamp": 5, "message": "", "severity": "info", "persist": "yes"}),
            "persist: expected a boolean, found \"yes\"",
        ),
    ] {
        assert_eq!(words(&line(map(body), NOW).unwrap_err()), expected);
    }
    for (body, expected) in [
        (json!({"state": "completed"}), "id: expected a text, found nothing"),
        (json!({"id": 1, "state": "completed"}), "id: expected a text, found 1"),
        (json!({"id": "a"}), "state: expected one of log, completed, error, found nothing"),
        (json!({"id": "a", "state": "done"}), "state: expected one of log, completed, error, found \"done\""),
        (json!({"id": "a", "state": "log", "payload": "x"}), "payload: expected an object, found \"x\""),
    ] {
        assert_eq!(words(&response(map(body)).unwrap_err()), expected);
    }
    for (state, said) in [("log", Said::Log), ("completed", Said::Completed), ("error", Said::Error)] {
        let read = response(map(json!({"id": "a", "state": state, "payload": {"x": 1}, "more": 1}))).unwrap();
        assert_eq!(read, Response { id: "a".into(), state: said, payload: map(json!({"x": 1})) });
    }
}
