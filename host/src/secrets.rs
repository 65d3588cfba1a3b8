//! Secrets that are known here, to be taken out of every line of the log,
//! whoever wrote it: tokens, passwords, keys, sensitive parameters.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use aho_corasick::{AhoCorasick, MatchKind};

/// What stands in a line in the place of a secret.
const HIDDEN: &str = "***";
/// Shorter texts are words, and not kept secret by hiding them.
const SHORTEST: usize = 6;

/// See the module documentation. Clones know the same.
#[derive(Clone, Default)]
pub struct Secrets(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// By whose they are.
    texts: BTreeMap<String, Vec<String>>,
    /// Finds them all at once; none when they have changed.
    finder: Option<Option<Arc<AhoCorasick>>>,
}

impl Secrets {
    /// Replaces the secrets of an owner: a device, or the configuration.
    pub fn set(&self, owner: &str, texts: impl IntoIterator<Item = String>) {
        // A key in PEM would be quoted line by line.
        let lines = |text: String| text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>();
        let is_secret = |text: &String| text.len() >= SHORTEST && !text.starts_with("-----");
        let texts: Vec<String> = texts.into_iter().flat_map(lines).filter(is_secret).collect();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match texts.is_empty() {
            true => known.texts.remove(owner).unwrap_or_default(),
            false => known.texts.insert(owner.to_owned(), texts.clone()).unwrap_or_default(),
        };
        if before != texts {
            known.finder = None;
        }
    }

    /// A text without secrets.
    pub fn hide<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.finder() {
            Some(finder) if finder.is_match(text) => {
                let mut hidden = String::with_capacity(text.len());
                finder.replace_all_with(text, &mut hidden, |_, _, hidden| {
                    hidden.push_str(HIDDEN);
                    true
                });
                hidden.into()
            }
            _ => text.into(),
        }
    }

    fn finder(&self) -> Option<Arc<AhoCorasick>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.finder.is_none() {
            let texts: Vec<&String> = known.texts.values().flatten().collect();
            let mut builder = AhoCorasick::builder();
            // A secret may be the beginning of another one.
            let built = builder.match_kind(MatchKind::LeftmostLongest).build(&texts);
            known.finder = Some(built.ok().filter(|_| !texts.is_empty()).map(Arc::new));
        }
        known.finder.clone().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_wherever_they_stand_and_forgotten_with_their_owner() {
        let secrets = Secrets::default();
        assert_eq!(secrets.hide("nothing"), "nothing");
        secrets.set("config", ["tokenA".to_owned(), "tokenAB".to_owned(), "abc".to_owned()]);
        secrets.set("meter", ["-----BEGIN KEY-----\nMIIabcdef\nline2line2\n-----END KEY-----".to_owned()]);
        assert_eq!(secrets.hide("kp1/v1/dcx/tokenAB/json tokenA abc"), "kp1/v1/dcx/***/json *** abc");
        assert_eq!(secrets.hide("MIIabcdef -----BEGIN KEY----- line2line2"), "*** -----BEGIN KEY----- ***");
        secrets.set("meter", []);
        assert_eq!(secrets.hide("MIIabcdef tokenA"), "MIIabcdef ***");
    }
}
