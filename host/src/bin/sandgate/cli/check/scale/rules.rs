//! The rules of the scale.

use std::collections::BTreeSet;

use sandgate::manifest::provenance::DependencyKind;
use sandgate::sandbox::Limits;
use sandgate::scenario::Rule as Explored;
use sandgate::text::{count, list};
use sandgate::units::Size;

use super::Tier;
use super::evidence::Evidence;

/// What must be so for a tier.
pub(super) struct Rule {
    pub tier: Tier,
    pub name: &'static str,
    /// What it asks for, as a sentence.
    pub asks: &'static str,
    pub look: fn(&Evidence) -> Verdict,
}

/// Whether a rule holds, and by what.
pub(super) enum Verdict {
    Holds(String),
    Fails(String),
    /// The driver has nothing that it is about.
    DoesNotApply(String),
}

use Verdict::{DoesNotApply, Fails, Holds};

const fn rule(tier: Tier, name: &'static str, asks: &'static str, look: fn(&Evidence) -> Verdict) -> Rule {
    Rule { tier, name, asks, look }
}

/// All of them.
pub(super) const RULES: &[Rule] = &[
    rule(Tier::Bronze, "accepted", "a gateway takes it, and it requests what it uses", accepted),
    rule(Tier::Bronze, "tested", "it has scenarios, and passes them", tested),
    rule(Tier::Bronze, "telemetry", "each attribute is sent in a scenario", |it| covered(it, "telemetry")),
    rule(Tier::Bronze, "commands", "each command is run in a scenario", |it| covered(it, "commands")),
    rule(Tier::Bronze, "readme", "a README.md beside it names its commands", readme),
    rule(Tier::Bronze, "licence", "it says under which licence it is", licence),
    rule(Tier::Silver, "properties", "each property is sent in a scenario", |it| covered(it, "properties")),
    rule(Tier::Silver, "alerts", "each alert is active in a scenario", |it| covered(it, "alerts")),
    rule(Tier::Silver, "configuration", "each parameter is set in a scenario", |it| covered(it, "configuration")),
    rule(Tier::Silver, "loss", "a scenario breaks each device and repairs it", loss),
    rule(Tier::Silver, "told", "that its devices are lost is told, and once in the log", told),
    rule(Tier::Silver, "recovery", "it recovers by itself when they are back", recovery),
    rule(Tier::Silver, "swap", "a scenario swaps it while it runs, and its state goes on", swap),
    rule(Tier::Silver, "crash", "a scenario crashes it", crash),
    rule(Tier::Silver, "budgets", "it takes at most half of its memory and of its time", budgets),
    rule(Tier::Gold, "reconfigured", "each parameter is changed while it runs", reconfigured),
    rule(Tier::Gold, "explored", "random faults, commands and swaps find nothing", explored),
    rule(Tier::Gold, "reproducible", "built in another place it is the same, byte for byte", reproducible),
    rule(Tier::Gold, "dependencies", "the component lists what it is made of", dependencies),
];

fn accepted(it: &Evidence) -> Verdict {
    match it.warnings.as_slice() {
        [] => Holds(format!("built for sandgate:driver {}", it.driver.inspection.wit_version)),
        warnings => Fails(warnings.join("; ")),
    }
}

fn tested(it: &Evidence) -> Verdict {
    let reports = match &it.reports {
        Ok(reports) => reports,
        Err(problem) => return Fails(problem.clone()),
    };
    let failed = reports.iter().filter(|report| report.failure.is_some()).map(|report| report.name.as_str());
    let failed: Vec<&str> = failed.collect();
    match failed.is_empty() {
        true => Holds(format!("{} passed", count(reports.len(), "scenario"))),
        false => Fails(format!("{} of {} failed: {}", failed.len(), reports.len(), list(failed))),
    }
}

/// Whether scenarios have seen all names of a section of the manifest.
fn covered(it: &Evidence, section: &str) -> Verdict {
    let sections = it.seen.coverage(&it.driver.manifest);
    let Some((_, number, missing)) = sections.into_iter().find(|(name, ..)| *name == section) else {
        return DoesNotApply(format!("the manifest declares no {section}"));
    };
    match missing.is_empty() {
        true => Holds(format!("{number} of {number}")),
        false => Fails(format!("{} of {number}, not {}", number - missing.len(), list(&missing))),
    }
}

fn readme(it: &Evidence) -> Verdict {
    let Some(text) = &it.readme else { return Fails("there is no README.md beside it".into()) };
    let commands = it.driver.manifest.blueprint.commands.keys();
    let missing: Vec<&String> = commands.filter(|name| !text.contains(name.as_str())).collect();
    match missing.is_empty() {
        true => Holds(format!("{} of README.md", count(text.lines().count(), "line"))),
        false => Fails(format!("README.md does not name {}", list(missing))),
    }
}

fn licence(it: &Evidence) -> Verdict {
    match it.licence() {
        Some(licence) => Holds(licence.to_owned()),
        None => Fails("expected `license` in Cargo.toml or in manifest.yml".into()),
    }
}

fn loss(it: &Evidence) -> Verdict {
    let missing: Vec<&String> = it.seen.devices.difference(&it.seen.lost).collect();
    match (it.seen.devices.len(), missing.is_empty()) {
        (0, _) if requests_devices(it) => Fails("its scenarios give no device for what it requests".into()),
        (0, _) => DoesNotApply("it requests no device".into()),
        (number, true) => Holds(count(number, "device")),
        (_, false) => Fails(format!("no scenario breaks and repairs {}", list(missing))),
    }
}

fn requests_devices(it: &Evidence) -> bool {
    it.driver.manifest.driver.requests.list().iter().any(|kind| !kind.items.is_empty())
}

/// Whether exploring has found nothing against these rules.
fn holds_explored(it: &Evidence, rules: &[Explored]) -> Verdict {
    if it.explored == 0 {
        return Fails("its scenarios have to pass first".into());
    }
    match (it.found_against(rules), &it.finding) {
        (Some(finding), _) => Fails(format!("run {}: {}", finding.run, finding.found)),
        (None, Some(other)) => Fails(format!("exploring ended in run {} with another finding", other.run)),
        (None, None) => Holds(format!("nothing found in {}", count_of(it.explored, "run"))),
    }
}

fn count_of(number: u64, thing: &str) -> String {
    count(usize::try_from(number).unwrap_or(usize::MAX), thing)
}

fn told(it: &Evidence) -> Verdict {
    holds_explored(it, &[Explored::LossIsTold, Explored::ToldOnce])
}

fn recovery(it: &Evidence) -> Verdict {
    holds_explored(it, &[Explored::Recovery])
}

fn swap(it: &Evidence) -> Verdict {
    match it.seen.is_swapped {
        true => holds_explored(it, &[Explored::Swap]),
        false => Fails("no scenario has the step `swap: {}`".into()),
    }
}

fn crash(it: &Evidence) -> Verdict {
    match it.seen.has_crashed {
        true => Holds("a scenario has the step `trap`".into()),
        false => Fails("no scenario has the step `trap`".into()),
    }
}

fn budgets(it: &Evidence) -> Verdict {
    let limits = Limits::resolve(&Default::default(), &it.driver.manifest.driver.limits);
    let used = it.seen.used;
    let text = format!(
        "at most {} of {}, and {:.1?} of {:.0?} in a call",
        Size(used.memory),
        Size(limits.memory as u64),
        used.cpu,
        limits.cpu
    );
    let fits = used.memory <= limits.memory as u64 / 2 && used.cpu <= limits.cpu / 2;
    if it.explored > 0 && fits { Holds(text) } else { Fails(text) }
}

fn reconfigured(it: &Evidence) -> Verdict {
    let buckets = &it.driver.manifest.blueprint.configuration;
    let declared: BTreeSet<String> = buckets
        .iter()
        .flat_map(|(bucket, declared)| declared.parameters.keys().map(move |name| format!("{bucket}.{name}")))
        .collect();
    let missing: Vec<&String> = declared.difference(&it.seen.changed).collect();
    match (declared.len(), missing.is_empty()) {
        (0, _) => DoesNotApply("the manifest declares no configuration".into()),
        (number, true) => Holds(format!("{number} of {number}")),
        (_, false) => Fails(format!("no scenario changes {} by `configure`", list(missing))),
    }
}

fn explored(it: &Evidence) -> Verdict {
    let all = [
        Explored::NoCrash,
        Explored::NoWrite,
        Explored::LossIsTold,
        Explored::ToldOnce,
        Explored::Recovery,
        Explored::Swap,
    ];
    holds_explored(it, &all)
}

fn reproducible(it: &Evidence) -> Verdict {
    match &it.rebuilt {
        Ok(digest) if *digest == it.driver.digest => Holds(digest.to_string()),
        Ok(digest) => Fails(format!("it is {}, built again {}", it.driver.digest, digest)),
        Err(problem) => Fails(problem.clone()),
    }
}

fn dependencies(it: &Evidence) -> Verdict {
    let Some(list) = &it.provenance.dependencies else {
        return Fails("expected a section .dep-v0, which `sandgate build` makes".into());
    };
    let runs = list.packages.iter().filter(|package| package.kind == DependencyKind::Runtime && !package.root).count();
    let built = list.packages.iter().filter(|package| package.kind == DependencyKind::Build).count();
    Holds(format!("{} in the driver, {built} to build it", count(runs, "package")))
}
