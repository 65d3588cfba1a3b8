//! Looks which programs are there, again whenever a folder of programs changes.

use std::path::PathBuf;

/// All that a test may need.
const TOOLS: [&str; 12] = [
    "cc",
    "ejabberdctl",
    "mosquitto",
    "mosquitto_passwd",
    "mosquitto_pub",
    "mosquitto_sub",
    "nats-server",
    "npm",
    "python3",
    "rabbitmq-server",
    "script",
    "socat",
];

fn main() {
    println!("cargo:rerun-if-env-changed=PATH");
    println!("cargo:rerun-if-env-changed=SANDGATE_REQUIRE_TOOLS");
    println!("cargo:rerun-if-changed=build.rs");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).filter(|folder| folder.is_dir()).collect();
    for folder in &folders {
        println!("cargo:rerun-if-changed={}", folder.display());
    }
    // Where tools are required, a missing one is a failure and not a shorter run.
    let is_required = std::env::var_os("SANDGATE_REQUIRE_TOOLS").is_some();
    let is_there = |tool: &str| is_required || folders.iter().any(|folder| folder.join(tool).is_file());
    let missing: Vec<&str> = TOOLS.into_iter().filter(|tool| !is_there(tool)).collect();
    println!("cargo:rustc-env=TOOLS={}", TOOLS.join(" "));
    println!("cargo:rustc-env=MISSING={}", missing.join(" "));
}
