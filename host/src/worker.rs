//! Work in a process of its own: this program again, with limits and a low
//! priority, which ends with the gateway, however that ends.

use std::io::{self, Read};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, nice, setrlimit};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

/// The child, its input, which is to stay open for as long as it may work, its
/// output, and its reasons.
pub type Worker = (Child, ChildStdin, ChildStdout, ChildStderr);

/// Starts `PROGRAM NAME`. It is killed when nobody waits for it any more.
pub fn start(program: &Path, name: &str) -> io::Result<Worker> {
    let mut child = Command::new(program)
        .arg(name)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
        (Some(input), Some(output), Some(reasons)) => Ok((child, input, output, reasons)),
        _ => Err(io::Error::other("it has no pipes")),
    }
}

/// The child's side: limits its memory, counted as this resource, and its seconds.
pub fn limit(resource: Resource, memory: u64, seconds: u64) -> Result<()> {
    let most = |most: u64| Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(resource, most(memory)).context("limiting memory")?;
    setrlimit(Resource::Cpu, most(seconds)).context("limiting time")?;
    // A refusal costs the gateway some pace, nothing else.
    let _ = nice(10);
    Ok(())
}

/// The child's side: reads so many bytes as its input says first, or fewer.
pub fn read_part(most: u64) -> io::Result<Vec<u8>> {
    let (mut size, mut bytes) = ([0; 8], Vec::new());
    let mut input = io::stdin();
    input.read_exact(&mut size)?;
    input.take(u64::from_le_bytes(size).min(most)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The child's side: ends when its input does, because nobody waits any more.
pub fn end_with_input() {
    std::thread::spawn(|| {
        let _ = io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
}
