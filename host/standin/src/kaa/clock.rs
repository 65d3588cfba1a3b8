//! The time service (extension `tsx`): the platform's clock and the offset of a time zone.

use jiff::Timestamp;
use serde_json::json;

use super::answer::{Answer, Outcome, Refusal};
use super::body;

/// Answers a device that asks for the time; `now` is in milliseconds since 1970.
pub fn tell(now: u64, payload: &[u8]) -> Outcome {
    let request = body::object(payload, &["timezone"])?;
    let Some(zone) = body::text(&request, "timezone")? else {
        return Ok(Answer::json(&json!({ "timestamp": now })));
    };
    let found = body::shortened(&zone);
    let unknown = || Refusal::missing(format!("timezone {found:?}: expected a name as in Pacific/Easter"));
    let zone = jiff::tz::db().get(&zone).map_err(|_| unknown())?;
    let instant = i64::try_from(now).ok().and_then(|now| Timestamp::from_millisecond(now).ok()).unwrap_or_default();
    Ok(Answer::json(&json!({"timestamp": now, "offset": zone.to_offset(instant).seconds()})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_of_a_zone_is_the_one_of_that_day() {
        let winter = 1_700_000_000_000;
        for (payload, offset) in [
            ("", None),
            ("{}", None),
            (r#"{"timezone":"UTC"}"#, Some(0)),
            (r#"{"timezone":"Asia/Kolkata"}"#, Some(19_800)),
            (r#"{"timezone":"Europe/Berlin"}"#, Some(3600)),
        ] {
            let mut expected = json!({"timestamp": winter});
            if let Some(offset) = offset {
                expected["offset"] = json!(offset);
            }
            assert_eq!(tell(winter, payload.as_bytes()).unwrap(), Answer::json(&expected), "{payload}");
        }
        let summer = 1_720_000_000_000;
        let expected = Answer::json(&json!({"timestamp": summer, "offset": 7200}));
        assert_eq!(tell(summer, br#"{"timezone":"Europe/Berlin"}"#).unwrap(), expected);
        assert_eq!(tell(winter, br#"{"timezone":"Mars/Olympus"}"#).unwrap_err().status, 404);
        assert_eq!(tell(winter, br#"{"timezone":5}"#).unwrap_err().status, 400);
        assert!(tell(u64::MAX, br#"{"timezone":"UTC"}"#).is_ok());
    }
}
