//! The way of texts to people: the only place that prints, so that nothing
//! from outside reaches a terminal as it is.

use std::fmt::Display;
use std::io::{Write, stderr, stdout};

use sandgate::text::visible;

/// Prints a text to standard output, with an end of line. Also JSON stays what
/// it is: what is hidden in a text there is escaped as JSON does.
pub(crate) fn to_output(text: impl Display) {
    let text = shown(&text.to_string());
    let mut out = stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        // Nobody reads on, as in `sandgate logs | head`.
        std::process::exit(1);
    }
}

/// Tells a person beside the output how it goes, or what is wrong.
pub(crate) fn to_errors(text: impl Display) {
    // Where nobody reads it, nobody misses it.
    let _ = stderr().lock().write_all(shown(&text.to_string()).as_bytes());
}

fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len() + 1);
    for line in text.split('\n') {
        shown.push_str(&visible(line));
        shown.push('\n');
    }
    shown
}

/// Prints a line to standard output: a format and its arguments.
macro_rules! say {
    ($($part:tt)*) => { $crate::say::to_output(format_args!($($part)*)) };
}

/// Prints a line to standard error: a format and its arguments.
macro_rules! tell {
    ($($part:tt)*) => { $crate::say::to_errors(format_args!($($part)*)) };
}

pub(crate) use {say, tell};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_hidden_is_printed_and_json_stays_the_same(texts in proptest::collection::vec(any::<String>(), 0..5)) {
            let json = serde_json::Value::from(texts.clone());
            for text in texts.iter().cloned().chain([format!("{json}"), format!("{json:#}")]) {
                let shown = shown(&text);
                prop_assert!(!shown.chars().any(|c| c != '\n' && c.is_control()), "{shown:?}");
                let turns = shown.contains(['\u{202e}', '\u{2066}', '\u{200b}']);
                prop_assert!(!turns);
            }
            let read: serde_json::Value = serde_json::from_str(&shown(&format!("{json:#}"))).unwrap();
            prop_assert_eq!(read, json);
        }
    }
}
