//! What can be wrong with a simulated device.

use std::time::Duration;

use serde::Deserialize;

/// What is wrong with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum Fault {
    /// It does not answer.
    Timeout,
    /// It refuses with a Modbus exception.
    Exception(u8),
    /// It answers with an HTTP status.
    Status(u16),
    /// It gives one value less than asked for.
    WrongCount,
    /// It answers with something else.
    Garbage,
    /// It takes so long.
    Slow(Duration),
    /// It closes the connection.
    Closes,
    /// It takes no connection.
    Refuses,
}

impl TryFrom<String> for Fault {
    type Error = String;

    fn try_from(text: String) -> Result<Fault, String> {
        let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
        let fault = match word {
            "exception" => rest.parse().ok().map(Fault::Exception),
            "status" => rest.parse().ok().map(Fault::Status),
            "slow" => humantime::parse_duration(rest).ok().map(Fault::Slow),
            _ if !rest.is_empty() => None,
            "timeout" => Some(Fault::Timeout),
            "wrong_count" => Some(Fault::WrongCount),
            "garbage" => Some(Fault::Garbage),
            "closes" => Some(Fault::Closes),
            "refuses" => Some(Fault::Refuses),
            _ => None,
        };
        fault.ok_or_else(|| {
            format!(
                "expected one of timeout, exception 2, status 500, wrong_count, garbage, slow 2s, closes, refuses, \
                 found {text:?}"
            )
        })
    }
}

/// As it is written.
impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Timeout => f.write_str("timeout"),
            Fault::Exception(code) => write!(f, "exception {code}"),
            Fault::Status(status) => write!(f, "status {status}"),
            Fault::WrongCount => f.write_str("wrong_count"),
            Fault::Garbage => f.write_str("garbage"),
            Fault::Slow(time) => write!(f, "slow {}", humantime::format_duration(*time)),
            Fault::Closes => f.write_str("closes"),
            Fault::Refuses => f.write_str("refuses"),
        }
    }
}

/// What can be wrong with a device of a kind, for people to choose from.
pub(super) fn faults_of(kind: &str) -> Vec<Fault> {
    let own: &[Fault] = match kind {
        "output" | "input" | "analog" => return vec![Fault::Refuses],
        "modbus" => &[Fault::Exception(2), Fault::WrongCount],
        "http" => &[Fault::Status(500)],
        _ => &[],
    };
    let always = [Fault::Timeout, Fault::Garbage, Fault::Slow(Duration::from_secs(2)), Fault::Closes, Fault::Refuses];
    always.into_iter().chain(own.iter().copied()).collect()
}
