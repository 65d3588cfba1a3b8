//! Software over the air: a cloud offers a new version of a device's driver.
//!
//! The version that runs is the truth; a cloud hears of every change. What was
//! refused or rolled back is not tried again until it is offered in another form.

use std::path::PathBuf;

use serde_json::Value as Json;
use tokio::sync::oneshot;

use super::memory::Refused;
use super::{Report, Supervisor};
use crate::download::{self, Image};
use crate::message::{DeviceId, Offer, now};
use crate::receipt::{Outcome, Receipt};
use crate::registry::Origin;

/// Offered software, downloaded or not to be had.
pub(super) struct Download {
    session: String,
    device: String,
    offer: Offer,
    specification: Json,
    step: Step,
}

/// How far it is.
enum Step {
    /// The file is here.
    Here(tempfile::TempPath),
    /// A swap was tried.
    Swapped(Box<Result<Receipt, String>>),
    /// It is not to be had.
    Failed(String),
}

/// Software that runs and may still be rolled back.
pub(super) struct Trial {
    session: String,
    device: String,
    offer: Offer,
    specification: Json,
    digest: String,
    since: crate::message::Time,
}

impl Supervisor {
    pub(super) fn take_software(&mut self, session: &str, device: &DeviceId, offer: Offer, specification: Json) {
        let id = device.as_str();
        let running = self.devices.get(id).and_then(|entry| entry.handle.as_ref());
        let running = running.map(|handle| handle.status.borrow().driver.manifest.driver.version.clone());
        let refused = self
            .memory
            .refused(id, session)
            .filter(|refused| refused.version == offer.id && refused.specification == specification);
        let known = match (&running, refused) {
            (None, _) => Some(Err("the driver of this device is not running".to_owned())),
            (Some(running), _) if *running == offer.id => Some(Ok(())),
            (_, Some(refused)) => Some(Err(refused.reason.clone())),
            _ => None,
        };
        if let Some(result) = known {
            self.forget_offer(session, id, &offer);
            return self.report_applied(session, id, &offer, result.as_ref().map(|&()| ()).map_err(String::as_str));
        }
        let Some(entry) = self.sessions.get(session) else { return };
        tracing::info!(device = id, session, "the cloud offers version {}", offer.id);
        let (folder, limit, report) = (self.config.state.clone(), entry.max_software, self.report.clone());
        let (session, device) = (session.to_owned(), id.to_owned());
        tokio::spawn(async move {
            let step = match fetch(&device, &specification, limit, folder).await {
                Ok(file) => Step::Here(file),
                Err(problem) => Step::Failed(problem),
            };
            let download = Download { session, device, offer, specification, step };
            // The supervisor may be gone at the end of the program.
            let _ = report.send(Report::Downloaded(download)).await;
        });
    }

    /// Goes on with offered software.
    pub(super) fn downloaded(&mut self, download: Download) {
        let Download { session, device, offer, specification, step } = download;
        match step {
            Step::Here(file) => {
                let (reply, receipt) = oneshot::channel();
                let asked_by = format!("software {} of {session}", offer.id);
                let expected = Some(offer.id.clone());
                self.swap_checked(&device, Origin::File(file.to_path_buf()), &asked_by, Some(reply), expected);
                let report = self.report.clone();
                tokio::spawn(async move {
                    let result = receipt.await.unwrap_or(Err("the device was stopped".into()));
                    // Until now the file was needed.
                    drop(file);
                    let step = Step::Swapped(Box::new(result));
                    let download = Download { session, device, offer, specification, step };
                    let _ = report.send(Report::Downloaded(download)).await;
                });
            }
            Step::Swapped(result) => match *result {
                Ok(Receipt { outcome: Outcome::Accepted, new: Some(new), .. }) => {
                    self.forget_offer(&session, &device, &offer);
                    self.report_applied(&session, &device, &offer, Ok(()));
                    let (digest, since) = (new.digest, now());
                    self.on_trial.push(Trial { session, device, offer, specification, digest, since });
                    self.look_after();
                }
                Ok(Receipt { outcome: Outcome::Rejected(reason) | Outcome::RolledBack(reason), .. }) | Err(reason) => {
                    self.refuse_software(&session, &device, offer, specification, &reason);
                }
                Ok(Receipt { outcome: Outcome::Accepted, new: None, .. }) => {
                    self.forget_offer(&session, &device, &offer);
                }
            },
            Step::Failed(problem) => {
                // The link may work the next time, so nothing is remembered.
                tracing::warn!(device, session, "version {} of the cloud is not taken: {problem}", offer.id);
                self.forget_offer(&session, &device, &offer);
                self.report_applied(&session, &device, &offer, Err(&problem));
            }
        }
    }

    fn refuse_software(&mut self, session: &str, device: &str, offer: Offer, specification: Json, reason: &str) {
        tracing::warn!(device, session, "version {} of the cloud is not taken: {reason}", offer.id);
        self.forget_offer(session, device, &offer);
        let refused = Refused { version: offer.id.clone(), specification, reason: reason.to_owned() };
        self.memory.refuse(device, session, refused);
        self.memory.save();
        self.report_applied(session, device, &offer, Err(reason));
    }

    /// Tells the cloud when new software was rolled back.
    pub(super) fn judge_trials(&mut self) {
        let mut rolled_back = Vec::new();
        for trial in std::mem::take(&mut self.on_trial) {
            let handle = self.devices.get(&trial.device).and_then(|entry| entry.handle.clone());
            let Some(handle) = handle else { continue };
            let status = handle.status.borrow().clone();
            match status.driver.digest.to_string() == trial.digest {
                true if status.watching => self.on_trial.push(trial),
                true => {}
                false => rolled_back.push(trial),
            }
        }
        for trial in rolled_back {
            let receipts = self.receipts.all();
            let reason = receipts.into_iter().rev().find_map(|receipt| match receipt.outcome {
                Outcome::RolledBack(reason)
                    if receipt.device == trial.device
                        && receipt.old.digest == trial.digest
                        && receipt.time >= trial.since =>
                {
                    Some(reason)
                }
                _ => None,
            });
            // Another swap has replaced it: that is no fault of this version.
            let Some(reason) = reason else { continue };
            let reason = format!("rolled back: {reason}");
            self.refuse_software(&trial.session, &trial.device, trial.offer, trial.specification, &reason);
        }
    }
}

/// Downloads and verifies what a specification describes.
async fn fetch(device: &str, specification: &Json, limit: u64, folder: PathBuf) -> Result<tempfile::TempPath, String> {
    let image = Image::from_specification(specification)?;
    let mut told = 0;
    let progress = |done: u64, whole: Option<u64>| {
        let percent = whole.filter(|whole| *whole > 0).map_or(0, |whole| done * 100 / whole);
        if percent >= told + 25 {
            told = percent;
            tracing::info!(device, "downloaded {percent} % of {} KiB", whole.unwrap_or_default() / 1024);
        }
    };
    download::fetch(&image, limit, &folder, progress).await.map_err(|error| format!("{error:#}"))
}
