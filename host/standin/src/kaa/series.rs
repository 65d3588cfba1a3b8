//! Time series as EPTS makes them of samples by itself: `auto~<field>` for each number in an object.
//!
//! The HTTP side calls it; nothing is stored twice.

use serde_json::{Map, Value as Json, json};

use super::samples::Sample;

/// The points of a series within a time span, in milliseconds since 1970, oldest sample first.
///
/// A sample's time is its field `timestamp` if that is a number, otherwise when it came.
pub fn points(samples: &[Sample], series: &str, from: u64, to: u64) -> Vec<Json> {
    let Some(field) = series.strip_prefix("auto~") else { return Vec::new() };
    let point = |sample: &Sample| {
        let object = sample.value.as_object()?;
        let value = object.get(field).filter(|value| value.is_number())?;
        let time = time(object).unwrap_or(sample.received);
        (from..=to).contains(&time).then(|| json!({"timestamp": time, "values": {"value": value}}))
    };
    samples.iter().filter_map(point).collect()
}

fn time(sample: &Map<String, Json>) -> Option<u64> {
    sample.get("timestamp")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_of_an_object_is_a_series() {
        let sample = |value: Json| Sample { sequence: 1, received: 50, app_version: "a".to_owned(), value };
        let samples = [
            sample(json!({"timestamp": 10, "temperature": 23, "name": "x"})),
            sample(json!({"temperature": 25.5})),
            sample(json!(7)),
        ];
        let point = |time: u64, value: Json| json!({"timestamp": time, "values": {"value": value}});
        let all = [point(10, json!(23)), point(50, json!(25.5))];
        assert_eq!(points(&samples, "auto~temperature", 0, u64::MAX), all);
        assert_eq!(points(&samples, "auto~temperature", 11, 60), all[1..]);
        assert!(points(&samples, "auto~name", 0, u64::MAX).is_empty());
        assert!(points(&samples, "temperature", 0, u64::MAX).is_empty());
    }
}
