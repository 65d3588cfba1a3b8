//! Takes what an operator calls secret out of what goes to a tape.

use std::collections::BTreeMap;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Shorter texts would be found everywhere by chance.
const SHORTEST: usize = 4;
/// Longer ones, such as keys, are looked for in parts, which fit base64.
const PART: usize = 240;
/// More parts than this are not looked for.
const MOST: usize = 64;

/// Writes others over known texts, as they are and as they stand in JSON, in
/// URLs and in base64. What is written has the same length in each of these
/// forms, so that a driver that is given the hidden text does what is on the tape.
#[derive(Debug, Default)]
pub(super) struct Redactor {
    secrets: Vec<String>,
    finder: Option<AhoCorasick>,
    /// What to write, by the number of what is found.
    hidden: Vec<Vec<u8>>,
}

impl Redactor {
    /// Looks for these as well from now on. What was secret stays so: it may still be on its way.
    /// False when they are too many to be hidden.
    #[must_use]
    pub(super) fn add(&mut self, secrets: &[String]) -> bool {
        let parts = secrets.iter().flat_map(|secret| parts(secret));
        let is_new = |part: &&str| part.len() >= SHORTEST && !self.secrets.iter().any(|known| known == part);
        let new: Vec<String> = parts.filter(is_new).map(str::to_owned).collect();
        if new.is_empty() {
            return true;
        }
        self.secrets.extend(new);
        if self.secrets.len() > MOST {
            return false;
        }
        let mut pairs: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for secret in &self.secrets {
            for (form, hidden) in forms(secret.as_bytes()).into_iter().zip(forms(hidden(secret).as_bytes())) {
                // The usual way to write it comes first.
                pairs.entry(form).or_insert(hidden);
            }
        }
        let (texts, hidden): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        // Small, whatever the texts are.
        let kind = Some(AhoCorasickKind::ContiguousNFA);
        let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).kind(kind).build(texts);
        (self.finder, self.hidden) = (built.ok(), hidden);
        self.finder.is_some()
    }

    /// Hides the secrets in all bytes from a place on.
    pub(super) fn hide(&self, bytes: &mut [u8], from: usize) {
        let (Some(finder), Some(mut part)) = (&self.finder, bytes.get_mut(from..)) else { return };
        while let Some(found) = finder.find(&*part) {
            let (_, rest) = part.split_at_mut(found.start());
            let (secret, rest) = rest.split_at_mut(found.len());
            let hidden = self.hidden.get(found.pattern().as_usize());
            if let Some(hidden) = hidden.filter(|hidden| hidden.len() == secret.len()) {
                secret.copy_from_slice(hidden);
            }
            part = rest;
        }
    }

    /// Makes what was found like what is on a tape wherever something hidden is
    /// there: a driver may also say by itself what happens to be a secret.
    pub(super) fn hide_like(&self, tape: &[u8], found: &mut [u8]) {
        let Some(finder) = self.finder.as_ref().filter(|_| tape.len() == found.len()) else { return };
        for place in finder.find_iter(tape) {
            if let (Some(to), Some(from)) = (found.get_mut(place.range()), tape.get(place.range())) {
                to.copy_from_slice(from);
            }
        }
    }
}

/// A text in parts that are not too long.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut end = rest.len().min(PART);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (part, after) = rest.split_at_checked(end)?;
        rest = after;
        Some(part).filter(|part| !part.is_empty())
    })
}

/// What stands for a secret: of the same length, and in each place something
/// that others write in the same way.
pub fn hidden(secret: &str) -> String {
    let stands_for = |byte: u8| match byte {
        b'-' | b'_' | b'.' => '-',
        b'!' | b'\'' | b'(' | b')' | b'*' => '!',
        b' ' | b'"' | b'\\' | b'~' => char::from(byte),
        _ if byte.is_ascii_control() => char::from(byte),
        _ if byte.is_ascii_alphanumeric() => 'x',
        _ => '|',
    };
    secret.bytes().map(stands_for).collect()
}

/// A secret as it stands in other texts: itself, in JSON, in URLs as several
/// languages write it, and in base64 at each of the three places where it may
/// begin in it, without the ends that others share.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let json = serde_json::Value::from(String::from_utf8_lossy(secret)).to_string();
    let mut forms = vec![secret.to_vec(), json.trim_matches('"').as_bytes().to_vec()];
    for safe in ["-_.~", "-_.~!'()*", "-_."] {
        let upper = in_url(secret, safe.as_bytes(), |byte| format!("%{byte:02X}"));
        forms.push(upper.replace(' ', "%20").into_bytes());
        forms.push(upper.replace(' ', "+").into_bytes());
        let lower = in_url(secret, safe.as_bytes(), |byte| format!("%{byte:02x}"));
        forms.push(lower.replace(' ', "%20").into_bytes());
    }
    for before in 0..3 {
        let mut padded = vec![0; before];
        padded.extend_from_slice(secret);
        let whole = padded.len() / 3 * 4;
        let begin = [0, 2, 3].get(before).copied().unwrap_or_default();
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let text = engine.encode(&padded);
            forms.push(text.as_bytes().get(begin..whole).unwrap_or_default().to_vec());
        }
    }
    // Of each there has to be one, so that others have the same in the same place.
    forms.into_iter().map(|form| if form.len() < SHORTEST { secret.to_vec() } else { form }).collect()
}

/// Percent-encoded, but for letters, digits, spaces and what is safe.
fn in_url(text: &[u8], safe: &[u8], escape: impl Fn(u8) -> String) -> String {
    let mut encoded = String::new();
    for byte in text {
        match byte {
            b' ' => encoded.push(' '),
            _ if byte.is_ascii_alphanumeric() || safe.contains(byte) => encoded.push(char::from(*byte)),
            _ => encoded.push_str(&escape(*byte)),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    use super::*;

    fn redactor(secrets: &[&str]) -> Redactor {
        let mut redactor = Redactor::default();
        assert!(redactor.add(&secrets.iter().map(|secret| (*secret).to_owned()).collect::<Vec<_>>()));
        redactor
    }

    fn hide(redactor: &Redactor, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        redactor.hide(&mut bytes, 0);
        assert_eq!(bytes.len(), text.len());
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_secret_is_hidden_as_it_is_and_in_base64_wherever_it_begins() {
        let redactor = redactor(&["hunter2-secret", "abc"]);
        assert_eq!(hide(&redactor, "GET /?p=hunter2-secret&a=abc"), "GET /?p=xxxxxxx-xxxxxx&a=abc");
        assert_eq!(hide(&redactor, "nothing"), "nothing");
        for user in ["", "a", "ad", "adm", "admin"] {
            let text = |secret: &str| STANDARD.encode(format!("{user}:{secret}"));
            let found = hide(&redactor, &text("hunter2-secret"));
            let expected = text(&hidden("hunter2-secret"));
            // The ends depend on what stands beside it.
            let differ = found.bytes().zip(expected.bytes()).filter(|(a, b)| a != b).count();
            assert!(differ <= 3, "{found}, {expected}");
        }
    }

    #[test]
    fn a_long_key_is_hidden_as_a_whole_and_too_many_are_not_recorded() {
        let key = "0123456789abcdef".repeat(200);
        let mut redactor = redactor(&[&key]);
        assert_eq!(hide(&redactor, &format!("<{key}>")), format!("<{}>", "x".repeat(key.len())));
        assert!(!redactor.add(&[(0..10_000).map(|number| format!("{number:06}")).collect()]));
    }

    #[test]
    fn what_is_hidden_is_written_as_long_as_the_secret_everywhere() {
        for secret in ["p w#\"1\\", "geheimß!", "a b+c/d", "~tilde~(x)*", "two\nlines\tof it"] {
            let redactor = redactor(&[secret]);
            let hidden = hidden(secret);
            assert_eq!(hidden.len(), secret.len());
            for (form, expected) in forms(secret.as_bytes()).iter().zip(forms(hidden.as_bytes())) {
                assert_eq!(form.len(), expected.len(), "{secret}");
                let text = format!("<{}>", String::from_utf8_lossy(form));
                assert_eq!(hide(&redactor, &text), format!("<{}>", String::from_utf8_lossy(&expected)), "{secret}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_text_is_found_again_and_lengths_stay(secret in "\\PC{4,20}", around in "[a-z]{0,9}") {
            let redactor = redactor(&[&secret]);
            let mut text = format!("{around}{secret}{around}").into_bytes();
            let length = text.len();
            redactor.hide(&mut text, 0);
            prop_assert_eq!(text.len(), length);
            let is_there = text.windows(secret.len()).any(|part| part == secret.as_bytes());
            prop_assert!(!is_there || hidden(&secret) == secret);
        }
    }
}
