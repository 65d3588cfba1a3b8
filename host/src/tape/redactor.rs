//! Takes what an operator calls secret out of what goes to a tape.

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Shorter texts would be found everywhere by chance.
const SHORTEST: usize = 4;

/// Writes others over known texts, as they are and as they stand in JSON, in
/// URLs and in base64. What is written has the same length in each of these
/// forms, so that a driver that is given the hidden text does what is on the tape.
#[derive(Debug, Default)]
pub(super) struct Redactor {
    finder: Option<AhoCorasick>,
    /// What to write, by the number of what is found.
    hidden: Vec<Vec<u8>>,
}

impl Redactor {
    pub(super) fn new(secrets: &[String]) -> Redactor {
        let long = secrets.iter().filter(|secret| secret.len() >= SHORTEST);
        let pairs = long.flat_map(|secret| forms(secret.as_bytes()).into_iter().zip(forms(hidden(secret).as_bytes())));
        let (texts, hidden): (Vec<_>, Vec<_>) = pairs.filter(|(text, hidden)| text != hidden).unzip();
        if texts.is_empty() {
            return Redactor::default();
        }
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts).ok();
        Redactor { finder, hidden }
    }

    /// Hides the secrets in all bytes from a place on.
    pub(super) fn hide(&self, bytes: &mut [u8], from: usize) {
        let (Some(finder), Some(part)) = (&self.finder, bytes.get_mut(from..)) else { return };
        let found: Vec<_> = finder.find_iter(&*part).collect();
        for found in found {
            let hidden = self.hidden.get(found.pattern().as_usize());
            if let (Some(secret), Some(hidden)) = (part.get_mut(found.range()), hidden)
                && secret.len() == hidden.len()
            {
                secret.copy_from_slice(hidden);
            }
        }
    }
}

/// What stands for a secret: of the same length, and in each place something
/// that others write in the same way.
pub(super) fn hidden(secret: &str) -> String {
    let stands_for = |byte: u8| match byte {
        b'-' | b'_' | b'.' => '-',
        b'!' | b'\'' | b'(' | b')' | b'*' => '!',
        b' ' | b'"' | b'\\' | b'~' => char::from(byte),
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

    fn hide(redactor: &Redactor, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        redactor.hide(&mut bytes, 0);
        assert_eq!(bytes.len(), text.len());
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_secret_is_hidden_as_it_is_and_in_base64_wherever_it_begins() {
        let redactor = Redactor::new(&["hunter2-secret".to_owned(), "abc".to_owned()]);
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
    fn what_is_hidden_is_written_as_long_as_the_secret_everywhere() {
        for secret in ["p w#\"1\\", "geheimß!", "a b+c/d", "~tilde~(x)*"] {
            let redactor = Redactor::new(&[secret.to_owned()]);
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
            let redactor = Redactor::new(std::slice::from_ref(&secret));
            let mut text = format!("{around}{secret}{around}").into_bytes();
            let length = text.len();
            redactor.hide(&mut text, 0);
            prop_assert_eq!(text.len(), length);
            let is_there = text.windows(secret.len()).any(|part| part == secret.as_bytes());
            prop_assert!(!is_there || hidden(&secret) == secret);
        }
    }
}
