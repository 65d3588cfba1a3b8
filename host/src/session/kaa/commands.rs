//! Commands on their way to devices: each is handed on once, a few at a time,
//! and the next ones when results have arrived in the cloud. Plain state.
//!
//! The cloud lists a command, in answers and pushes, until it has the result.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::message::CommandRequest;

/// Commands of an endpoint that are with its device at a time; a device's inbox
/// has room for them.
const AT_ONCE: usize = 8;
/// Commands of an endpoint that wait here; the cloud lists the rest again.
const WAITING: usize = 1000;
/// When a result counts as lost. The journal of the device keeps the
/// command from running again.
const LOST: Duration = Duration::from_secs(3600);

/// A command's type and its number, unique for its endpoint.
pub(super) type Name = (String, i64);

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Commands {
    lines: HashMap<String, Line>,
}

/// The commands of one endpoint.
#[derive(Debug, Default)]
struct Line {
    /// What the device has, since when.
    handed: HashMap<Name, Instant>,
    waiting: VecDeque<(Name, CommandRequest)>,
}

impl Commands {
    /// Takes a command that the cloud lists, unless it is known.
    pub(super) fn take(&mut self, channel: &str, name: Name, request: CommandRequest, now: Instant) {
        let line = self.lines.entry(channel.to_owned()).or_default();
        line.handed.retain(|_, since| now.saturating_duration_since(*since) < LOST);
        let is_known = line.handed.contains_key(&name) || line.waiting.iter().any(|(other, _)| *other == name);
        if !is_known && line.waiting.len() < WAITING {
            line.waiting.push_back((name, request));
        }
    }

    /// Gives the next command that its device may have.
    pub(super) fn next(&mut self, channel: &str, now: Instant) -> Option<CommandRequest> {
        let line = self.lines.get_mut(channel).filter(|line| line.handed.len() < AT_ONCE)?;
        let (name, request) = line.waiting.pop_front()?;
        line.handed.insert(name, now);
        Some(request)
    }

    /// The cloud has a command's result, or will never take it.
    pub(super) fn finished(&mut self, channel: &str, name: &Name) {
        let Some(line) = self.lines.get_mut(channel) else { return };
        line.handed.remove(name);
        if line.handed.is_empty() && line.waiting.is_empty() {
            self.lines.remove(channel);
        }
    }

    /// A new connection: the cloud lists again what still waits.
    pub(super) fn begin_anew(&mut self) {
        self.lines.values_mut().for_each(|line| line.waiting.clear());
        self.lines.retain(|_, line| !line.handed.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(number: i64) -> CommandRequest {
        CommandRequest { id: number.to_string(), session: None, name: "go".into(), arguments: serde_json::Map::new() }
    }

    fn drain(commands: &mut Commands, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| commands.next("c", now)).map(|request| request.id).collect()
    }

    #[test]
    fn a_few_are_handed_on_in_order_and_the_next_when_results_are_there() {
        let now = Instant::now();
        let mut commands = Commands::default();
        for _ in 0..2 {
            (0..20).for_each(|number| commands.take("c", ("go".into(), number), request(number), now));
        }
        let first = drain(&mut commands, now);
        assert_eq!(first, (0..8).map(|number| number.to_string()).collect::<Vec<_>>());
        commands.finished("c", &("go".into(), 3));
        commands.finished("c", &("go".into(), 3));
        assert_eq!(drain(&mut commands, now), ["8"]);
        for number in (0..9).filter(|number| *number != 3) {
            commands.finished("c", &("go".into(), number));
        }
        assert_eq!(drain(&mut commands, now).len(), 8);
    }

    #[test]
    fn what_a_device_has_is_not_handed_on_again_until_it_counts_as_lost() {
        let now = Instant::now();
        let mut commands = Commands::default();
        commands.take("c", ("go".into(), 1), request(1), now);
        assert_eq!(drain(&mut commands, now), ["1"]);
        commands.begin_anew();
        commands.take("c", ("go".into(), 1), request(1), now);
        commands.take("c", ("stay".into(), 1), request(2), now);
        assert_eq!(drain(&mut commands, now), ["2"]);
        commands.take("c", ("go".into(), 1), request(1), now + LOST);
        assert_eq!(drain(&mut commands, now + LOST), ["1"]);
    }
}
