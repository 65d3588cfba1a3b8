//! Texts from outside: cut where they enter, made visible on their way to people.
//!
//! A driver's file, a driver, a device and a cloud may say anything, also
//! megabytes of it, and sequences that move a terminal's cursor or turn the
//! direction of the text around.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The first bytes of a text, at a character's end.
pub fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// The same, with a mark where something is missing.
pub fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    match cut(text, most) {
        whole if whole.len() == text.len() => whole.into(),
        part => format!("{part}…").into(),
    }
}

/// A number of things, in words: `1 device`, `2 devices`.
pub fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

/// Some names for an error, with a mark where there are more.
pub fn list<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    const SHOWN: usize = 12;
    let mut names = names.into_iter();
    let shown: Vec<String> =
        names.by_ref().take(SHOWN).map(|name| shortened(name.as_ref(), 100).into_owned()).collect();
    if shown.is_empty() {
        return "nothing".into();
    }
    if names.next().is_some() { format!("{}, …", shown.join(", ")) } else { shown.join(", ") }
}

/// What is meant by a name that is not known: the one that is like it, or one
/// of these.
pub fn instead<T: AsRef<str>>(wrong: &str, known: impl IntoIterator<Item = T>) -> String {
    const ALIKE: f64 = 0.85;
    let known: Vec<T> = known.into_iter().collect();
    // Comparing takes the square of the length.
    let wrong = cut(wrong, 100);
    let likeness = known.iter().map(|name| strsim::jaro_winkler(wrong, cut(name.as_ref(), 100)));
    let best = likeness.zip(&known).max_by(|(one, _), (other, _)| one.total_cmp(other));
    match best {
        Some((likeness, name)) if likeness >= ALIKE => format!("did you mean {:?}?", shortened(name.as_ref(), 100)),
        Some(_) => {
            let quoted = known.iter().map(|name| format!("{:?}", shortened(name.as_ref(), 100)));
            format!("expected one of {}", list(quoted))
        }
        None => "there are none".into(),
    }
}

/// A text as it may go to a terminal or into a line of a log: what is not
/// visible is escaped.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            // As in JSON, so that an escaped document is the same document.
            c if is_hidden(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(shown, "\\u{unit:04x}");
                }
            }
            c => shown.push(c),
        }
    }
    shown.into()
}

/// Controls, and what changes the direction or breaks the line of a text.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn long_texts_are_cut_at_a_character() {
        assert_eq!(cut("äää", 4), "ää");
        assert_eq!(cut("äää", 5), "ää");
        assert_eq!(shortened("abc", 3), "abc");
        assert_eq!(shortened("abcd", 3), "abc…");
        assert_eq!(list(["a", "b"]), "a, b");
        assert_eq!(list([""; 0]), "nothing");
        assert!(list(["a"; 13]).ends_with("a, …"));
    }

    #[test]
    fn what_would_move_a_cursor_or_turn_a_text_is_escaped() {
        for (text, expected) in [
            ("plain ü 汉", "plain ü 汉"),
            ("a\x1b[2Jb", "a\\u001b[2Jb"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("a\u{202e}b\u{9b}", "a\\u202eb\\u009b"),
        ] {
            assert_eq!(visible(text), expected);
        }
    }

    proptest! {
        #[test]
        fn no_text_keeps_a_control_or_a_mark_of_direction(text in ".*", raw in prop::collection::vec(any::<char>(), 0..50)) {
            for text in [text, raw.into_iter().collect()] {
                let shown = visible(&text);
                prop_assert!(!shown.contains(is_hidden));
                prop_assert!(!shown.contains(char::is_control));
            }
        }
    }
}
