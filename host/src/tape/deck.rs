//! What an instance of a driver has at its boundary: nothing, a recorder or a player.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::player::{End, Player};
use super::recorder::Recorder;
use super::redactor::{Redactor, hidden};

/// How a call ended that gave no value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// By the driver itself, or by a rule that holds on every machine.
    Itself(String),
    /// By the clock, the budget or a shortage: another machine may come further.
    ByHost(String),
}

/// Whether a result says that the host has ended the call.
pub(super) fn is_cut(result: &[u8]) -> bool {
    // The value of a call does not matter here: an error comes first, as its number.
    matches!(postcard::take_from_bytes::<Result<(), Ended>>(result), Ok((Err(Ended::ByHost(_)), _)))
}

/// See the module documentation.
#[derive(Debug, Default)]
pub enum Deck {
    /// Nothing is kept.
    #[default]
    Off,
    /// What happens is recorded.
    Recording(Box<Recorder>),
    /// What happens is held against a tape.
    Playing(Box<Player>),
}

impl Deck {
    /// The host calls an export.
    pub fn call(&mut self, number: u8, arguments: &impl Serialize) {
        match self {
            Deck::Off => {}
            Deck::Recording(recorder) => recorder.call(number, arguments),
            Deck::Playing(player) => player.call(number, arguments),
        }
    }

    /// The export has returned.
    pub fn returned<T: Serialize>(&mut self, number: u8, result: Result<&T, Ended>) {
        match self {
            Deck::Off => {}
            Deck::Recording(recorder) => recorder.returned(&result),
            Deck::Playing(player) => player.returned(number, &result),
        }
    }

    /// The driver asks an import: the answer on the tape, if one is played.
    /// Otherwise `answered` is to follow.
    pub fn import<T: DeserializeOwned>(
        &mut self,
        number: u8,
        waits: bool,
        arguments: &impl Serialize,
    ) -> Result<Option<T>, End> {
        match self {
            Deck::Off => Ok(None),
            Deck::Recording(recorder) => {
                recorder.import(number, waits, arguments);
                Ok(None)
            }
            Deck::Playing(player) => player.import(number, arguments).map(Some),
        }
    }

    /// The host has answered.
    pub fn answered(&mut self, waits: bool, answer: &impl Serialize) {
        if let Deck::Recording(recorder) = self {
            recorder.answered(waits, answer);
        }
    }

    /// A handle stands for something from now on, or for nothing any more.
    pub fn handle(&mut self, handle: u32, stands_for: Option<String>) {
        if let Deck::Recording(recorder) = self {
            recorder.handle(handle, stands_for);
        }
    }

    /// A configuration counts from now on: what is secret in it is hidden
    /// wherever it crosses. Gives the configuration as it may be on a tape.
    pub fn configured<'a>(&mut self, configuration: &'a str, secrets: &[String]) -> Cow<'a, str> {
        match self {
            Deck::Off => Cow::Borrowed(configuration),
            Deck::Recording(recorder) => {
                recorder.redactor = Redactor::new(secrets);
                let shown = without(configuration, secrets);
                recorder.configuration.clone_from(&shown.to_string());
                shown
            }
            Deck::Playing(player) => {
                player.redactor = Redactor::new(secrets);
                without(configuration, secrets)
            }
        }
    }

    /// Whether the call that is played was ended by the host on the tape.
    pub fn is_cut(&self) -> bool {
        matches!(self, Deck::Playing(player) if player.is_cut())
    }

    /// The player.
    pub fn player(&self) -> Option<&Player> {
        match self {
            Deck::Playing(player) => Some(player),
            _ => None,
        }
    }

    /// The recorder.
    pub fn recorder(&mut self) -> Option<&mut Recorder> {
        match self {
            Deck::Recording(recorder) => Some(recorder),
            _ => None,
        }
    }
}

/// A configuration in which secrets are hidden, also such that are too short to be
/// looked for elsewhere.
fn without<'a>(configuration: &'a str, secrets: &[String]) -> Cow<'a, str> {
    if secrets.is_empty() {
        return Cow::Borrowed(configuration);
    }
    let mut shown = configuration.to_owned();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        // As it stands in JSON: in quotes, so that a short one is no part of another word.
        let (quoted, hidden) = (quoted(secret), quoted(&hidden(secret)));
        shown = shown.replace(&quoted, &hidden);
    }
    Cow::Owned(shown)
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_on_a_tape_has_no_secrets() {
        let configuration = r#"{"login":{"pin":"12","password":"a \"b\" c","user":"12a"}}"#;
        let secrets = ["12".to_owned(), "a \"b\" c".to_owned()];
        let shown = without(configuration, &secrets);
        assert_eq!(shown, r#"{"login":{"pin":"xx","password":"x \"x\" x","user":"12a"}}"#);
        assert_eq!(without(configuration, &[]), configuration);
    }

    #[test]
    fn an_end_that_the_host_made_is_told_from_others() {
        let of = |result: &Result<u32, Ended>| is_cut(&postcard::to_allocvec(result).unwrap());
        assert!(of(&Err(Ended::ByHost("time".into()))));
        assert!(!of(&Err(Ended::Itself("trap".into()))) && !of(&Ok(1)) && !is_cut(&[]));
    }
}
