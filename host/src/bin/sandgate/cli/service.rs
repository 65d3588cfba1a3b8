//! What systemd is told, where it has started the gateway: that it is up, that
//! it still answers, that it stops. Elsewhere nothing is told.

use sandgate::launch::Running;
use sd_notify::NotifyState;

/// Tells that the gateway is up, and as long as it answers, that it does. Never returns.
pub(super) async fn tell_life(gateway: &Running) {
    tell(&[NotifyState::Ready, NotifyState::Status("running")]);
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        gateway.control.ping().await;
        tell(&[NotifyState::Watchdog]);
        tokio::time::sleep(limit / 3).await;
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
