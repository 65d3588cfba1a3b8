//! Takes what an operator calls secret out of what goes to a tape.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Shorter texts would be found everywhere by chance.
const SHORTEST: usize = 4;
/// What stands for each byte of a secret.
const HIDDEN: u8 = b'x';

/// Writes over known texts, as they are and in base64; the length stays, so that
/// a driver that is given the hidden text meets the hidden answers.
#[derive(Debug, Default)]
pub(super) struct Redactor(Option<AhoCorasick>);

impl Redactor {
    pub(super) fn new(secrets: &[String]) -> Redactor {
        let texts: Vec<Vec<u8>> = secrets
            .iter()
            .filter(|secret| secret.len() >= SHORTEST)
            .flat_map(|secret| forms(secret.as_bytes()))
            .collect();
        if texts.is_empty() {
            return Redactor(None);
        }
        Redactor(AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts).ok())
    }

    /// Hides the secrets in a part of the bytes.
    pub(super) fn hide(&self, bytes: &mut Vec<u8>, from: usize) {
        let Some(finder) = &self.0 else { return };
        let found: Vec<Range<usize>> = match bytes.get(from..) {
            Some(part) => finder.find_iter(part).map(|found| from + found.start()..from + found.end()).collect(),
            None => return,
        };
        for range in found {
            if let Some(secret) = bytes.get_mut(range) {
                secret.fill(HIDDEN);
            }
        }
    }
}

/// A text of the same length that says nothing.
pub(super) fn hidden(secret: &str) -> String {
    char::from(HIDDEN).to_string().repeat(secret.len())
}

/// A secret as it stands in other texts: itself, and in base64 at each of the
/// three places where it may begin in it, without the ends that others share.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = vec![secret.to_vec()];
    for before in 0..3 {
        let mut padded = vec![0; before];
        padded.extend_from_slice(secret);
        let whole = padded.len() / 3 * 4;
        let begin = [0, 2, 3].get(before).copied().unwrap_or_default();
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let text = engine.encode(&padded);
            if let Some(middle) = text.as_bytes().get(begin..whole).filter(|middle| middle.len() >= SHORTEST) {
                forms.push(middle.to_vec());
            }
        }
    }
    forms.dedup();
    forms
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn a_secret_is_hidden_as_it_is_and_in_base64_wherever_it_begins() {
        let redactor = Redactor::new(&["hunter2-secret".to_owned(), "abc".to_owned()]);
        let hide = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            redactor.hide(&mut bytes, 0);
            assert_eq!(bytes.len(), text.len());
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(hide("GET /?p=hunter2-secret&a=abc"), "GET /?p=xxxxxxxxxxxxxx&a=abc");
        assert_eq!(hide("nothing"), "nothing");
        for user in ["", "a", "ad", "adm", "admin"] {
            let text = format!("Basic {}", STANDARD.encode(format!("{user}:hunter2-secret")));
            let found = hide(&text);
            assert!(found.contains("xxxxxxxxxxxxxxx"), "{found}");
            // What is left of it are the ends, of at most two characters each.
            let left = found.trim_end_matches('=').replace('x', "").len();
            assert!(left <= "Basic ".len() + user.len() * 4 / 3 + 6, "{found}");
        }
        assert_eq!(hidden("geheimß").len(), "geheimß".len());
    }
}
