//! What a gate has found out about a new version, before it took over.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Things of a kind that are named.
const NAMED: usize = 5;

/// What became of a new version in the gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gated {
    /// Both versions ran on the device's tape.
    Compared(Box<Comparison>),
    /// They could not be compared; why.
    Failed(String),
}

impl fmt::Display for Gated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gated::Compared(comparison) => comparison.fmt(f),
            Gated::Failed(problem) => write!(f, "nothing could be compared: {problem}"),
        }
    }
}

/// How two versions of a driver differ on the same tape.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// How long the tape is, in seconds.
    pub seconds: f64,
    /// Samples of the old driver.
    pub samples: u64,
    /// Of those, that the new one sends with the same values.
    pub equal: u64,
    /// That only the old one, and only the new one sends.
    pub missing: u64,
    /// The same.
    pub extra: u64,
    /// By attribute.
    pub attributes: BTreeMap<String, Distance>,
    /// Alerts and properties, answers of commands and of configurations that are other ones.
    pub others: Vec<String>,
    /// What only the old one asks of the device or writes to it.
    pub unasked: Vec<String>,
    /// What only the new one does.
    pub asked: Vec<String>,
    /// Warnings and errors that only the new one logs.
    pub logs: Vec<String>,
    /// What the new one asked that the tape has no answer to.
    pub unknown: Vec<String>,
    /// How often the new one crashed or refused to start, and the last cause.
    pub crashes: u64,
    /// The same.
    pub problem: Option<String>,
    /// The processor's time of the new one, of the old one's.
    pub cpu: f64,
    /// Bytes of memory that the new one has more.
    pub memory: i64,
}

/// How far the values of an attribute are apart.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Distance {
    /// Samples in which it is another one.
    pub samples: u64,
    /// The largest difference, as a part of the old value; none when it is no number.
    pub most: Option<f64>,
    /// The first difference.
    pub example: String,
}

impl Comparison {
    /// Whether there is nothing that an operator has to look at: numbers may
    /// differ by a part of their value.
    pub fn is_same(&self, tolerance: f64) -> bool {
        let is_near = |distance: &Distance| distance.most.is_some_and(|most| most <= tolerance);
        self.missing == 0
            && self.extra == 0
            && self.attributes.values().all(is_near)
            && [&self.others, &self.unasked, &self.asked].into_iter().all(Vec::is_empty)
            && self.crashes == 0
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Comparison { samples, equal, missing, extra, .. } = self;
        write!(f, "{equal} of {samples} samples equal")?;
        for (name, distance) in self.attributes.iter().take(NAMED) {
            write!(f, ", {} differ in {name:?}", distance.samples)?;
            match distance.most {
                Some(most) => write!(f, " by at most {} %", percent(most))?,
                None => write!(f, " ({})", distance.example)?,
            }
        }
        if self.attributes.len() > NAMED {
            write!(f, ", and in {} more", self.attributes.len() - NAMED)?;
        }
        let mut parts = Vec::new();
        if *missing > 0 {
            parts.push(format!("{missing} missing"));
        }
        if *extra > 0 {
            parts.push(format!("{extra} more"));
        }
        let lists = [
            ("no longer asks", &self.unasked),
            ("asks or writes also", &self.asked),
            ("logs also", &self.logs),
            ("not on the tape", &self.unknown),
        ];
        parts.extend(self.others.iter().take(NAMED).cloned());
        let named = lists.into_iter().filter(|(_, list)| !list.is_empty());
        parts.extend(named.map(|(what, list)| {
            let shown: Vec<&str> = list.iter().take(NAMED).map(String::as_str).collect();
            let more = if list.len() > NAMED { format!(" and {} more", list.len() - NAMED) } else { String::new() };
            format!("{what} {}{more}", shown.join(", "))
        }));
        if self.unasked.is_empty() && self.asked.is_empty() {
            parts.push("requests equal".to_owned());
        }
        if self.crashes > 0 {
            parts.push(format!(
                "was begun anew {} times: {}",
                self.crashes,
                self.problem.as_deref().unwrap_or_default()
            ));
        }
        let memory = self.memory.unsigned_abs() >> 10;
        let sign = if self.memory < 0 { "-" } else { "+" };
        parts.push(format!("CPU {:.1} ×; memory {sign} {memory} KiB", self.cpu));
        write!(f, "; {}", parts.join("; "))
    }
}

fn percent(part: f64) -> String {
    let percent = part * 100.0;
    if percent >= 10.0 { format!("{percent:.0}") } else { format!("{percent:.2}") }
}
