//! The tests that talk to a broker a second time: with Debian's mosquitto
//! instead of the broker that comes with the program. Not the drivers in
//! Python and JavaScript: to compile them takes minutes on a slow machine, and
//! no broker sees a difference.

use std::process::Command;

use sandgate_test_needs::needs;

use crate::harness::{MOSQUITTO, fixture};

#[needs("mosquitto")]
#[test]
fn all_hold_with_mosquitto_as_well() {
    // Both runs need the guests, and one builds them.
    fixture("echo");
    let modules = ["commands::", "hostile::", "modbus::", "reload::", "swap::", "wire::"];
    let output = Command::new(std::env::current_exe().unwrap())
        .args(modules)
        // The demo brings its own brokers.
        .args(["--skip", "demo"])
        .env(MOSQUITTO, "1")
        .output()
        .unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{errors}");
    // So that renaming a module does not empty this run.
    let passed = text.lines().filter(|line| line.starts_with("test ") && line.ends_with("... ok")).count();
    assert!(passed >= 20, "{passed} tests ran: {text}");
}
