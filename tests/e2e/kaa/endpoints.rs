//! Endpoints that come, go and are refused in part; what the cloud wanted
//! meanwhile.

use sandgate_standin::kaa::metadata::Access;
use sandgate_standin::kaa::{Rules, Settings};
use serde_json::json;

use super::site::{Site, echo, wait_for_log};
use crate::harness::fixture;

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_removed_sends_what_it_had_and_sends_it_once() {
    let mut site = Site::prepare(&[("echo.wasm", fixture("echo"))]).await;
    let (first, second) = (echo("d1", "t1", 20), echo("d2", "t2", 20));
    site.start("", &format!("{first}{second}"));
    site.wait_for_samples("t1", 5).await;
    site.configure("", &second);
    wait_for_log(&site.gateway, "stop device d1");
    // Longer than several times the wait for an answer.
    let more = site.counts("t2").len() + 200;
    site.wait_for_samples("t2", more).await;
    let counts = site.counts("t1");
    assert_eq!(counts, (1..=counts.len() as u64).collect::<Vec<_>>(), "{}", site.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_another_token_is_another_endpoint_at_once() {
    let mut site = Site::prepare(&[("echo.wasm", fixture("echo")), ("token", b"t1\n".to_vec())]).await;
    let device = echo("d1", "t1", 20).replace("endpoints.kaa.token = 't1'", "endpoints.kaa.token = { file = 'token' }");
    site.start("", &device);
    site.wait_for_samples("t1", 3).await;
    let waiting = site.cloud.cloud.send_command("t2", "echo", Some(json!({"text": "hello"})), 600_000).unwrap();
    site.gateway.write("token", b"t2\n");
    // The file that holds the token is not watched; the configuration is.
    site.configure("", &format!("{device}# again\n"));
    let result = site.result("t2", &waiting).await;
    assert_eq!(result.payload.unwrap()["text"], "hello");
    assert_eq!(site.session("connects"), 1, "on the same connection");
    assert!(!site.gateway.log().contains("t2"), "tokens stay out of the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_only_the_platform_writes_costs_a_property_and_nothing_else() {
    let access = Access { read_only: ["model".to_owned()].into(), ..Access::default() };
    let rules = Rules { access, ..Rules::default() };
    let settings = Settings { rules, ..Settings::default() };
    let mut site = Site::prepare_with(&[("echo.wasm", fixture("echo"))], settings).await;
    site.start("", &echo("d1", "t1", 20));
    wait_for_log(&site.gateway, "epmx/update/keys: dropped, the cloud refused it: 403");
    site.wait_for_all_counts("t1").await;
    assert_eq!(site.session("rejected"), 1);
    let done = site.command("t1", "count", json!({})).await;
    assert_eq!(done.status_code, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_comes_too_late_is_dropped_and_holds_up_nothing() {
    let site = Site::with_echo("").await;
    // Its first try fails; until the next one the command has expired.
    site.cloud.cloud.set_fault("error=503,ext=cex,token=t1,times=1").unwrap();
    site.cloud.cloud.send_command("t1", "count", Some(json!({})), 1000).unwrap();
    wait_for_log(&site.gateway, "cex/result/count: dropped, the cloud refused it: 404");
    let done = site.command("t1", "count", json!({})).await;
    assert_eq!(done.status_code, 200);
    site.wait_for_all_counts("t1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_commands_that_waited_are_all_carried_out() {
    let mut site = Site::prepare(&[("echo.wasm", fixture("echo"))]).await;
    let cloud = site.cloud.cloud.clone();
    let send = |number: usize| cloud.send_command("t1", "echo", Some(json!({"text": number.to_string()})), 600_000);
    let waiting: Vec<_> = (0..40).map(|number| send(number).unwrap()).collect();
    site.start("", &echo("d1", "t1", 20));
    for (number, command) in waiting.iter().enumerate() {
        let result = site.result("t1", command).await;
        assert_eq!((result.status_code, &result.payload.unwrap()["text"]), (200, &json!(number.to_string())));
    }
    assert_eq!(site.gateway.device("d1")["commands"], 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_push_got_lost_is_found_by_asking() {
    let site = Site::with_echo("poll_every = '1s'").await;
    site.cloud.cloud.set_fault("push-missing").unwrap();
    let done = site.command("t1", "echo", json!({"text": "quiet"})).await;
    assert_eq!(done.payload.unwrap()["text"], "quiet");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_cannot_be_read_is_named_and_not_shown() {
    let site = Site::prepare(&[("echo.wasm", fixture("echo")), ("token", b"secret/token".to_vec())]).await;
    for (source, expected) in [
        (
            "{ env = 'NO_SUCH_VARIABLE' }",
            "devices.d1.endpoints.kaa.token: reading environment variable NO_SUCH_VARIABLE",
        ),
        ("{ file = 'nothing' }", "devices.d1.endpoints.kaa.token: reading file ./nothing"),
        ("{ file = 'token' }", "devices.d1.endpoints.kaa.token: expected a text without /, +, #, dots and spaces"),
    ] {
        site.configure("", &echo("d1", "t1", 20).replace("'t1'", source));
        let output = site.gateway.cli(&["run", "gateway.toml"]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(expected) && !text.contains("secret"), "{text}");
    }
}
