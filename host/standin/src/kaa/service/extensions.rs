//! What each extension makes of a request that has been let in.

use super::super::answer::{Answer, Outcome, Refusal};
use super::super::cmp::Applied;
use super::super::configurations;
use super::super::endpoint::Endpoint;
use super::super::software;
use super::super::topic::{self, Topic};
use super::super::{body, clock, samples};
use super::{EXTENSIONS, MAX_SAMPLE_BYTES, Service};

impl Service {
    /// Gives a request to its extension.
    pub(super) fn carry_out(&mut self, now: u64, topic: &Topic, payload: &[u8]) -> Outcome {
        let path = topic.path();
        let missing = |expected: &str| {
            let found = body::shortened(&topic.resource.join("/"));
            Err(Refusal::missing(format!("resource {found:?} of {}: expected {expected}", topic.extension)))
        };
        let Some(endpoint) = self.endpoints.get_mut(&topic.token) else {
            return Err(Refusal::missing(format!("token {}: not known", topic.token)));
        };
        match (topic.extension.as_str(), path.as_slice()) {
            ("dcx", _) => self.collect(now, topic, payload),
            ("epmx", path) => {
                let outcome = endpoint.metadata.handle(path, payload, &self.rules.access);
                if outcome == Ok(Answer::Done) {
                    self.events.note(now, "metadata", Some(&topic.token), format!("{} by the device", path.join(" ")));
                }
                outcome
            }
            ("cex", ["command" | "result", name]) if !topic::is_name(name) => {
                Err(Refusal::malformed(format!("command type {name:?}: expected letters, digits, _ and -")))
            }
            ("cex", ["command", name]) => endpoint.commands.poll(now, name, payload),
            ("cex", ["result", name]) => self.take_results(now, topic, name, payload),
            ("cex", _) => missing("command/<type> or result/<type>"),
            ("cmx", path) => {
                let context = configurations::Context {
                    now,
                    app_version: &topic.app_version,
                    defaults: &self.defaults,
                    strict: self.faults.is_strict(),
                };
                let handled = endpoint.configurations.handle(&context, path, payload)?;
                self.note_report(now, "configuration", &topic.token, handled.report);
                Ok(handled.answer)
            }
            ("cmx_ota", path) => {
                let Endpoint { application, software, .. } = endpoint;
                let context = software::Context {
                    now,
                    application,
                    token: &topic.token,
                    catalogue: &self.catalogue,
                    strict: self.faults.is_strict(),
                };
                let handled = software.handle(&context, path, payload)?;
                let reported = handled.report.as_ref().is_some_and(Applied::is_success);
                self.note_report(now, "software", &topic.token, handled.report);
                // A version that was just told may have a successor; the platform does not wait to be asked.
                if reported && handled.answer == Answer::Done {
                    self.push_software(now, &topic.token);
                }
                Ok(handled.answer)
            }
            ("bcx", ["token"]) => {
                let lifetime = u64::try_from(self.rules.upload_token_lifetime.as_millis()).unwrap_or(u64::MAX);
                let token = self.uploads.grant(now, &topic.token, lifetime);
                Ok(Answer::json(&serde_json::json!({ "token": token })))
            }
            ("bcx", _) => missing("token"),
            ("rsx", [extension]) => match &topic.request_id {
                Some(id) => endpoint.outcomes.find(extension, id.number()),
                None => missing("<extension>/<request id>"),
            },
            ("rsx", _) => missing("<extension>/<request id>"),
            ("tsx", []) => clock::tell(now, payload),
            ("tsx", _) => missing("none"),
            (extension, _) => {
                let known = EXTENSIONS.join(", ");
                Err(Refusal::missing(format!("extension {:?}: expected {known}", body::shortened(extension))))
            }
        }
    }

    fn collect(&mut self, now: u64, topic: &Topic, payload: &[u8]) -> Outcome {
        let relaxed = self.rules.relaxed_path;
        let (batch, form) = match topic.path().as_slice() {
            ["json"] => (samples::read_json(payload)?, "json"),
            // An answer that was sent back by a bridge is no sample.
            ["json", .., last] if relaxed && !matches!(*last, "status" | "error") => {
                (samples::read_json(payload)?, "json")
            }
            ["plain", metric] if relaxed => (vec![samples::read_plain(metric, payload)?], "plain"),
            path => {
                let expected = if relaxed { "json or plain/<metric>" } else { "json" };
                let found = body::shortened(&path.join("/"));
                return Err(Refusal::missing(format!("resource {found:?} of dcx: expected {expected}")));
            }
        };
        if let Some(endpoint) = self.endpoints.get_mut(&topic.token) {
            let before = endpoint.samples.bytes();
            endpoint.samples.append(now, &topic.app_version, &batch);
            self.sample_bytes = self.sample_bytes + endpoint.samples.bytes() - before;
        }
        self.make_room_for_samples();
        let plural = if batch.len() == 1 { "" } else { "s" };
        self.events.note(now, "samples", Some(&topic.token), format!("{} {form} sample{plural}", batch.len()));
        Ok(Answer::Done)
    }

    fn make_room_for_samples(&mut self) {
        while self.sample_bytes > MAX_SAMPLE_BYTES {
            let largest = self.endpoints.values_mut().max_by_key(|endpoint| endpoint.samples.bytes());
            let Some(largest) = largest.filter(|endpoint| endpoint.samples.bytes() > 0) else { return };
            let before = largest.samples.bytes();
            largest.samples.shrink();
            self.sample_bytes -= before - largest.samples.bytes();
        }
    }

    fn take_results(&mut self, now: u64, topic: &Topic, command_type: &str, payload: &[u8]) -> Outcome {
        let Some(endpoint) = self.endpoints.get_mut(&topic.token) else { return Err(Refusal::standard(404)) };
        let report = endpoint.commands.report(now, command_type, payload)?;
        for id in &report.executed {
            let result =
                i32::try_from(*id).ok().and_then(|id| endpoint.commands.find(now, command_type, id)?.result.as_ref());
            let said = result.map(|result| format!("{} {}", result.status_code, result.reason_phrase));
            let text = format!("{command_type} {id}: {}", said.unwrap_or_default());
            self.events.note(now, "result", Some(&topic.token), text);
        }
        for id in &report.repeated {
            let text = format!("{command_type} {id} again; the first result stays");
            self.events.note(now, "result", Some(&topic.token), text);
        }
        if report.unknown.is_empty() {
            return Ok(Answer::Done);
        }
        let ids: Vec<String> = report.unknown.iter().take(10).map(i64::to_string).collect();
        Err(Refusal::missing(format!("{command_type} {}: no such command is pending", ids.join(", "))))
    }

    fn note_report(&mut self, now: u64, what: &'static str, token: &str, report: Option<Applied>) {
        let Some(report) = report else { return };
        let verdict = if report.is_success() { "applied" } else { "rejected" };
        let reason = report.reason_phrase.map(|reason| format!(" {reason}")).unwrap_or_default();
        let text = format!("{} {verdict}: {}{reason}", report.config_id, report.status_code);
        self.events.note(now, what, Some(token), text);
    }
}
