//! The handle to a stand-in's state: connections, the HTTP side and tests share it.
//!
//! It locks the core for one step, gives it the time, and delivers what came out in that
//! order. It survives the servers that were started with it, so that a restart loses nothing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value as Json;
use tokio::sync::{broadcast, mpsc, watch};

use super::answer::Refusal;
use super::commands::{Command, State};
use super::endpoint::TokenState;
use super::events::Event;
use super::faults::Fault;
use super::links::{Delivery, Links};
use super::routes::ConnectionId;
use super::samples::Sample;
use super::service::{Destination, Dispatch, Message, Reaction, Rules, Service};
use super::software::Offer;

/// Maximum messages that are held back; more go out at once.
const MAX_LATE: usize = 10_000;

/// A stand-in's state and the way to its connections; clones share it.
#[derive(Debug, Clone)]
pub struct Cloud(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    steps: watch::Sender<u64>,
    events: broadcast::Sender<Event>,
    late: AtomicUsize,
}

#[derive(Debug)]
struct Inner {
    service: Service,
    links: Links,
}

/// A connection's place; closes it when dropped.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) id: ConnectionId,
    cloud: Cloud,
}

impl Default for Cloud {
    fn default() -> Cloud {
        Cloud::new(Rules::default())
    }
}

impl Cloud {
    /// Makes an empty state.
    pub fn new(rules: Rules) -> Cloud {
        let service = Service::new(rules);
        let inner = Mutex::new(Inner { service, links: Links::default() });
        let (steps, events) = (watch::Sender::new(0), broadcast::Sender::new(1024));
        Cloud(Arc::new(Shared { inner, steps, events, late: AtomicUsize::new(0) }))
    }

    /// The samples of an endpoint after a sequence number, oldest first.
    pub fn samples(&self, token: &str, after: u64) -> Vec<Sample> {
        self.look(|service, _| service.endpoint(token).map(|e| e.samples.after(after, usize::MAX)).unwrap_or_default())
    }

    /// The metadata of an endpoint.
    pub fn metadata(&self, token: &str) -> Result<Json, Refusal> {
        self.look(|service, _| service.endpoint(token).map(|endpoint| serde_json::json!(endpoint.metadata.all())))
    }

    /// What `endpoints` shows of one endpoint.
    pub fn endpoint(&self, token: &str) -> Result<Json, Refusal> {
        self.look(|service, _| {
            let connected = service.routes.find(token).is_some();
            service.endpoint(token).map(|endpoint| endpoint.summary(token, connected))
        })
    }

    /// Whether somebody speaks for an endpoint.
    pub fn is_connected(&self, token: &str) -> bool {
        self.look(|service, _| service.routes.find(token).is_some())
    }

    /// Adds a command, pushes it, and returns it. The time to live is in milliseconds.
    pub fn send_command(
        &self,
        token: &str,
        command_type: &str,
        payload: Option<Json>,
        ttl: u64,
    ) -> Result<Command, Refusal> {
        self.step(|service, now| service.invoke(now, token, command_type, payload, ttl))
    }

    /// A command as it stands.
    pub fn command(&self, token: &str, command_type: &str, id: i32) -> Result<Command, Refusal> {
        self.look(|service, now| {
            let found = service.endpoint(token)?.commands.find(now, command_type, id).cloned();
            found.ok_or_else(|| Refusal::missing(format!("command {command_type} {id}: not known")))
        })
    }

    /// Waits until a command has a result; None if it has none in time, or cannot get one any more.
    pub async fn await_result(&self, token: &str, command: &Command, patience: Duration) -> Option<Command> {
        let mut steps = self.0.steps.subscribe();
        let wait = async {
            loop {
                steps.borrow_and_update();
                match self.command(token, &command.command_type, command.id) {
                    Ok(found) if found.state == State::Executed => return Some(found),
                    Ok(found) if found.state == State::Expired && found.ttl > 0 => return None,
                    Err(_) => return None,
                    Ok(_) => steps.changed().await.ok()?,
                }
            }
        };
        tokio::time::timeout(patience, wait).await.ok().flatten()
    }

    /// Assigns a configuration to an endpoint for the app version that it spoke with last; returns its id.
    pub fn put_config(&self, token: &str, config: Json) -> Result<String, Refusal> {
        self.step(|service, now| {
            let app_version = service.endpoint(token)?.app_version.clone();
            Ok(service.put_config(now, token, (&app_version, ""), config, None)?.config_id)
        })
    }

    /// Offers software.
    pub fn offer_software(&self, offer: Offer) -> Result<(), Refusal> {
        self.step(|service, now| service.put_offer(now, offer))
    }

    /// Changes the state of a token; makes the endpoint if it is not known and an app version is named.
    pub fn set_token(&self, token: &str, state: TokenState, app_version: Option<&str>) -> Result<(), Refusal> {
        self.step(|service, now| service.set_token(now, token, state, app_version))
    }

    /// Sets a fault, written as `faults` tells.
    pub fn set_fault(&self, fault: &str) -> Result<(), Refusal> {
        let fault: Fault = fault.parse().map_err(Refusal::malformed)?;
        self.step(|service, now| service.set_fault(now, fault))
    }

    /// Clears all faults.
    pub fn clear_faults(&self) {
        self.step(|service, now| service.clear_faults(now, None));
    }

    /// The newest events, oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.look(|service, _| service.events.newest().cloned().collect())
    }

    /// All events from now on.
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.0.events.subscribe()
    }

    /// A number that grows whenever something may have changed.
    pub fn steps(&self) -> watch::Receiver<u64> {
        self.0.steps.subscribe()
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.lock().links.count()
    }

    /// Closes all MQTT connections at once, without a word.
    pub fn disconnect_all(&self) {
        self.lock().links.close_all();
    }

    /// Runs one step of the core and delivers what came out.
    pub(super) fn step<T>(&self, act: impl FnOnce(&mut Service, u64) -> T) -> T {
        let mut inner = self.lock();
        let result = act(&mut inner.service, now());
        for dispatch in std::mem::take(&mut inner.service.outgoing) {
            if dispatch.delay.is_zero() || !self.hold_back(&dispatch) {
                inner.deliver(dispatch);
            }
        }
        for event in inner.service.events.take_fresh() {
            // Nobody may be listening.
            let _ = self.0.events.send(event);
        }
        drop(inner);
        self.0.steps.send_modify(|step| *step = step.wrapping_add(1));
        result
    }

    /// Looks at the core without telling anybody that something has changed.
    pub(super) fn look<T>(&self, look: impl FnOnce(&mut Service, u64) -> T) -> T {
        look(&mut self.lock().service, now())
    }

    /// Gives a message of a device to the core.
    pub(super) fn handle(&self, message: Message<'_>) -> Reaction {
        self.step(|service, now| service.handle(now, message))
    }

    /// Notes that a connection was refused or ended because of its client.
    pub(super) fn tell_ended(&self, text: &str) {
        self.step(|service, now| service.events.note(now, "refused", None, super::body::cut(text, 200)));
    }

    /// Makes a place for a connection; None if there are too many.
    pub(super) fn open(&self) -> Option<(Place, mpsc::Receiver<Delivery>)> {
        let (id, receiver) = self.lock().links.open()?;
        Some((Place { id, cloud: self.clone() }, receiver))
    }

    fn hold_back(&self, dispatch: &Dispatch) -> bool {
        if self.0.late.fetch_add(1, Ordering::Relaxed) >= MAX_LATE {
            self.0.late.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        let (shared, dispatch) = (Arc::downgrade(&self.0), dispatch.clone());
        tokio::spawn(async move {
            tokio::time::sleep(dispatch.delay).await;
            if let Some(shared) = shared.upgrade() {
                shared.late.fetch_sub(1, Ordering::Relaxed);
                Cloud(shared).lock().deliver(dispatch);
            }
        });
        true
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn deliver(&mut self, dispatch: Dispatch) {
        let speaker = match dispatch.to {
            Destination::Connection(id) => Some(id),
            Destination::Endpoint(token) => self.service.routes.find(&token).map(|route| route.connection),
        };
        // A broker knows subscriptions only.
        let speaker = speaker.filter(|_| !self.service.faults.is_broker());
        let delivery = Delivery { topic: dispatch.topic, payload: dispatch.payload.into(), qos: dispatch.qos };
        self.links.deliver(speaker, &delivery);
    }
}

impl Place {
    /// Notes the client id.
    pub(super) fn identify(&self, client_id: &str) {
        self.cloud.lock().links.identify(self.id, client_id);
    }

    /// Notes a subscription; false if there are too many.
    pub(super) fn subscribe(&self, filter: &str, qos: u8) -> bool {
        self.cloud.lock().links.subscribe(self.id, filter, qos)
    }

    /// Forgets a subscription.
    pub(super) fn unsubscribe(&self, filter: &str) {
        self.cloud.lock().links.unsubscribe(self.id, filter);
    }

    /// Whether a fault closes the connection at this publication.
    pub(super) fn drops_publication(&self) -> bool {
        self.cloud.lock().service.faults.drops_publication()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.cloud.lock().links.close(self.id);
        self.cloud.step(|service, now| service.close(now, self.id));
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
