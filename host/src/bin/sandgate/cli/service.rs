//! What systemd is told, where it has started the gateway: that it is up, that
//! it still answers, that it stops. Elsewhere nothing is told.

use std::time::Duration;

use sandgate::launch::Running;
use sd_notify::NotifyState;

/// How often it is looked whether the gateway answers, where nobody asks for more.
const LOOK: Duration = Duration::from_secs(20);

/// Tells that the gateway is up, and as long as it answers, that it does. Returns
/// when it has ended.
pub(super) async fn tell_life(gateway: &Running) {
    tell(&[NotifyState::Ready, NotifyState::Status("running")]);
    let watchdog = sd_notify::watchdog_enabled();
    while gateway.control.ping().await {
        if watchdog.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
        tokio::time::sleep(watchdog.map_or(LOOK, |limit| limit / 3)).await;
    }
}

/// Tells that the gateway stops.
pub(super) fn tell_stop() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("telling systemd: {error}");
    }
}
