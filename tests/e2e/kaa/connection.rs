//! Connecting to Kaa: TLS with a private CA, client certificates, passwords.

use sandgate_standin::kaa::{Settings, Tls, User};

use super::site::{Site, echo, wait_for_log};
use crate::harness::fixture;
use crate::tls::papers;

fn settings(papers: &crate::tls::Papers, client_ca: bool) -> Settings {
    let (certificate, key) = papers.server.clone();
    let client_ca = client_ca.then(|| papers.ca.clone());
    Settings { tls: Some(Tls { certificate, key, client_ca }), ..Settings::default() }
}

async fn site(settings: Settings, papers: &crate::tls::Papers) -> Site {
    let file = |text: &str| text.as_bytes().to_vec();
    let files = [
        ("echo.wasm", fixture("echo")),
        ("ca.pem", file(&papers.ca)),
        ("cert.pem", file(&papers.client.0)),
        ("key.pem", file(&papers.client.1)),
    ];
    Site::prepare_with(&files, settings).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_ca_and_a_client_certificate_open_the_service() {
    let papers = papers();
    let mut site = site(settings(&papers, true), &papers).await;
    // The server's certificate is for another name.
    site.start("tls = { ca = 'ca.pem', certificate = 'cert.pem', key = 'key.pem' }", &echo("d1", "t1", 20));
    wait_for_log(&site.gateway, "invalid peer certificate: certificate not valid for name");
    site.gateway.kill();
    // Without a certificate nothing gets through, though CONNECT does.
    site.start("verify_host_name = false\ntls = { ca = 'ca.pem' }", &echo("d1", "t1", 20));
    wait_for_log(&site.gateway, "connection lost");
    assert_eq!(site.samples("t1").len(), 0);
    site.gateway.kill();
    let tls = "verify_host_name = false\ntls = { ca = 'ca.pem', certificate = 'cert.pem', key = 'key.pem' }";
    site.start(tls, &echo("d1", "t1", 20));
    site.wait_for_all_counts("t1").await;
    for secret in ["PRIVATE KEY", "t1"] {
        assert!(!site.gateway.log().contains(secret), "{secret} stays out of the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_ca_is_refused_on_both_sides() {
    let (papers, strangers) = (papers(), papers());
    let mut site = site(settings(&papers, true), &strangers).await;
    site.gateway.write("right-ca.pem", papers.ca.as_bytes());
    let tls = "verify_host_name = false\ntls = { ca = 'ca.pem', certificate = 'cert.pem', key = 'key.pem' }";
    site.start(tls, &echo("d1", "t1", 20));
    wait_for_log(&site.gateway, "invalid peer certificate");
    site.gateway.kill();
    site.start(&tls.replace("ca.pem", "right-ca.pem"), &echo("d1", "t1", 20));
    wait_for_log(&site.gateway, "connecting again");
    assert_eq!(site.samples("t1").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_opens_the_service_and_a_wrong_one_is_explained_and_not_shown() {
    let user = User { name: "site@tenant".into(), password: "hunter2".into() };
    let settings = Settings { users: vec![user], ..Settings::default() };
    let mut site = Site::prepare_with(&[("echo.wasm", fixture("echo"))], settings).await;
    let login = |password: &str| format!("username = 'site@tenant'\npassword = {{ value = '{password}' }}");
    site.start(&login("wrong-secret"), &echo("d1", "t1", 20));
    wait_for_log(&site.gateway, "the broker refused the user name or password");
    site.gateway.kill();
    site.start(&login("hunter2"), &echo("d1", "t1", 20));
    site.wait_for_all_counts("t1").await;
    let log = site.gateway.log();
    assert!(!log.contains("wrong-secret") && !log.contains("hunter2"), "secrets stay out of the log");
}
