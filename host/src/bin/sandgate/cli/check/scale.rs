//! `sandgate check --scale`: how good a driver is, by rules that a machine looks
//! at, each with its evidence.

mod evidence;
mod rules;

use anyhow::Result;
use clap::ValueEnum;
use serde_json::{Value as Json, json};

use super::super::Outcome;
use super::Options;
use crate::say::say;
use evidence::Evidence;
use rules::{RULES, Verdict};

/// How good a driver is. Each tier has the rules of those below it as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Tier {
    /// It works, and says what it is.
    Bronze,
    /// It goes on when its device does not.
    Silver,
    /// It has been put to the test, and can be built again by anybody.
    Gold,
}

impl Tier {
    const ALL: [Tier; 3] = [Tier::Bronze, Tier::Silver, Tier::Gold];

    fn name(self) -> &'static str {
        match self {
            Tier::Bronze => "bronze",
            Tier::Silver => "silver",
            Tier::Gold => "gold",
        }
    }
}

/// Looks at all rules. Fails when the driver is not as good as it should be.
pub(super) async fn run(options: &Options, json: bool) -> Result<Outcome> {
    let evidence = Evidence::gather(options).await?;
    let looked: Vec<Looked> = RULES.iter().map(|rule| Looked { rule, verdict: (rule.look)(&evidence) }).collect();
    let reached = reached(&looked);
    match json {
        true => say!("{:#}", as_json(&evidence, &looked, reached)),
        false => print(&evidence, &looked, reached),
    }
    Ok(if reached >= options.at_least { Outcome::Done } else { Outcome::Failed })
}

/// A rule that was looked at.
struct Looked {
    rule: &'static rules::Rule,
    verdict: Verdict,
}

/// The highest tier whose rules hold, and those of all tiers below.
fn reached(looked: &[Looked]) -> Option<Tier> {
    let fails = |tier: Tier| looked.iter().any(|one| one.rule.tier == tier && matches!(one.verdict, Verdict::Fails(_)));
    Tier::ALL.into_iter().take_while(|tier| !fails(*tier)).last()
}

fn print(evidence: &Evidence, looked: &[Looked], reached: Option<Tier>) {
    for tier in Tier::ALL {
        say!("{}", tier.name());
        for Looked { rule, verdict } in looked.iter().filter(|one| one.rule.tier == tier) {
            let (word, text) = match verdict {
                Verdict::Holds(text) => ("ok", text),
                Verdict::DoesNotApply(text) => ("-", text),
                Verdict::Fails(text) => ("FAILS", text),
            };
            say!("  {word:<6}{:<14}{}", rule.name, rule.asks);
            say!("        {:<12}{text}", "");
        }
    }
    let label = evidence.driver.manifest.label();
    let next = match reached {
        None => Some(Tier::Bronze),
        Some(Tier::Bronze) => Some(Tier::Silver),
        Some(Tier::Silver) => Some(Tier::Gold),
        Some(Tier::Gold) => None,
    };
    let missing = next.map(|next| {
        let of_next = looked.iter().filter(|one| one.rule.tier == next && matches!(one.verdict, Verdict::Fails(_)));
        format!("; for {}: {}", next.name(), of_next.map(|one| one.rule.name).collect::<Vec<_>>().join(", "))
    });
    let tier = reached.map_or("below bronze", Tier::name);
    say!("{label} is {tier}{}", missing.unwrap_or_default());
}

fn as_json(evidence: &Evidence, looked: &[Looked], reached: Option<Tier>) -> Json {
    let rules = looked.iter().map(|Looked { rule, verdict }| {
        let (word, text) = match verdict {
            Verdict::Holds(text) => ("holds", text),
            Verdict::Fails(text) => ("fails", text),
            Verdict::DoesNotApply(text) => ("does not apply", text),
        };
        json!({"tier": rule.tier.name(), "rule": rule.name, "asks": rule.asks, "verdict": word, "evidence": text})
    });
    let packages = evidence.provenance.dependencies.iter().flat_map(|list| &list.packages);
    json!({
        "driver": evidence.driver.manifest.driver.name, "version": evidence.driver.manifest.driver.version,
        "digest": evidence.driver.digest.to_string(), "tier": reached.map(Tier::name),
        "rules": rules.collect::<Vec<_>>(), "explored": evidence.explored, "licence": evidence.licence(),
        "most_memory": evidence.seen.used.memory,
        "most_cpu_us": u64::try_from(evidence.seen.used.cpu.as_micros()).unwrap_or(u64::MAX),
        "dependencies": packages.map(|package| json!({"name": package.name, "version": package.version})).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_is_reached_when_its_rules_and_those_below_hold() {
        let looked = |fails: &[Tier]| -> Vec<Looked> {
            let verdict = |tier| match fails.contains(&tier) {
                true => Verdict::Fails(String::new()),
                false => Verdict::DoesNotApply(String::new()),
            };
            RULES.iter().map(|rule| Looked { rule, verdict: verdict(rule.tier) }).collect()
        };
        for (fails, expected) in [
            (&[][..], Some(Tier::Gold)),
            (&[Tier::Gold], Some(Tier::Silver)),
            (&[Tier::Silver], Some(Tier::Bronze)),
            (&[Tier::Bronze], None),
        ] {
            assert_eq!(reached(&looked(fails)), expected);
        }
        let names: std::collections::BTreeSet<&str> = RULES.iter().map(|rule| rule.name).collect();
        assert_eq!(names.len(), RULES.len());
    }
}
