//! When a driver asks its device, and how the last answer ended.

use std::time::Duration;

use crate::timers::{self, TimerError, TimerId};

/// The host calls for it once the present call is over: `start` stays free of
/// waiting, so that a swap takes no longer than the switch itself.
const AT_ONCE: Duration = Duration::from_millis(1);

/// The timers of a device that is polled, and whether it answers.
///
/// The first poll comes as soon as `start` has returned, the others once in
/// each interval. Between them the properties get their turns. That the device
/// falls silent, and that it answers again, is logged once.
///
/// ```
/// use sandgate_driver::{Context, Driver, Error, Found, Poller, TimerId, Turn};
/// use std::time::Duration;
///
/// struct Meter { poller: Poller }
/// impl Driver for Meter {
///     fn start(_: Context) -> Result<Self, Error> {
///         let poller = Poller::start("the meter", Duration::from_secs(1), Duration::from_secs(300))?;
///         Ok(Meter { poller })
///     }
///     fn on_timer(&mut self, timer: TimerId) -> Result<(), Error> {
///         match self.poller.turn(timer) {
///             Turn::Properties => {} // … publish them
///             Turn::Poll => match read() {
///                 Ok(value) => {
///                     // After an outage it may be another meter.
///                     if self.poller.found() != Found::Still { self.poller.properties_soon()?; }
///                     // … send the value
///                 }
///                 Err(problem) => self.poller.lost("timeout", &problem),
///             },
///         }
///         Ok(())
///     }
/// }
/// # fn read() -> Result<f64, String> { Ok(1.0) }
/// ```
#[derive(Debug)]
pub struct Poller {
    device: &'static str,
    poll: TimerId,
    properties: TimerId,
    /// A single call for the properties, before their turn.
    properties_soon: Option<TimerId>,
    link: Link,
}

/// What a timer calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Read the device and send what it says.
    Poll,
    /// Read and publish the properties.
    Properties,
}

/// What an answer says about the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It is the first answer since the start, or since the interval was set.
    First,
    /// The device was silent before.
    Again,
    /// The poll before was answered as well.
    Still,
}

/// How the last poll ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Untried,
    Well,
    /// With the kind of the problem.
    Failing(&'static str),
}

impl Poller {
    /// Sets the timers. The log calls the device by this name, `the meter`.
    pub fn start(device: &'static str, poll: Duration, properties: Duration) -> Result<Poller, TimerError> {
        let (poll, properties) = (begin(poll)?, timers::every(properties)?);
        Ok(Poller { device, poll, properties, properties_soon: None, link: Link::Untried })
    }

    /// Begins anew with another interval, or with another device behind the
    /// same name. After an error all stays as it was.
    pub fn restart(&mut self, poll: Duration) -> Result<(), TimerError> {
        let poll = begin(poll)?;
        timers::cancel(std::mem::replace(&mut self.poll, poll));
        self.link = Link::Untried;
        Ok(())
    }

    /// What the timer of `on_timer` calls for.
    pub fn turn(&mut self, timer: TimerId) -> Turn {
        if timer == self.properties || self.properties_soon.take_if(|soon| *soon == timer).is_some() {
            return Turn::Properties;
        }
        Turn::Poll
    }

    /// The device has answered a poll.
    pub fn found(&mut self) -> Found {
        match std::mem::replace(&mut self.link, Link::Well) {
            Link::Untried => Found::First,
            Link::Well => Found::Still,
            Link::Failing(_) => {
                crate::info!("{} answers again", self.device);
                Found::Again
            }
        }
    }

    /// A poll has failed. The problem is logged when the poll before was
    /// answered, or failed for another kind of reason.
    pub fn lost(&mut self, kind: &'static str, problem: &str) {
        let link = Link::Failing(kind);
        if std::mem::replace(&mut self.link, link) != link {
            crate::warning!("{} cannot be read: {problem}", self.device);
        }
    }

    /// Whether the last poll was answered.
    pub fn is_answered(&self) -> bool {
        self.link == Link::Well
    }

    /// Polls once more as soon as the present call is over.
    pub fn poll_soon(&self) -> Result<(), TimerError> {
        timers::after(AT_ONCE).map(drop)
    }

    /// Gives the properties a turn as soon as the present call is over.
    pub fn properties_soon(&mut self) -> Result<(), TimerError> {
        self.properties_after(AT_ONCE)
    }

    /// Gives the properties a turn after the delay.
    pub fn properties_after(&mut self, delay: Duration) -> Result<(), TimerError> {
        self.properties_soon = Some(timers::after(delay)?);
        Ok(())
    }
}

/// Sets the timer of the poll, and a single one for a first poll now.
fn begin(poll: Duration) -> Result<TimerId, TimerError> {
    let poll = timers::every(poll)?;
    timers::after(AT_ONCE)?;
    Ok(poll)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeHost;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    fn ids(host: &FakeHost, interval: Duration) -> Vec<TimerId> {
        host.timers().iter().filter(|(_, known)| *known == interval).map(|(id, _)| *id).collect()
    }

    #[test]
    fn the_first_poll_comes_at_once_and_the_properties_have_turns_of_their_own() {
        let host = FakeHost::new();
        let mut poller = Poller::start("it", SECOND, MINUTE).unwrap();
        let (poll, first, properties) = (ids(&host, SECOND)[0], ids(&host, AT_ONCE)[0], ids(&host, MINUTE)[0]);
        assert_eq!(
            [poll, first, properties].map(|timer| poller.turn(timer)),
            [Turn::Poll, Turn::Poll, Turn::Properties]
        );
        poller.properties_soon().unwrap();
        let soon = ids(&host, AT_ONCE)[1];
        assert_eq!([poller.turn(soon), poller.turn(soon)], [Turn::Properties, Turn::Poll]);
    }

    #[test]
    fn what_changes_with_the_device_is_told_once() {
        let host = FakeHost::new();
        let mut poller = Poller::start("it", SECOND, MINUTE).unwrap();
        assert_eq!([poller.found(), poller.found()], [Found::First, Found::Still]);
        poller.lost("timeout", "it does not answer");
        poller.lost("timeout", "nor now");
        poller.lost("password", "it refuses");
        assert!(!poller.is_answered());
        assert_eq!([poller.found(), poller.found()], [Found::Again, Found::Still]);
        let texts: Vec<String> = host.log().into_iter().map(|(_, text)| text).collect();
        assert_eq!(
            texts,
            ["it cannot be read: it does not answer", "it cannot be read: it refuses", "it answers again"]
        );
    }

    #[test]
    fn another_interval_begins_anew_and_a_refused_one_changes_nothing() {
        let host = FakeHost::new();
        let mut poller = Poller::start("it", SECOND, MINUTE).unwrap();
        poller.found();
        assert!(poller.restart(Duration::ZERO).is_err());
        assert!(poller.is_answered());
        assert_eq!(ids(&host, SECOND).len(), 1);
        poller.restart(2 * SECOND).unwrap();
        assert_eq!((ids(&host, SECOND).len(), ids(&host, 2 * SECOND).len()), (0, 1));
        assert_eq!(poller.found(), Found::First);
    }
}
