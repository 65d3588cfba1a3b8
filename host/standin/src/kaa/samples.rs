//! Data collection (2/DCP, extension `dcx`): what payloads mean, and the samples of one endpoint.
//!
//! The service calls it. It never looks into a sample: times and series are the reader's.

use std::collections::VecDeque;

use serde::Serialize;
use serde_json::{Map, Number, Value as Json, json};

use super::answer::Refusal;
use super::body;

/// Maximum samples of an endpoint, the newest …
pub const MAX_SAMPLES: usize = 10_000;
/// … and their bytes of JSON.
pub const MAX_BYTES: usize = 8 << 20;

/// One stored sample.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Counts from 1 for each endpoint, without gaps.
    pub sequence: u64,
    /// When it came, in milliseconds since 1970.
    pub received: u64,
    /// The app version in whose name it came.
    pub app_version: String,
    /// The sample as JSON; one that came as plain text is converted.
    pub value: Json,
}

/// The samples of one endpoint, in the order in which they came.
#[derive(Debug, Default)]
pub struct Samples {
    // As text: the size is known, and a nested value takes no more than it took on the wire.
    ring: VecDeque<Stored>,
    count: u64,
    batches: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Stored {
    sequence: u64,
    received: u64,
    app_version: String,
    text: String,
}

impl Samples {
    /// Appends a batch; the oldest samples go when there is no room.
    pub fn append(&mut self, now: u64, app_version: &str, batch: &[Json]) {
        self.batches += 1;
        for value in batch {
            self.count += 1;
            let text = value.to_string();
            self.bytes += text.len();
            let (sequence, app_version) = (self.count, app_version.to_owned());
            self.ring.push_back(Stored { sequence, received: now, app_version, text });
            while self.ring.len() > MAX_SAMPLES || self.bytes > MAX_BYTES {
                self.drop_oldest();
            }
        }
    }

    /// Drops the older half; the service calls it when all endpoints together hold too much.
    pub fn shrink(&mut self) {
        for _ in 0..self.ring.len().div_ceil(2) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.ring.pop_front() {
            self.bytes -= oldest.text.len();
        }
    }

    /// The samples after a sequence number, oldest first, at most so many.
    pub fn after(&self, sequence: u64, limit: usize) -> Vec<Sample> {
        let first = self.ring.partition_point(|sample| sample.sequence <= sequence);
        let read = |stored: &Stored| Sample {
            sequence: stored.sequence,
            received: stored.received,
            app_version: stored.app_version.clone(),
            value: serde_json::from_str(&stored.text).unwrap_or_default(),
        };
        self.ring.iter().skip(first).take(limit).map(read).collect()
    }

    /// How many samples ever came.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many batches ever came; a single sample is a batch of one.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// How many bytes are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Reads a JSON payload: an array is a batch, anything else is one sample.
pub fn read_json(payload: &[u8]) -> Result<Vec<Json>, Refusal> {
    Ok(match body::json(payload)? {
        Json::Array(batch) => batch,
        sample => vec![sample],
    })
}

/// Reads a plain payload: a number, directly followed by a unit or by nothing.
///
/// `55%` of the metric `humidity` becomes `{"humidity-value":55,"humidity-unit":"%"}`.
pub fn read_plain(metric: &str, payload: &[u8]) -> Result<Json, Refusal> {
    let text = std::str::from_utf8(payload).map_err(|error| Refusal::malformed(format!("payload: {error}")))?;
    let text = text.trim();
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let (number, unit) = text.split_at(number_length(text));
    let Some(number) = read_number(number) else {
        let found = body::shortened(text);
        return Err(Refusal::malformed(format!("payload: expected a number and a unit as in 55%, found {found:?}")));
    };
    let unit = if unit.is_empty() { "number" } else { unit };
    let mut sample = Map::new();
    sample.insert(format!("{metric}-value"), Json::Number(number));
    sample.insert(format!("{metric}-unit"), json!(unit.trim()));
    Ok(Json::Object(sample))
}

/// How many bytes at the start are a number: sign, digits, fraction, exponent.
fn number_length(text: &str) -> usize {
    let digits = |from: usize| {
        let rest = text.as_bytes().get(from..).unwrap_or_default();
        rest.iter().take_while(|byte| byte.is_ascii_digit()).count()
    };
    let is = |at: usize, bytes: &[u8]| text.as_bytes().get(at).is_some_and(|byte| bytes.contains(byte));
    let start = usize::from(is(0, b"+-"));
    let whole = digits(start);
    if whole == 0 {
        return 0;
    }
    let mut end = start + whole;
    if is(end, b".") && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
    }
    // `5e` and `5eV` have a unit that begins with an e.
    if is(end, b"eE") {
        let sign = usize::from(is(end + 1, b"+-"));
        let exponent = digits(end + 1 + sign);
        if exponent > 0 {
            end += 1 + sign + exponent;
        }
    }
    end
}

fn read_number(text: &str) -> Option<Number> {
    match text.parse::<i64>() {
        Ok(integer) => Some(integer.into()),
        Err(_) => Number::from_f64(text.parse().ok()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_is_a_batch_and_anything_else_is_one_sample() {
        for (payload, samples) in [
            (r#"[{"a":1},{"a":2}]"#, vec![json!({"a": 1}), json!({"a": 2})]),
            (r#"{"a":1}"#, vec![json!({"a": 1})]),
            ("[85,34]", vec![json!(85), json!(34)]),
            ("[[85,34]]", vec![json!([85, 34])]),
            ("[]", vec![]),
            ("true", vec![json!(true)]),
            ("null", vec![Json::Null]),
        ] {
            assert_eq!(read_json(payload.as_bytes()).unwrap(), samples, "{payload}");
        }
        let deep = "[".repeat(100_000);
        for payload in ["", "{", "{'a':1}", "[1,]", "NaN", deep.as_str()] {
            assert_eq!(read_json(payload.as_bytes()).unwrap_err().status, 400);
        }
        assert_eq!(read_json(b"\"\xff\xfe\"").unwrap_err().status, 400);
    }

    #[test]
    fn a_plain_payload_is_a_number_and_a_unit() {
        for (payload, value, unit) in [
            ("55%", json!(55), "%"),
            ("2061", json!(2061), "number"),
            ("2061m", json!(2061), "m"),
            ("-3.5°C", json!(-3.5), "°C"),
            ("+7", json!(7), "number"),
            ("1e3", json!(1000.0), "number"),
            ("5eV", json!(5), "eV"),
            ("5.", json!(5), "."),
            ("\"47%\"", json!(47), "%"),
            (" 47 \n", json!(47), "number"),
            ("007", json!(7), "number"),
        ] {
            let expected = json!({"m-value": value, "m-unit": unit});
            assert_eq!(read_plain("m", payload.as_bytes()).unwrap(), expected, "{payload}");
        }
        for payload in ["", "true", "%55", "-", "1e999", ".5", "[1]"] {
            assert_eq!(read_plain("m", payload.as_bytes()).unwrap_err().status, 400, "{payload}");
        }
        assert!(read_plain("m", b"5\xff").is_err());
    }

    #[test]
    fn the_oldest_samples_go_when_there_is_no_room() {
        let mut samples = Samples::default();
        for batch in 0..3 {
            samples.append(batch, "a-v1", &vec![json!(batch); MAX_SAMPLES / 2]);
        }
        assert_eq!(samples.count(), MAX_SAMPLES as u64 / 2 * 3);
        let kept = samples.after(0, usize::MAX);
        assert_eq!(kept.len(), MAX_SAMPLES);
        assert_eq!(kept[0].sequence, MAX_SAMPLES as u64 / 2 + 1);
        assert_eq!(samples.after(samples.count() - 1, 10).len(), 1);

        let large = json!("x".repeat(MAX_BYTES / 4));
        samples.append(9, "a-v1", &vec![large; 10]);
        assert!(samples.bytes() <= MAX_BYTES);
        samples.shrink();
        assert!(samples.bytes() <= MAX_BYTES / 2);
    }
}
