//! Values with units in configuration files: "5s", "16MiB", "50/s", and secrets.
//!
//! Each parses itself strictly, so that the error names the place in the file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize as DeriveDeserialize;
use serde::de::{self, Deserialize, Deserializer};

/// Longer times would overflow clocks.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Longer delays are mistakes.
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// A length of time such as "500ms", "5s" or "2h"; never zero, at most ten years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Reads a text with a unit. A number without one says what was expected.
fn with_unit<'de, D: Deserializer<'de>>(deserializer: D, expected: &str) -> Result<String, D::Error> {
    match toml::Value::deserialize(deserializer)? {
        toml::Value::String(text) => Ok(text),
        toml::Value::Array(_) | toml::Value::Table(_) => Err(de::Error::custom(format!("expected {expected}"))),
        other => Err(de::Error::custom(format!("expected {expected}, found {other}"))),
    }
}

const SPAN: &str = "a time above zero with a unit such as \"5s\" or \"500ms\"";
const DELAY: &str = "a delay above zero and of at most ten seconds such as \"50ms\"";
const SHARE: &str = "a share from \"1%\" to \"99%\"";
const SIZE: &str = "a size above zero with a unit such as \"64KiB\" or \"16MiB\"";
const RATE: &str = "a rate above zero such as \"50/s\", \"10/min\" or \"100/h\"";

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = with_unit(deserializer, SPAN)?;
        match humantime::parse_duration(&text) {
            Ok(time) if time > LONGEST => {
                Err(de::Error::custom(format!("expected a time of at most ten years, found {text:?}")))
            }
            Ok(time) if !time.is_zero() => Ok(Span(time)),
            _ => Err(de::Error::custom(format!("expected {SPAN}, found {text:?}"))),
        }
    }
}

/// A delay such as "50ms": above zero, at most ten seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Delay(pub Duration);

impl<'de> Deserialize<'de> for Delay {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = with_unit(deserializer, DELAY)?;
        match humantime::parse_duration(&text) {
            Ok(time) if !time.is_zero() && time <= LONGEST_DELAY => Ok(Delay(time)),
            _ => Err(de::Error::custom(format!("expected {DELAY}, found {text:?}"))),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// A number of bytes such as "64KiB" or "16MiB"; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// The size as a length in memory.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bytesize::ByteSize(self.0).fmt(f)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = with_unit(deserializer, SIZE)?;
        let has_unit = text.chars().any(|c| c.is_ascii_alphabetic());
        match text.parse::<bytesize::ByteSize>() {
            Ok(size) if has_unit && size.0 > 0 => Ok(Size(size.0)),
            _ => Err(de::Error::custom(format!("expected {SIZE}, found {text:?}"))),
        }
    }
}

/// How often something may happen, such as "50/s" or "10/min".
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// How many in a second on average, and the burst allowed at once.
    pub per_second: f64,
    /// How many may come at once after a quiet time.
    pub burst: f64,
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = with_unit(deserializer, RATE)?;
        let parsed = text.split_once('/').and_then(|(count, unit)| {
            let count: u32 = count.trim().parse().ok().filter(|count| *count > 0)?;
            let seconds = match unit.trim() {
                "s" => 1.0,
                "min" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
            let count = f64::from(count);
            Some(Rate { per_second: count / seconds, burst: count })
        });
        parsed.ok_or_else(|| de::Error::custom(format!("expected {RATE}, found {text:?}")))
    }
}

/// A part of a whole such as "20%"; neither none nor all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(pub u8);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = with_unit(deserializer, SHARE)?;
        let percent = text.strip_suffix('%').and_then(|number| number.trim().parse::<u8>().ok());
        match percent {
            Some(percent @ 1..100) => Ok(Share(percent)),
            _ => Err(de::Error::custom(format!("expected {SHARE}, found {text:?}"))),
        }
    }
}

/// A text that never shows in a log.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where a secret or a document comes from. Exactly one key is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The text itself.
    Value(Secret),
    /// The name of an environment variable.
    Env(String),
    /// A file; relative to the configuration file.
    File(PathBuf),
}

/// Written out, because the derived one would show a password that stands in
/// the place of a table.
impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(DeriveDeserialize)]
        #[serde(untagged)]
        enum Raw {
            Table(std::collections::BTreeMap<String, String>),
            Other(de::IgnoredAny),
        }
        let wrong = || de::Error::custom("expected { env = \"NAME\" }, { file = \"PATH\" } or { value = \"TEXT\" }");
        let Raw::Table(table) = Raw::deserialize(deserializer)? else { return Err(wrong()) };
        let mut entries = table.into_iter();
        match (entries.next(), entries.next()) {
            (Some((key, text)), None) => match key.as_str() {
                "value" => Ok(Source::Value(Secret(text))),
                "env" => Ok(Source::Env(text)),
                "file" => Ok(Source::File(PathBuf::from(text))),
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Secret)
    }
}

impl Source {
    /// Reads the text, without white space at its ends.
    pub fn read(&self, folder: &Path) -> Result<Secret> {
        let text = match self {
            Source::Value(secret) => secret.0.clone(),
            Source::Env(name) => std::env::var(name).with_context(|| format!("reading environment variable {name}"))?,
            Source::File(path) => {
                let path = folder.join(path);
                std::fs::read_to_string(&path).with_context(|| format!("reading file {}", path.display()))?
            }
        };
        Ok(Secret(text.trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, DeriveDeserialize)]
    struct Probe {
        span: Option<Span>,
        size: Option<Size>,
        rate: Option<Rate>,
        share: Option<Share>,
    }

    #[test]
    fn values_with_units_parse_and_others_say_what_was_expected() {
        let probe: Probe = toml::from_str("span='1m 30s'\nsize='16MiB'\nrate='10/min'\nshare='20%'").unwrap();
        assert_eq!(probe.span, Some(Span(Duration::from_secs(90))));
        assert_eq!((probe.size, probe.share), (Some(Size(16 << 20)), Some(Share(20))));
        assert_eq!(probe.rate, Some(Rate { per_second: 10.0 / 60.0, burst: 10.0 }));
        for (text, expected) in [
            ("span='5'", "expected a time above zero"),
            ("span='0s'", "expected a time above zero"),
            ("span=10", "expected a time above zero with a unit such as \"5s\" or \"500ms\", found 10"),
            ("size=10", "such as \"64KiB\" or \"16MiB\", found 10"),
            ("rate=true", "such as \"50/s\", \"10/min\" or \"100/h\", found true"),
            ("rate=['1/s']", "such as \"50/s\", \"10/min\" or \"100/h\""),
            ("size='16'", "expected a size above zero"),
            ("size='0MiB'", "expected a size above zero"),
            ("rate='0/s'", "expected a rate above zero"),
            ("rate='5/day'", "expected a rate above zero"),
            ("share='0%'", "expected a share from \"1%\" to \"99%\", found \"0%\""),
            ("share='100%'", "expected a share from"),
            ("share='20'", "expected a share from"),
            ("share=20", "expected a share from \"1%\" to \"99%\", found 20"),
        ] {
            let error = toml::from_str::<Probe>(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_secret_never_shows() {
        assert_eq!(format!("{:?}", Source::Value(Secret("hunter2".into()))), "Value(***)");
    }
}
