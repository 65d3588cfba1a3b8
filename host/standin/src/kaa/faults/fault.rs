//! One fault: its kinds, whom it concerns, and how it is written.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::super::cmp::Unchanged;

/// One misbehaviour and whom it concerns.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// What goes wrong.
    pub kind: Kind,
    /// Only for this extension.
    pub extension: Option<String>,
    /// Only for this endpoint.
    pub token: Option<String>,
    /// How many times more.
    pub times: Option<u32>,
}

/// What can go wrong; `ALL` says what each means.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Kind {
    StatusLate(Duration),
    StatusMissing,
    StatusDoubled,
    PushBeforeReply,
    PushDoubled,
    PushMissing,
    Error(u16),
    ReliableTimeout(Duration),
    DropAfterPuback { kept: bool },
    DropAtPublish,
    Unchanged(Unchanged),
    StrictBodies,
    BrokerMode,
    CloseOnBadTopic,
}

impl Fault {
    pub(super) fn concerns(&self, extension: &str, token: &str) -> bool {
        self.extension.as_deref().is_none_or(|wanted| wanted == extension)
            && self.token.as_deref().is_none_or(|wanted| wanted == token)
    }

    pub(super) fn survives_use(&mut self) -> bool {
        let Some(times) = &mut self.times else { return true };
        *times = times.saturating_sub(1);
        *times > 0
    }
}

impl Kind {
    /// The name without a value.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::StatusLate(_) => "status-late",
            Kind::StatusMissing => "status-missing",
            Kind::StatusDoubled => "status-doubled",
            Kind::PushBeforeReply => "push-before-reply",
            Kind::PushDoubled => "push-doubled",
            Kind::PushMissing => "push-missing",
            Kind::Error(_) => "error",
            Kind::ReliableTimeout(_) => "reliable-timeout",
            Kind::DropAfterPuback { .. } => "drop-after-puback",
            Kind::DropAtPublish => "drop-at-publish",
            Kind::Unchanged(_) => "unchanged",
            Kind::StrictBodies => "strict-bodies",
            Kind::BrokerMode => "broker-mode",
            Kind::CloseOnBadTopic => "close-on-bad-topic",
        }
    }

    /// Whether it changes how everything looks, so that it has no scope and no count.
    fn is_mode(&self) -> bool {
        matches!(self, Kind::Unchanged(_) | Kind::StrictBodies | Kind::BrokerMode | Kind::CloseOnBadTopic)
    }

    fn parse(name: &str, value: Option<&str>) -> Result<Kind, String> {
        let time = || {
            let value = value.ok_or_else(|| format!("{name}: expected a time as in {name}=2s"))?;
            humantime::parse_duration(value).map_err(|error| format!("{name}={value}: {error}"))
        };
        let kind = match name {
            "status-late" => return time().map(Kind::StatusLate),
            "reliable-timeout" => return time().map(Kind::ReliableTimeout),
            "error" => {
                let status = value.and_then(|value| value.parse().ok()).filter(|status| (400..600).contains(status));
                return status.map(Kind::Error).ok_or_else(|| "error: expected a code as in error=503".to_owned());
            }
            "unchanged" => {
                return match value {
                    Some("304") => Ok(Kind::Unchanged(Unchanged::Status)),
                    Some("object") => Ok(Kind::Unchanged(Unchanged::Object)),
                    Some("empty") => Ok(Kind::Unchanged(Unchanged::Empty)),
                    _ => Err("unchanged: expected unchanged=304, unchanged=object or unchanged=empty".to_owned()),
                };
            }
            "drop-after-puback" => {
                return match value {
                    None | Some("lost") => Ok(Kind::DropAfterPuback { kept: false }),
                    Some("kept") => Ok(Kind::DropAfterPuback { kept: true }),
                    Some(value) => Err(format!("{name}={value}: expected lost or kept")),
                };
            }
            "status-missing" => Kind::StatusMissing,
            "status-doubled" => Kind::StatusDoubled,
            "push-before-reply" => Kind::PushBeforeReply,
            "push-doubled" => Kind::PushDoubled,
            "push-missing" => Kind::PushMissing,
            "drop-at-publish" => Kind::DropAtPublish,
            "strict-bodies" => Kind::StrictBodies,
            "broker-mode" => Kind::BrokerMode,
            "close-on-bad-topic" => Kind::CloseOnBadTopic,
            _ => return Err(no_fault(name)),
        };
        match value {
            None => Ok(kind),
            Some(value) => Err(format!("{name}={value}: expected no value")),
        }
    }
}

/// All faults: how each is written, and what it does.
pub const ALL: [(&str, &str); 14] = [
    ("status-late=2s", "holds `/status` back"),
    ("status-missing", "never sends `/status`, though the request was carried out"),
    ("status-doubled", "sends `/status` twice"),
    ("push-before-reply", "sends what a request for commands, configuration or software asks for as a push first"),
    ("push-doubled", "sends pushes twice"),
    ("push-missing", "never sends pushes"),
    ("error=503", "answers `/error` and does nothing"),
    ("reliable-timeout=2s", "answers samples with `/error` 504 after that time and does not store them"),
    (
        "drop-after-puback[=kept]",
        "closes the connection after the PUBACK; the message is lost, or (kept) was carried out",
    ),
    ("drop-at-publish", "closes the connection at a publication without a PUBACK, as after a failed mutual TLS"),
    ("unchanged=304|object|empty", "how \"not changed\" looks over MQTT"),
    ("strict-bodies", "configurations without `statusCode` and `reasonPhrase`, as 7/CMP has them"),
    ("broker-mode", "delivers only what the connection has subscribed to, as behind a broker"),
    ("close-on-bad-topic", "closes the connection at a topic that is no request"),
];

/// The names of all faults.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|(written, _)| written.split(['=', '[']).next().unwrap_or(written))
}

/// What is told about a name that is none.
pub(crate) fn no_fault(name: &str) -> String {
    format!("no fault {name:?}; there are {}", names().collect::<Vec<_>>().join(", "))
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let mut parts = text.split(',');
        let head = parts.next().unwrap_or_default();
        let (name, value) = match head.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (head, None),
        };
        let mut fault = Fault { kind: Kind::parse(name, value)?, extension: None, token: None, times: None };
        for part in parts {
            match part.split_once('=') {
                Some(("ext", extension)) => fault.extension = Some(extension.to_owned()),
                Some(("token", token)) => fault.token = Some(token.to_owned()),
                Some(("times", times)) => {
                    let times: Option<u32> = times.parse().ok().filter(|times| *times > 0);
                    fault.times = Some(times.ok_or_else(|| format!("{part}: expected a number above 0"))?);
                }
                _ => return Err(format!("{part:?}: expected ext=EXTENSION, token=TOKEN or times=N")),
            }
        }
        let scoped = fault.extension.is_some() || fault.token.is_some();
        if fault.kind.is_mode() && (scoped || fault.times.is_some()) {
            return Err(format!("{name}: it concerns everything, without ext, token and times"));
        }
        if fault.kind == Kind::DropAtPublish && scoped {
            return Err(format!("{name}: it concerns every connection, without ext and token"));
        }
        Ok(fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        match &self.kind {
            Kind::StatusLate(time) | Kind::ReliableTimeout(time) => {
                write!(f, "={}", humantime::format_duration(*time).to_string().replace(' ', ""))?;
            }
            Kind::Error(status) => write!(f, "={status}")?,
            Kind::DropAfterPuback { kept: true } => f.write_str("=kept")?,
            Kind::Unchanged(Unchanged::Status) => f.write_str("=304")?,
            Kind::Unchanged(Unchanged::Object) => f.write_str("=object")?,
            Kind::Unchanged(Unchanged::Empty) => f.write_str("=empty")?,
            _ => {}
        }
        if let Some(extension) = &self.extension {
            write!(f, ",ext={extension}")?;
        }
        if let Some(token) = &self.token {
            write!(f, ",token={token}")?;
        }
        match self.times {
            Some(times) => write!(f, ",times={times}"),
            None => Ok(()),
        }
    }
}

impl Serialize for Fault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_and_printed() {
        for text in [
            "status-late=2s",
            "status-late=1s500ms,ext=dcx,token=T,times=3",
            "status-missing",
            "status-doubled,times=1",
            "push-before-reply,ext=cmx",
            "push-doubled",
            "push-missing",
            "error=503",
            "reliable-timeout=10ms",
            "drop-after-puback",
            "drop-after-puback=kept,times=1",
            "drop-at-publish,times=2",
            "unchanged=304",
            "unchanged=object",
            "unchanged=empty",
            "strict-bodies",
            "broker-mode",
            "close-on-bad-topic",
        ] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        for name in names() {
            assert!(!name.parse::<Fault>().is_err_and(|error| error.starts_with("no fault")), "{name}");
        }
    }

    #[test]
    fn wrong_faults_say_what_was_expected() {
        for (text, part) in [
            ("", "there are status-late"),
            ("nonsense", "there are status-late"),
            ("status-late", "expected a time"),
            ("status-late=soon", "status-late=soon"),
            ("error=200", "expected a code"),
            ("unchanged=maybe", "unchanged=304"),
            ("drop-after-puback=x", "lost or kept"),
            ("status-missing=1", "no value"),
            ("status-missing,times=0", "above 0"),
            ("status-missing,often", "ext=EXTENSION"),
            ("broker-mode,times=1", "everything"),
            ("drop-at-publish,token=T", "every connection"),
        ] {
            let error = text.parse::<Fault>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
