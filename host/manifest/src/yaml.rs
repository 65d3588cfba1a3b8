//! YAML as people mean it: keys stand once, and only true and false are booleans.

use serde::Deserialize;
use serde_saphyr::{DuplicateKeyPolicy, Location};

/// Reads a document; an error begins with line and column.
pub fn read<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
    let mut options = serde_saphyr::Options::default();
    options.duplicate_keys = DuplicateKeyPolicy::Error;
    // YAML 1.1 reads `no` and `off` as booleans: a trap in enums.
    options.strict_booleans = true;
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let place = error.location().map(|place: Location| format!("{}:{}: ", place.line(), place.column()));
        let message = error.without_snippet().to_string();
        let message = message.lines().next().unwrap_or_default();
        // The library repeats the place and advises its user.
        let message = message.split(", set ").next().unwrap_or_default();
        let message = message.split(" at line ").next().unwrap_or_default();
        format!("{}{message}", place.unwrap_or_default())
    })
}
