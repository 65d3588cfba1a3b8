//! What an instance of a driver has at its boundary: nothing, a recorder or a player.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::player::{End, Player};
use super::recorder::Recorder;

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

    /// The configuration that counts, as it may be on a tape.
    pub fn configuration(&self) -> String {
        match self {
            Deck::Recording(recorder) => recorder.configuration.clone(),
            Deck::Off | Deck::Playing(_) => String::new(),
        }
    }

    /// A configuration counts from now on: what is secret in it is hidden wherever
    /// it crosses. `shown` is the configuration as it may be on a tape.
    pub fn configured(&mut self, shown: &str, secrets: &[String]) {
        match self {
            Deck::Off => {}
            Deck::Recording(recorder) => {
                if !recorder.redactor.add(secrets) {
                    // What cannot be hidden is not recorded.
                    *self = Deck::Off;
                    return;
                }
                shown.clone_into(&mut recorder.configuration);
            }
            Deck::Playing(player) => {
                // On a tape all that is secret is hidden already.
                let _ = player.redactor.add(secrets);
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_the_host_made_is_told_from_others() {
        let of = |result: &Result<u32, Ended>| is_cut(&postcard::to_allocvec(result).unwrap());
        assert!(of(&Err(Ended::ByHost("time".into()))));
        assert!(!of(&Err(Ended::Itself("trap".into()))) && !of(&Ok(1)) && !is_cut(&[]));
    }
}
