//! Configurations (7/CMP, extension `cmx`): what is assigned to whom, and what endpoints made of it.
//!
//! A document belongs to an app version and has a name, empty for the default one.
//! One assigned to an endpoint goes before the app version's. The service calls this.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::answer::{Answer, Outcome, Refusal};
use super::cmp::{self, Applied, History};
use super::topic;

/// Maximum named configurations of an endpoint.
pub const MAX_NAMES: usize = 100;

/// What configuration ids look like; clients must not care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IdForm {
    /// 32 hexadecimal digits that depend on the contents.
    #[default]
    Hash,
    /// A new UUID for each change.
    Uuid,
}

/// Documents of one owner, by app version and name.
#[derive(Debug, Default)]
pub struct Documents(BTreeMap<(String, String), Document>);

/// One configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Opaque and unique.
    pub config_id: String,
    /// The contents.
    pub config: Json,
    /// In milliseconds since 1970.
    pub created: u64,
    /// In milliseconds since 1970.
    pub updated: u64,
}

/// The configurations of one endpoint.
#[derive(Debug, Default)]
pub struct Configurations {
    /// Those assigned to this endpoint alone.
    pub overrides: Documents,
    applied: BTreeMap<String, Applied>,
    observed: HashMap<String, bool>,
    /// What was sent and reported.
    pub history: History,
}

/// What a request is about, beside its payload.
pub struct Context<'a> {
    /// In milliseconds since 1970.
    pub now: u64,
    /// Of the endpoint.
    pub app_version: &'a str,
    /// The documents of app versions.
    pub defaults: &'a Documents,
    /// Whether answers have the keys of 7/CMP only.
    pub strict: bool,
}

/// Whether a request reported something.
#[derive(Debug, PartialEq)]
pub struct Handled {
    /// What the endpoint gets.
    pub answer: Answer,
    /// What it reported.
    pub report: Option<Applied>,
}

impl Documents {
    /// The document, if there is one.
    pub fn find(&self, app_version: &str, name: &str) -> Option<&Document> {
        self.0.get(&(app_version.to_owned(), name.to_owned()))
    }

    /// Puts a document; with `if_match` only over the document that has this id.
    pub fn put(
        &mut self,
        now: u64,
        (app_version, name): (&str, &str),
        config: Json,
        form: IdForm,
        if_match: Option<&str>,
    ) -> Result<Document, Refusal> {
        let key = (app_version.to_owned(), name.to_owned());
        let old = self.0.get(&key);
        check_match(old, if_match)?;
        if old.is_none() && self.0.len() >= MAX_NAMES {
            return Err(Refusal::full(format!("configurations: expected at most {MAX_NAMES}")));
        }
        let created = old.map_or(now, |old| old.created);
        let config_id = match form {
            IdForm::Hash => hash(&config),
            IdForm::Uuid => uuid(fastrand::u128(..)),
        };
        let document = Document { config_id, config, created, updated: now };
        self.0.insert(key, document.clone());
        Ok(document)
    }

    /// Takes a document away; false if there is none.
    pub fn delete(&mut self, app_version: &str, name: &str) -> bool {
        self.0.remove(&(app_version.to_owned(), name.to_owned())).is_some()
    }

    fn names<'a>(&'a self, app_version: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.keys().filter(move |(owner, _)| owner == app_version).map(|(_, name)| name.as_str())
    }
}

fn check_match(old: Option<&Document>, if_match: Option<&str>) -> Result<(), Refusal> {
    let Some(wanted) = if_match else { return Ok(()) };
    let found = old.map_or("none", |old| old.config_id.as_str());
    if old.is_some() && (wanted == "*" || wanted.trim_matches('"') == found) {
        return Ok(());
    }
    Err(Refusal::new(412, format!("If-Match {wanted}: the current configId is {found}")))
}

fn hash(config: &Json) -> String {
    let digest = Sha256::digest(config.to_string());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Version 4, as far as one can tell from outside.
fn uuid(random: u128) -> String {
    let digits = format!("{random:032x}");
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
    format!("{}-{}-4{}-a{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}

impl Document {
    /// The document as the platform's REST answers it: the contents are a string.
    pub fn rest(&self) -> Json {
        json!({
            "configId": self.config_id,
            "config": self.config.to_string(),
            "createdDate": self.created,
            "updatedDate": self.updated,
        })
    }
}

impl Configurations {
    /// Answers a device.
    pub fn handle(&mut self, context: &Context<'_>, resource: &[&str], payload: &[u8]) -> Result<Handled, Refusal> {
        let (kind, name) = match resource {
            [kind @ ("config" | "applied"), "json"] => (*kind, ""),
            [kind @ ("config" | "applied"), "json", name] => (*kind, *name),
            _ => {
                let found = resource.join("/");
                return Err(Refusal::missing(format!(
                    "resource {found:?}: expected config/json or applied/json, and perhaps a name"
                )));
            }
        };
        if !name.is_empty() && !topic::is_name(name) {
            return Err(Refusal::malformed(format!("configuration {name:?}: expected letters, digits, _ and -")));
        }
        let is_new = !self.applied.contains_key(name) && !self.observed.contains_key(name);
        if is_new && self.applied.len() + self.observed.len() >= 2 * MAX_NAMES {
            return Err(Refusal::full(format!("configurations: expected at most {MAX_NAMES} names")));
        }
        if kind == "applied" {
            let applied = cmp::read_applied(payload)?;
            self.history.note_report(context.now, name, &applied);
            self.applied.insert(name.to_owned(), applied.clone());
            return Ok(Handled { answer: Answer::Done, report: Some(applied) });
        }
        let request = cmp::read_request(payload)?;
        if let Some(observe) = request.observe {
            self.observed.insert(name.to_owned(), observe);
        }
        let report = request.config_id.as_deref().and_then(|id| self.apply_implicitly(context.now, name, id));
        let answer = self.answer(context, name, request.config_id.as_deref())?;
        Ok(Handled { answer, report })
    }

    /// An id in a request says that the endpoint has applied it; None if that was known.
    fn apply_implicitly(&mut self, now: u64, name: &str, config_id: &str) -> Option<Applied> {
        let known = self.applied.get(name).is_some_and(|known| known.is_success() && known.config_id == config_id);
        if known || config_id.is_empty() {
            return None;
        }
        let applied = Applied::implicit(config_id);
        self.history.note_implicit(now, name, &applied);
        self.applied.insert(name.to_owned(), applied.clone());
        Some(applied)
    }

    fn answer(&mut self, context: &Context<'_>, name: &str, has: Option<&str>) -> Outcome {
        let (config_id, config) = match self.current(context.app_version, name, context.defaults) {
            Some(document) => (document.config_id.clone(), document.config.clone()),
            // Nothing assigned.
            None => (String::new(), Json::Null),
        };
        if has == Some(config_id.as_str()) {
            return Ok(Answer::Unchanged);
        }
        if !config_id.is_empty() {
            self.history.note_dispatch(context.now, name, &config_id);
        }
        Ok(Answer::Data(cmp::response(&config_id, &config, context.strict)))
    }

    /// The document that counts for this endpoint.
    pub fn current<'a>(&'a self, app_version: &str, name: &str, defaults: &'a Documents) -> Option<&'a Document> {
        self.overrides.find(app_version, name).or_else(|| defaults.find(app_version, name))
    }

    /// The names of documents that the endpoint has not taken yet and wants to hear of.
    pub fn unapplied(&self, app_version: &str, defaults: &Documents) -> Vec<String> {
        let names: BTreeSet<&str> = self.overrides.names(app_version).chain(defaults.names(app_version)).collect();
        let is_due = |name: &&str| {
            let current = self.current(app_version, name, defaults).map(|document| document.config_id.as_str());
            let applied = self.applied.get(*name).filter(|applied| applied.is_success());
            self.is_pushed(name) && current.is_some() && applied.map(|applied| applied.config_id.as_str()) != current
        };
        names.into_iter().filter(is_due).map(str::to_owned).collect()
    }

    /// Whether changes are pushed: unless the endpoint said no.
    pub fn is_pushed(&self, name: &str) -> bool {
        self.observed.get(name) != Some(&false)
    }

    /// Forgets what the endpoint observes, as a new connection begins.
    pub fn forget_observers(&mut self) {
        self.observed.clear();
    }

    /// The last report for each name.
    pub fn applied(&self) -> &BTreeMap<String, Applied> {
        &self.applied
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(configurations: &mut Configurations, defaults: &Documents, resource: &str, payload: &str) -> Handled {
        let context = Context { now: 1, app_version: "a-v1", defaults, strict: false };
        let resource: Vec<&str> = resource.split('/').collect();
        configurations.handle(&context, &resource, payload.as_bytes()).unwrap()
    }

    fn body(handled: Handled) -> Json {
        match handled.answer {
            Answer::Data(body) => serde_json::from_slice(&body).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn put(documents: &mut Documents, name: &str, config: Json) -> String {
        documents.put(0, ("a-v1", name), config, IdForm::Hash, None).unwrap().config_id
    }

    #[test]
    fn an_endpoint_gets_its_own_document_before_that_of_its_app_version() {
        let (mut mine, mut defaults) = (Configurations::default(), Documents::default());
        let nothing = json!({"configId": "", "statusCode": 200, "reasonPhrase": "OK", "config": null});
        assert_eq!(body(ask(&mut mine, &defaults, "config/json", "{}")), nothing);

        let default_id = put(&mut defaults, "", json!({"interval": 60}));
        let answer = body(ask(&mut mine, &defaults, "config/json", r#"{"observe":true}"#));
        assert_eq!((&answer["configId"], &answer["config"]), (&json!(default_id), &json!({"interval": 60})));

        let own_id = put(&mut mine.overrides, "", json!({"interval": 5}));
        let request = json!({"configId": default_id}).to_string();
        assert_eq!(body(ask(&mut mine, &defaults, "config/json", &request))["configId"], json!(own_id));
        let request = json!({"configId": own_id}).to_string();
        assert_eq!(ask(&mut mine, &defaults, "config/json", &request).answer, Answer::Unchanged);
        assert!(mine.overrides.delete("a-v1", ""));
        assert_eq!(body(ask(&mut mine, &defaults, "config/json", &request))["configId"], json!(default_id));
    }

    #[test]
    fn a_document_is_due_until_it_is_applied() {
        let (mut mine, mut defaults) = (Configurations::default(), Documents::default());
        let id = put(&mut defaults, "", json!(1));
        put(&mut defaults, "other", json!(2));
        assert_eq!(mine.unapplied("a-v1", &defaults), ["", "other"]);
        assert!(mine.unapplied("a-v2", &defaults).is_empty());
        let rejected = json!({"configId": id, "statusCode": 400, "reasonPhrase": "no"}).to_string();
        assert!(!ask(&mut mine, &defaults, "applied/json", &rejected).report.unwrap().is_success());
        assert_eq!(mine.unapplied("a-v1", &defaults), ["", "other"]);
        let applied = json!({"configId": id}).to_string();
        assert!(ask(&mut mine, &defaults, "applied/json", &applied).report.unwrap().is_success());
        assert_eq!(mine.unapplied("a-v1", &defaults), ["other"]);
        ask(&mut mine, &defaults, "config/json/other", r#"{"observe":false}"#);
        assert!(mine.unapplied("a-v1", &defaults).is_empty());
        mine.forget_observers();
        assert_eq!(mine.unapplied("a-v1", &defaults), ["other"]);
    }

    #[test]
    fn an_id_in_a_request_is_an_implicit_report() {
        let (mut mine, mut defaults) = (Configurations::default(), Documents::default());
        let id = put(&mut defaults, "", json!(1));
        let request = json!({"configId": id}).to_string();
        let first = ask(&mut mine, &defaults, "config/json", &request);
        assert_eq!(first.report.unwrap().reason_phrase.as_deref(), Some("Implicitly applied"));
        assert_eq!(ask(&mut mine, &defaults, "config/json", &request).report, None);
        assert!(mine.unapplied("a-v1", &defaults).is_empty());
        let events: Vec<_> = mine.history.entries().iter().map(|entry| entry.event).collect();
        assert_eq!(events, ["implicitly applied"]);
    }

    #[test]
    fn a_document_is_replaced_only_if_it_is_the_expected_one() {
        let mut documents = Documents::default();
        let mut put = |config: i32, if_match| documents.put(1, ("a", ""), json!(config), IdForm::Uuid, if_match);
        assert_eq!(put(1, Some("*")).unwrap_err().status, 412);
        let first = put(1, None).unwrap();
        assert_eq!(put(2, Some("\"other\"")).unwrap_err().status, 412);
        let second = put(2, Some(&format!("\"{}\"", first.config_id))).unwrap();
        assert_ne!(first.config_id, second.config_id);
        assert_eq!(first.config_id.len(), 36);
    }

    #[test]
    fn wrong_resources_and_payloads_are_refused() {
        let (mut mine, defaults) = (Configurations::default(), Documents::default());
        let context = Context { now: 1, app_version: "a-v1", defaults: &defaults, strict: false };
        for (resource, payload, status) in [
            ("config", "{}", 404),
            ("config/yaml", "{}", 404),
            ("config/json/a/b", "{}", 404),
            ("config/json/a b", "{}", 400),
            ("config/json", "[]", 400),
            ("applied/json", "{}", 400),
        ] {
            let path: Vec<&str> = resource.split('/').collect();
            let refusal = mine.handle(&context, &path, payload.as_bytes()).unwrap_err();
            assert_eq!(refusal.status, status, "{resource} {payload}");
        }
    }
}
