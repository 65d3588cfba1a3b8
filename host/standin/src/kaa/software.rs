//! Software updates (extension `cmx_ota`, which is 7/CMP with versions for ids): what is offered to whom.
//!
//! The service calls it. An endpoint that has not told its version is offered nothing.

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::answer::{Answer, Refusal};
use super::cmp::{self, Applied, History};
use super::configurations::Handled;

/// Maximum offers.
pub const MAX_OFFERS: usize = 1000;

/// All offers; the newest one that fits an endpoint counts.
#[derive(Debug, Default)]
pub struct Catalogue {
    offers: Vec<Offer>,
}

/// A version and who may go to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// Whose endpoints it is for; set from the address.
    #[serde(default)]
    pub application: String,
    /// The version; set from the address.
    #[serde(default)]
    pub version: String,
    /// What the endpoint gets as it is: usually `link` and `checksum`.
    pub specification: Json,
    /// From which versions; without it from every other one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgradable_from: Option<Vec<String>>,
    /// How it is rolled out.
    #[serde(default)]
    pub rollout_strategy: Rollout,
    /// Targets of a targeted rollout.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
}

/// How an offer is rolled out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rollout {
    /// To nobody.
    Suspended,
    /// To the named endpoints.
    Targeted,
    /// To everyone.
    #[default]
    General,
}

/// The software of one endpoint.
#[derive(Debug, Default)]
pub struct Software {
    version: Option<String>,
    observed: Option<bool>,
    last_report: Option<Applied>,
    /// What was offered and reported.
    pub history: History,
}

/// Whose request it is.
pub struct Context<'a> {
    /// In milliseconds since 1970.
    pub now: u64,
    /// The endpoint's application.
    pub application: &'a str,
    /// The endpoint's token.
    pub token: &'a str,
    /// All offers.
    pub catalogue: &'a Catalogue,
    /// Whether answers have the keys of 7/CMP only.
    pub strict: bool,
}

impl Catalogue {
    /// Puts an offer; one of the same application and version is replaced.
    pub fn put(&mut self, offer: Offer) -> Result<(), Refusal> {
        if offer.version.is_empty() {
            return Err(Refusal::malformed("version: expected a text"));
        }
        self.delete(&offer.application, &offer.version);
        if self.offers.len() >= MAX_OFFERS {
            return Err(Refusal::full(format!("software: expected at most {MAX_OFFERS} versions")));
        }
        self.offers.push(offer);
        Ok(())
    }

    /// Withdraws an offer; false if there is none.
    pub fn delete(&mut self, application: &str, version: &str) -> bool {
        let before = self.offers.len();
        self.offers.retain(|offer| offer.application != application || offer.version != version);
        self.offers.len() < before
    }

    /// The offers of an application, oldest first.
    pub fn all<'a>(&'a self, application: &'a str) -> impl Iterator<Item = &'a Offer> {
        self.offers.iter().filter(move |offer| offer.application == application)
    }

    /// What an endpoint with this version should go to: the newest that names this version as one to start from, or
    /// names none and was offered after it.
    pub fn find(&self, application: &str, token: &str, version: &str) -> Option<&Offer> {
        let own: Vec<&Offer> = self.offers.iter().filter(|offer| offer.application == application).collect();
        let running = own.iter().position(|offer| offer.version == version);
        let is_newer = |(place, offer): &(usize, &&Offer)| {
            offer.upgradable_from.is_some() || running.is_none_or(|running| *place > running)
        };
        let mut newest = own.iter().enumerate().filter(is_newer).rev();
        newest.find(|(_, offer)| offer.fits(token, version)).map(|(_, offer)| *offer)
    }
}

impl Offer {
    fn fits(&self, token: &str, version: &str) -> bool {
        let reaches = match self.rollout_strategy {
            Rollout::Suspended => false,
            Rollout::Targeted => self.endpoints.iter().any(|endpoint| endpoint == token),
            Rollout::General => true,
        };
        let from = self.upgradable_from.as_ref();
        reaches && self.version != version && from.is_none_or(|from| from.iter().any(|from| from == version))
    }
}

impl Software {
    /// Answers a device.
    pub fn handle(&mut self, context: &Context<'_>, resource: &[&str], payload: &[u8]) -> Result<Handled, Refusal> {
        match resource {
            ["applied", "json"] => {
                let applied = cmp::read_applied(payload)?;
                self.history.note_report(context.now, "", &applied);
                self.note(&applied);
                Ok(Handled { answer: Answer::Done, report: Some(applied) })
            }
            ["config", "json"] => {
                let request = cmp::read_request(payload)?;
                self.observed = request.observe.or(self.observed);
                let told = request.config_id.filter(|id| !id.is_empty() && self.version.as_ref() != Some(id));
                let report = told.map(|version| Applied::implicit(&version));
                if let Some(report) = &report {
                    self.history.note_implicit(context.now, "", report);
                    self.note(report);
                }
                let answer = match self.offer(context) {
                    Some(body) => Answer::Data(body),
                    None => Answer::Unchanged,
                };
                Ok(Handled { answer, report })
            }
            _ => {
                let found = resource.join("/");
                Err(Refusal::missing(format!("resource {found:?}: expected config/json or applied/json")))
            }
        }
    }

    fn note(&mut self, applied: &Applied) {
        if applied.is_success() {
            self.version = Some(applied.config_id.clone());
        }
        self.last_report = Some(applied.clone());
    }

    /// The body with the software that the endpoint should have, if there is any; notes that it was sent.
    pub fn offer(&mut self, context: &Context<'_>) -> Option<Vec<u8>> {
        let version = self.version.as_deref()?;
        let offer = context.catalogue.find(context.application, context.token, version)?;
        self.history.note_dispatch(context.now, "", &offer.version);
        Some(cmp::response(&offer.version, &offer.specification, context.strict))
    }

    /// Whether offers are pushed: unless the endpoint said no.
    pub fn is_pushed(&self) -> bool {
        self.observed != Some(false)
    }

    /// Forgets what the endpoint observes, as a new connection begins.
    pub fn forget_observers(&mut self) {
        self.observed = None;
    }

    /// The version that the endpoint runs, as far as it has told.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// The last report.
    pub fn last_report(&self) -> Option<&Applied> {
        self.last_report.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn offer(version: &str, from: Option<&[&str]>, rollout_strategy: Rollout) -> Offer {
        Offer {
            application: "a".to_owned(),
            version: version.to_owned(),
            specification: json!({"link": "http://x/fw", "checksum": "00"}),
            upgradable_from: from.map(|from| from.iter().map(|&version| version.to_owned()).collect()),
            rollout_strategy,
            endpoints: vec!["T".to_owned()],
        }
    }

    fn ask(software: &mut Software, catalogue: &Catalogue, resource: &str, payload: &str) -> Handled {
        let context = Context { now: 1, application: "a", token: "T", catalogue, strict: true };
        let resource: Vec<&str> = resource.split('/').collect();
        software.handle(&context, &resource, payload.as_bytes()).unwrap()
    }

    #[test]
    fn an_endpoint_is_offered_what_its_version_can_go_to() {
        let mut catalogue = Catalogue::default();
        let mut software = Software::default();
        for offer in [
            offer("1.0.1", Some(&["1.0.0"]), Rollout::Targeted),
            offer("2.0.0", Some(&["1.0.1"]), Rollout::General),
            offer("9.0.0", None, Rollout::Suspended),
        ] {
            catalogue.put(offer).unwrap();
        }
        // The version is not known yet.
        assert_eq!(ask(&mut software, &catalogue, "config/json", r#"{"observe":true}"#).answer, Answer::Unchanged);
        ask(&mut software, &catalogue, "applied/json", r#"{"configId":"1.0.0"}"#);
        let expected = json!({"configId": "1.0.1", "config": {"link": "http://x/fw", "checksum": "00"}});
        assert_eq!(ask(&mut software, &catalogue, "config/json", "{}").answer, Answer::json(&expected));
        // A rejected update is offered again.
        ask(&mut software, &catalogue, "applied/json", r#"{"configId":"1.0.1","statusCode":400}"#);
        assert_eq!(software.version(), Some("1.0.0"));
        assert_eq!(ask(&mut software, &catalogue, "config/json", "{}").answer, Answer::json(&expected));
        // A request that names the version reports it.
        let handled = ask(&mut software, &catalogue, "config/json", r#"{"configId":"1.0.1"}"#);
        assert!(handled.report.is_some());
        assert_eq!(software.version(), Some("1.0.1"));
        ask(&mut software, &catalogue, "applied/json", r#"{"configId":"2.0.0"}"#);
        assert_eq!(ask(&mut software, &catalogue, "config/json", "{}").answer, Answer::Unchanged);
    }

    #[test]
    fn the_newest_offer_that_fits_counts() {
        let mut catalogue = Catalogue::default();
        catalogue.put(offer("3", None, Rollout::General)).unwrap();
        catalogue.put(offer("2", None, Rollout::General)).unwrap();
        let found = |catalogue: &Catalogue, token: &str| catalogue.find("a", token, "1").map(|o| o.version.clone());
        assert_eq!(found(&catalogue, "T").as_deref(), Some("2"));
        catalogue.put(offer("4", None, Rollout::Targeted)).unwrap();
        assert_eq!(found(&catalogue, "T").as_deref(), Some("4"));
        assert_eq!(found(&catalogue, "U").as_deref(), Some("2"));
        // One that is older than what runs is no update, unless it says so.
        assert!(catalogue.find("a", "U", "2").is_none());
        catalogue.put(offer("0", Some(&["2"]), Rollout::General)).unwrap();
        assert_eq!(catalogue.find("a", "U", "2").map(|offer| offer.version.as_str()), Some("0"));
        assert!(catalogue.delete("a", "2"));
        assert!(!catalogue.delete("a", "2"));
        assert_eq!(found(&catalogue, "U").as_deref(), Some("3"));
        assert!(catalogue.find("b", "T", "1").is_none());
    }
}
