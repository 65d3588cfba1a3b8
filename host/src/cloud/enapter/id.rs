//! The id of a request that cannot be read: somebody waits for its answer.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

/// The id of a request that cannot be read as a whole: too long, too deep, or
/// broken after it.
pub(super) fn readable_id(payload: &[u8]) -> Option<String> {
    let mut id = None;
    // What is wrong with the rest is told already.
    let _ = IdOf(&mut id).deserialize(&mut serde_json::Deserializer::from_slice(payload));
    id.filter(|id| !id.is_empty())
}

/// Looks for the key `id` and skips everything else, at any depth.
struct IdOf<'a>(&'a mut Option<String>);

impl<'de> DeserializeSeed<'de> for IdOf<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for IdOf<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            match &*key {
                "id" => *self.0 = Some(map.next_value()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}
