//! Software over the air: a cloud offers a new version of a device's driver,
//! or of the software of the device behind a driver that can update it.
//!
//! The version that runs is the truth; a cloud hears of every change. What was
//! refused or rolled back is not tried again until it is offered in another form.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use tokio::io::AsyncReadExt;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::control::ControlError;
use super::memory::Refused;
use super::swap::{Asker, Gating, SwapOrder};
use super::{Report, Supervisor};
use crate::device::{DeviceHandle, Firmware, Input};
use crate::download::{self, Image};
use crate::message::{DeviceId, Offer, SessionName};
use crate::receipt::{Outcome, Receipt};
use crate::registry::Origin;
use crate::sandbox::FirmwareStep;

/// Downloads that run at a time.
const AT_ONCE: usize = 4;
/// Bytes that a driver gets at a time.
const PART: usize = 16 << 10;
/// How long a device may take to switch to its new software, and how often it is asked.
const SWITCH: Duration = Duration::from_secs(600);
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Offered software on its way into a device.
pub(super) struct Installation {
    session: SessionName,
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
    Swapped(Box<Result<Receipt, ControlError>>),
    /// An update of the device behind the driver was tried.
    Updated(Result<(), String>),
    /// It is not to be had.
    Failed(String),
}

/// Software that runs and may still be rolled back.
struct Trial {
    session: SessionName,
    device: String,
    offer: Offer,
    specification: Json,
    digest: String,
    since: crate::message::Time,
}

/// All software on its way into devices.
pub(super) struct Installations {
    /// What waits until its device has started.
    postponed: Vec<Installation>,
    /// Limits how many downloads run at a time.
    downloads: Arc<Semaphore>,
    /// New software that may still be rolled back.
    on_trial: Vec<Trial>,
}

impl Installations {
    pub(super) fn new() -> Installations {
        Installations { postponed: Vec::new(), downloads: Arc::new(Semaphore::new(AT_ONCE)), on_trial: Vec::new() }
    }

    /// What waits until its device has started; it may have.
    pub(super) fn take_postponed(&mut self) -> Vec<Installation> {
        std::mem::take(&mut self.postponed)
    }
}

impl Supervisor {
    /// Takes offered software, or says why not.
    pub(super) fn install_offered(
        &mut self,
        session: &SessionName,
        device: &DeviceId,
        offer: Offer,
        specification: Json,
    ) {
        let id = device.as_str();
        // Also when it runs already: an earlier offer that is on its way is withdrawn.
        self.offers.set_newest_software(session, id, &offer.id);
        let running = self.devices.get(id).and_then(|entry| entry.handle.as_ref());
        let running = running.map(|handle| {
            let status = handle.status.borrow();
            match &status.firmware {
                Firmware::Driver => Some(status.driver.manifest.driver.version.clone()),
                Firmware::Version(version) => Some(version.clone()),
                Firmware::Unknown => None,
            }
        });
        // Without a version an update could be in vain; the cloud is asked again when there is one.
        if running == Some(None) {
            tracing::info!(
                device = id,
                %session,
                "version {} is offered and left for later: what the device runs is not known now",
                offer.id
            );
            return self.offers.end(session, id, &offer);
        }
        let running = running.flatten();
        let refused = self
            .memory
            .refused(id, session)
            .filter(|refused| refused.version == offer.id && is_same(&refused.specification, &specification));
        let known = match (&running, refused) {
            (None, _) => Some(Err("the driver of this device is not running".to_owned())),
            (Some(running), _) if *running == offer.id => Some(Ok(())),
            (_, Some(refused)) => Some(Err(refused.reason.clone())),
            _ => None,
        };
        if let Some(result) = known {
            self.offers.end(session, id, &offer);
            return self.report_applied(session, id, &offer, result.as_ref().map(|&()| ()).map_err(String::as_str));
        }
        let Some(entry) = self.sessions.get(session) else { return };
        tracing::info!(device = id, %session, "the cloud offers version {}", offer.id);
        let (folder, limit, report) = (folder(&self.config.state), entry.max_software, self.report.clone());
        let (session, device, downloads) = (session.clone(), id.to_owned(), Arc::clone(&self.installations.downloads));
        tokio::spawn(async move {
            let _turn = downloads.acquire().await;
            let fetched = tokio::time::timeout(PATIENCE, fetch(&device, &specification, limit, folder)).await;
            let step = match fetched.unwrap_or_else(|_| Err(format!("it took over {} s", PATIENCE.as_secs()))) {
                Ok(file) => Step::Here(file),
                Err(problem) => Step::Failed(problem),
            };
            let installation = Installation { session, device, offer, specification, step };
            // The supervisor may be gone at the end of the program.
            let _ = report.send(Report::Software(installation)).await;
        });
    }

    /// Goes on with offered software.
    pub(super) fn go_on_installing(&mut self, installation: Installation) {
        let Installation { session, device, offer, specification, step } = installation;
        match step {
            Step::Here(_) if !self.offers.is_newest_software(&session, &device, &offer.id) => {
                tracing::info!(device, %session, "version {} is left out: a newer one is offered", offer.id);
                self.offers.end(&session, &device, &offer);
            }
            Step::Here(file) => self.install(session, device, offer, specification, file),
            Step::Updated(Ok(())) => {
                tracing::info!(device, %session, "the device runs version {} of the cloud", offer.id);
                self.offers.end(&session, &device, &offer);
                self.report_applied(&session, &device, &offer, Ok(()));
                self.publish_soon();
            }
            Step::Updated(Err(reason)) => self.refuse_software(&session, &device, offer, specification, &reason),
            Step::Swapped(result) => match *result {
                Ok(Receipt { outcome: Outcome::Accepted, new: Some(new), time: since, .. }) => {
                    self.offers.end(&session, &device, &offer);
                    self.report_applied(&session, &device, &offer, Ok(()));
                    let digest = new.digest;
                    self.installations.on_trial.push(Trial { session, device, offer, specification, digest, since });
                    self.every_second();
                }
                Ok(Receipt { outcome: Outcome::Rejected(reason) | Outcome::RolledBack(reason), .. }) => {
                    self.refuse_software(&session, &device, offer, specification, &reason);
                }
                Err(error) => self.refuse_software(&session, &device, offer, specification, &error.to_string()),
                Ok(Receipt { outcome: Outcome::Accepted, new: None, .. }) => {
                    self.offers.end(&session, &device, &offer);
                }
            },
            Step::Failed(problem) => {
                // The link may work the next time, so nothing is remembered.
                tracing::warn!(device, %session, "version {} of the cloud is not taken: {problem}", offer.id);
                self.offers.end(&session, &device, &offer);
                self.report_applied(&session, &device, &offer, Err(&problem));
            }
        }
    }

    /// Swaps downloaded software in, or gives it to the device behind a driver
    /// that updates it. A device that is just being started gets it afterwards.
    fn install(
        &mut self,
        session: SessionName,
        device: String,
        offer: Offer,
        specification: Json,
        file: tempfile::TempPath,
    ) {
        let entry = self.devices.get(&device);
        if entry.is_some_and(|entry| entry.work.is_start()) {
            let step = Step::Here(file);
            return self.installations.postponed.push(Installation { session, device, offer, specification, step });
        }
        let Some(handle) = entry.and_then(|entry| entry.handle.clone()).filter(DeviceHandle::is_alive) else {
            let step = Step::Failed("the driver of this device is not running".into());
            return self.go_on_installing(Installation { session, device, offer, specification, step });
        };
        let is_driver = handle.status.borrow().firmware == Firmware::Driver;
        let swap = is_driver.then(|| {
            let (reply, receipt) = oneshot::channel();
            let origin = Origin::File(file.to_path_buf());
            let asked_by = Asker::Software { version: offer.id.clone(), session: session.to_string() };
            self.swap(&device, SwapOrder { origin, asked_by, gating: Gating::Usual }, Some(reply));
            receipt
        });
        let report = self.report.clone();
        tokio::spawn(async move {
            let (step, is_done) = match swap {
                Some(receipt) => {
                    let result = receipt.await.unwrap_or(Err(ControlError::DeviceStopped));
                    let is_done = result.is_ok();
                    (Step::Swapped(Box::new(result)), is_done)
                }
                None => {
                    let result = update(&handle, &offer.id, &specification, &file).await;
                    let is_done = result.is_ok();
                    (Step::Updated(result), is_done)
                }
            };
            // Who was stopped meanwhile has refused nothing.
            let step = if is_done || handle.is_alive() { step } else { Step::Here(file) };
            // The supervisor may be gone at the end of the program.
            let _ = report.send(Report::Software(Installation { session, device, offer, specification, step })).await;
        });
    }

    fn refuse_software(
        &mut self,
        session: &SessionName,
        device: &str,
        offer: Offer,
        specification: Json,
        reason: &str,
    ) {
        tracing::warn!(device, %session, "version {} of the cloud is not taken: {reason}", offer.id);
        self.offers.end(session, device, &offer);
        let refused = Refused { version: offer.id.clone(), specification, reason: reason.to_owned() };
        self.memory.refuse(device, session, refused);
        self.memory.save();
        self.report_applied(session, device, &offer, Err(reason));
    }

    /// Tells the cloud when new software was rolled back.
    pub(super) fn judge_trials(&mut self) {
        let mut rolled_back = Vec::new();
        for trial in std::mem::take(&mut self.installations.on_trial) {
            let handle = self.devices.get(&trial.device).and_then(|entry| entry.handle.clone());
            let Some(handle) = handle else { continue };
            let status = handle.status.borrow().clone();
            match status.driver.digest.to_string() == trial.digest {
                true if status.watching => self.installations.on_trial.push(trial),
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

/// Gives a file to the device behind a driver, part by part, and waits until
/// the device runs it.
async fn update(handle: &DeviceHandle, version: &str, specification: &Json, file: &Path) -> Result<(), String> {
    let reading = |error: std::io::Error| format!("reading the download: {error}");
    let step = async |step| {
        let done = handle.ask(|reply| Input::Firmware(step, reply)).await;
        done.unwrap_or(Err("the device was stopped".to_owned()))
    };
    let size = tokio::fs::metadata(file).await.map_err(reading)?.len();
    let size = u32::try_from(size).map_err(|_| format!("expected at most 4 GiB, found {size} bytes"))?;
    let mut image = tokio::fs::File::open(file).await.map_err(reading)?;
    let (version, specification) = (version.to_owned(), specification.to_string());
    step(FirmwareStep::Begin { version: version.clone(), specification, size }).await?;
    let (mut done, mut told) = (0_u64, 0);
    loop {
        let mut part = vec![0; PART];
        let length = image.read(&mut part).await.map_err(reading)?;
        if length == 0 {
            break;
        }
        part.truncate(length);
        step(FirmwareStep::Write(part)).await?;
        done += length as u64;
        let percent = done * 100 / u64::from(size.max(1));
        if percent >= told + 25 {
            told = percent;
            tracing::info!(device = handle.spec.id.as_str(), "gave the device {percent} % of {} KiB", size / 1024);
        }
    }
    step(FirmwareStep::Finish).await?;
    let begin = Instant::now();
    loop {
        handle.ask(Input::ReadFirmware).await.ok_or("the device was stopped")?;
        let runs = handle.status.borrow().firmware.clone();
        match runs {
            Firmware::Version(runs) if runs == version => return Ok(()),
            _ if begin.elapsed() < SWITCH => tokio::time::sleep(LOOK_AGAIN).await,
            Firmware::Version(runs) => return Err(format!("the device still runs version {runs} after the update")),
            _ => return Err("the device does not tell its version after the update".into()),
        }
    }
}

/// Where downloads are until they are swapped in.
pub(super) fn folder(state: &Path) -> PathBuf {
    state.join("downloads")
}

/// Whether two descriptions are of the same software: by their checksums, or
/// else by their links. Links may be signed anew for each offer, which shows in their queries.
fn is_same(one: &Json, other: &Json) -> bool {
    if one == other {
        return true;
    }
    match (Image::from_specification(one), Image::from_specification(other)) {
        (Ok(one), Ok(other)) if one.checksum.is_some() || other.checksum.is_some() => one.checksum == other.checksum,
        (Ok(mut one), Ok(mut other)) => {
            one.link.set_query(None);
            other.link.set_query(None);
            one.link == other.link
        }
        _ => false,
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn software_is_the_same_by_its_checksum_or_its_link_without_the_query() {
        let md5 = "2136f2287235db0f5d7e2a357539bbac";
        for (one, other, same) in [
            (json!({"link": "http://a/f?sign=1"}), json!({"link": "http://a/f?sign=2"}), true),
            (json!({"link": "http://a/f"}), json!({"link": "http://a/g"}), false),
            (json!({"link": "http://a/f", "hash": md5}), json!({"link": "http://b/g", "hash": md5}), true),
            (json!({"link": "http://a/f", "hash": md5}), json!({"link": "http://a/f"}), false),
            (json!({"link": 1}), json!({"link": 1}), true),
            (json!({"link": 1}), json!({"link": 2}), false),
        ] {
            assert_eq!(is_same(&one, &other), same, "{one} {other}");
        }
    }
}
