//! What differs between two runs of a device.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::deeds::{Deeds, cut};
use super::rehearsal::Rehearsed;
use crate::manifest::value::json_of;
use crate::message::Value;
use crate::receipt::{Comparison, Distance};
use crate::tape::Tape;

/// Things of a kind that are kept.
const KEPT: usize = 20;
/// Samples of two drivers belong together when they are no further apart.
const TOGETHER: Duration = Duration::from_secs(2);

/// Compares what an old and a new driver have done.
pub(super) fn compare(tape: &Tape, old: &Rehearsed, new: &Rehearsed) -> Comparison {
    let (before, after) = (&old.deeds, &new.deeds);
    let (_, first, last) = tape.extent();
    let length = last.saturating_sub(first);
    let mut comparison = Comparison {
        seconds: length.as_secs_f64(),
        samples: u64::try_from(before.samples.len()).unwrap_or(u64::MAX),
        others: bounded(others(old, new)),
        unasked: bounded(only(before, after)),
        asked: bounded(only(after, before)),
        logs: bounded(after.logs.difference(&before.logs).cloned().collect()),
        unknown: new.unknown.iter().filter(|asked| !old.unknown.contains(asked)).cloned().collect(),
        crashes: new.lives.saturating_sub(1),
        problem: new.problem.clone(),
        cpu: new.cpu.as_secs_f64() / old.cpu.as_secs_f64().max(1e-6),
        memory: signed(new.memory) - signed(old.memory),
        ..Comparison::default()
    };
    samples(&before.samples, &after.samples, length, &mut comparison);
    comparison
}

/// How many samples are on a tape, how many are sent when it is run again, and how
/// many of these are the same.
pub(super) fn sent_again(tape: &Tape, again: &Rehearsed) -> (usize, usize, u64) {
    let (_, first, last) = tape.extent();
    let sent = Deeds::of(tape).samples.into_iter();
    let sent: Vec<_> = sent.map(|(at, values)| (at.saturating_sub(first), values)).collect();
    let mut comparison = Comparison::default();
    samples(&sent, &again.deeds.samples, last.saturating_sub(first), &mut comparison);
    (sent.len(), again.deeds.samples.len(), comparison.equal)
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Puts samples together that were sent at about the same time, and compares their values.
fn samples(
    before: &[(Duration, BTreeMap<String, Value>)],
    after: &[(Duration, BTreeMap<String, Value>)],
    end: Duration,
    comparison: &mut Comparison,
) {
    // What is under way at the end is cut there by chance.
    let counts = |at: Duration| u64::from(at + TOGETHER < end);
    let mut taken = vec![false; after.len()];
    let mut begin = 0;
    for (at, values) in before {
        while after.get(begin).is_some_and(|(other, _)| *other + TOGETHER < *at) {
            begin += 1;
        }
        // Of those near in time the one that has the most names in common, and of these the nearest.
        let near = after.iter().enumerate().skip(begin).take_while(|(_, (other, _))| *other <= *at + TOGETHER);
        let best = near
            .filter(|(place, _)| !taken.get(*place).copied().unwrap_or(true))
            .map(|(place, (other, theirs))| {
                let common = values.keys().filter(|name| theirs.contains_key(*name)).count();
                (common, std::cmp::Reverse(other.abs_diff(*at)), std::cmp::Reverse(place))
            })
            .filter(|(common, ..)| *common > 0)
            .max();
        let Some((_, _, std::cmp::Reverse(place))) = best else {
            comparison.missing += counts(*at);
            continue;
        };
        if let Some(place) = taken.get_mut(place) {
            *place = true;
        }
        let Some((_, theirs)) = after.get(place) else { continue };
        let names: BTreeSet<&String> = values.keys().chain(theirs.keys()).collect();
        let mut is_equal = true;
        for name in names {
            let (old, new) = (values.get(name), theirs.get(name));
            if is_same(old, new) {
                continue;
            }
            is_equal = false;
            let known = comparison.attributes.entry(name.clone());
            let distance =
                known.or_insert_with(|| Distance { samples: 0, most: Some(0.0), example: example(old, new) });
            distance.samples += 1;
            distance.most = distance.most.zip(apart(old, new)).map(|(most, now)| most.max(now));
        }
        comparison.equal += u64::from(is_equal);
    }
    let alone = after.iter().zip(&taken).filter(|(_, taken)| !**taken);
    comparison.extra += alone.map(|((at, _), _)| counts(*at)).sum::<u64>();
}

fn is_same(old: Option<&Value>, new: Option<&Value>) -> bool {
    old == new || apart(old, new) == Some(0.0)
}

fn example(old: Option<&Value>, new: Option<&Value>) -> String {
    let text = |value: Option<&Value>| value.map_or("nothing".to_owned(), |value| json_of(value).to_string());
    cut(&format!("{} instead of {}", text(new), text(old)))
}

/// How far two numbers are apart, as a part of the first.
fn apart(old: Option<&Value>, new: Option<&Value>) -> Option<f64> {
    #[allow(clippy::cast_precision_loss)] // a part of it is told
    let number = |value: &Value| match value {
        Value::Integer(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        _ => None,
    };
    let (old, new) = (number(old?)?, number(new?)?);
    let apart = (new - old).abs();
    Some(if apart == 0.0 { 0.0 } else { apart / old.abs().max(f64::MIN_POSITIVE) }.min(1e9))
}

/// Alerts, properties and answers that are other ones.
fn others(old: &Rehearsed, new: &Rehearsed) -> Vec<String> {
    let (before, after) = (&old.deeds, &new.deeds);
    let mut others = Vec::new();
    if before.alerts != after.alerts {
        let place = before.alerts.iter().zip(&after.alerts).position(|(old, new)| old != new);
        let place = place.unwrap_or(before.alerts.len().min(after.alerts.len()));
        let text = |alerts: Option<&Option<BTreeSet<String>>>| match alerts {
            None => "as before".to_owned(),
            Some(None) => "unknown".to_owned(),
            Some(Some(ids)) => format!("[{}]", ids.iter().cloned().collect::<Vec<_>>().join(", ")),
        };
        let (old, new) = (text(before.alerts.get(place)), text(after.alerts.get(place)));
        others.push(cut(&format!("alerts {new} instead of {old}")));
    }
    let names: BTreeSet<&String> = before.properties.keys().chain(after.properties.keys()).collect();
    for name in names {
        let (old, new) = (before.properties.get(name), after.properties.get(name));
        if old != new {
            others.push(format!("property {name:?} {}", example(old, new)));
        }
    }
    for ((what, old), (_, new)) in old.answers.iter().zip(&new.answers).filter(|(old, new)| old != new) {
        others.push(cut(&format!("{what}: {new} instead of {old}")));
    }
    others
}

/// What only one of two drivers asks for, or far more often, and writes that it
/// makes more often or in another order.
fn only(these: &Deeds, those: &Deeds) -> Vec<String> {
    let mut only = Vec::new();
    for (request, times) in &these.requests {
        let others = those.requests.get(request).copied().unwrap_or_default();
        // A poll more or less at the ends is nothing.
        let is_more = if others == 0 { *times > 0 } else { *times > 2 * others + 1 };
        if is_more {
            only.push(if others == 0 {
                cut(request)
            } else {
                format!("{} ({times} times, not {others})", cut(request))
            });
        }
    }
    let differs = these.writes.iter().zip(&those.writes).position(|(this, that)| this != that);
    if let Some(place) = differs.or((these.writes.len() > those.writes.len()).then_some(those.writes.len())) {
        let rest = these.writes.iter().skip(place);
        only.extend(rest.map(|write| cut(write)));
    }
    only
}

/// The first of many, and how many more there are.
fn bounded(mut list: Vec<String>) -> Vec<String> {
    let more = list.len().saturating_sub(KEPT);
    list.truncate(KEPT);
    if more > 0 {
        list.push(format!("and {more} more"));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: u64, values: &[(&str, f64)]) -> (Duration, BTreeMap<String, Value>) {
        let values = values.iter().map(|(name, value)| ((*name).to_owned(), Value::Float(*value)));
        (Duration::from_millis(at), values.collect())
    }

    fn empty() -> Comparison {
        Comparison { cpu: 1.0, memory: 12 << 10, ..Comparison::default() }
    }

    #[test]
    fn samples_are_put_together_by_time_and_names() {
        let before: Vec<_> = (0..10).map(|n| sample(n * 10_000, &[("power", 100.0), ("count", n as f64)])).collect();
        let mut after: Vec<_> =
            (0..10).map(|n| sample(n * 10_000 + 30, &[("power", 100.0), ("count", n as f64)])).collect();
        let told = |before: &[_], after: &[_]| {
            let mut comparison = Comparison { samples: before.len() as u64, ..empty() };
            samples(before, after, Duration::from_secs(600), &mut comparison);
            comparison
        };
        let same = told(&before, &after);
        assert!(same.is_same(0.0));
        assert_eq!(same.to_string(), "10 of 10 samples equal; requests equal; CPU 1.0 ×; memory + 12 KiB");
        // One that falls silent is not the same, nor one that stops halfway.
        for number in [0, 5] {
            let silent = told(&before, &after[..number]);
            assert!(!silent.is_same(1.0) && silent.missing == 10 - number as u64, "{silent}");
        }
        // Another sample at the same time is no stranger's.
        after.insert(3, sample(20_000, &[("other", 1.0)]));
        assert_eq!(told(&before, &after).to_string().split(';').nth(1), Some(" 1 more"));
        after.remove(3);
        after[4].1.insert("power".into(), Value::Float(100.1));
        let near = told(&before, &after);
        assert!(!near.is_same(0.0) && near.is_same(0.01));
        assert!(
            near.to_string().starts_with("9 of 10 samples equal, 1 differ in \"power\" by at most 0.10 %;"),
            "{near}"
        );
        after[5].1.insert("power".into(), Value::Unknown);
        after.pop();
        let worse = told(&before, &after);
        assert!(!worse.is_same(1.0));
        let text = worse.to_string();
        assert!(
            text.starts_with("7 of 10 samples equal, 2 differ in \"power\" (100.1 instead of 100.0); 1 missing;"),
            "{text}"
        );
    }

    #[test]
    fn writes_have_to_be_the_same_in_the_same_order_and_polls_about_as_often() {
        let deeds = |writes: &[&str], polls: u64| Deeds {
            writes: writes.iter().map(|write| (*write).to_owned()).collect(),
            requests: [("line/1 read 0 x 2".to_owned(), polls)].into(),
            ..Deeds::default()
        };
        let old = deeds(&["coil 1", "coil 0"], 100);
        assert!(only(&deeds(&["coil 1", "coil 0"], 101), &old).is_empty());
        assert_eq!(only(&deeds(&["coil 0", "coil 1"], 100), &old), ["coil 0", "coil 1"]);
        assert_eq!(only(&deeds(&["coil 1", "coil 0", "coil 0"], 100), &old), ["coil 0"]);
        assert_eq!(only(&old, &deeds(&["coil 1"], 100)), ["coil 0"]);
        assert_eq!(only(&deeds(&["coil 1", "coil 0"], 300), &old), ["line/1 read 0 x 2 (300 times, not 100)"]);
        assert_eq!(bounded((0..30).map(|number| number.to_string()).collect()).last().unwrap(), "and 10 more");
    }

    #[test]
    fn zero_and_what_is_no_number_are_told() {
        let float = |value| Some(Value::Float(value));
        assert_eq!(apart(float(0.0).as_ref(), float(0.0).as_ref()), Some(0.0));
        assert!(apart(float(0.0).as_ref(), float(1.0).as_ref()).unwrap() > 1e6);
        assert_eq!(apart(float(1.0).as_ref(), Some(&Value::Integer(1))), Some(0.0));
        assert_eq!(apart(float(1.0).as_ref(), None), None);
    }
}
