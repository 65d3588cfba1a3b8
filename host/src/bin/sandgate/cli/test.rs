//! `sandgate test`: runs a driver's scenarios and tells what was not as expected.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use sandgate::manifest::Manifest;
use sandgate::sandbox::{Compiler, Driver, Sandbox};
use sandgate::scenario::{self, Finding, Report, Scenario, Seen};
use sandgate::text;
use sandgate::watcher::Watcher;
use serde_json::{Value as Json, json};
use tokio::sync::mpsc;

use super::Outcome;
use crate::say::{say, tell};
use crate::source::{self, Source, scenario_files};
use crate::toolchain;

/// What to test.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The driver's folder, which is built first, or a component.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Run the scenarios with this in their name or file only.
    names: Vec<String>,
    /// Where the `*.test.yml` files are; default is `tests` beside the driver.
    #[arg(long)]
    tests: Option<PathBuf>,
    /// Then explore in so many runs: random faults, commands and swaps, held against what must be
    /// so for every driver.
    #[arg(long, value_name = "RUNS")]
    explore: Option<u64>,
    /// Where chance begins.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Run again whenever the driver or a scenario changes, until interrupted.
    #[arg(long)]
    watch: bool,
    /// Write a tape of each scenario's last life of the driver into a folder, for `sandgate replay`.
    #[arg(long, value_name = "FOLDER")]
    tapes: Option<PathBuf>,
    /// Write the results as JUnit XML.
    #[arg(long)]
    junit: Option<PathBuf>,
}

/// Runs the scenarios, once or again and again.
pub(super) async fn run(options: Options, json: bool) -> Result<Outcome> {
    let source = Source::new(&options.path, options.tests.as_deref());
    if !options.watch {
        return once(&options, &source, json).await;
    }
    tokio::spawn(async {
        // Also in the middle of a run.
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(130);
        }
    });
    let (sender, mut changes) = mpsc::channel(1);
    let mut watcher = Watcher::start(sender)?;
    loop {
        // What changes during a run counts for the next.
        let files = source.files();
        watcher.watch(files.iter().map(PathBuf::as_path));
        if let Err(error) = once(&options, &source, json).await {
            tell!("error: {error:#}");
        }
        tell!("waiting for a change; Ctrl-C ends");
        // Now and then it is looked for files that are new.
        while tokio::time::timeout(source::LOOK, changes.recv()).await.is_err() && source.files() == files {}
    }
}

/// Runs the scenarios; fails when one does.
async fn once(options: &Options, source: &Source, json: bool) -> Result<Outcome> {
    let component = source.component()?;
    let sandbox = Sandbox::new(Compiler::InProcess, toolchain::cache().as_deref())?;
    let driver = Arc::new(sandbox.load(&component).await?);
    let scenarios = scenarios(&source.tests, &driver.manifest, &options.names)?;
    let begin = Instant::now();
    let (seed, of_all, runs, records) = (options.seed, Arc::clone(&driver), options.explore, options.tapes.is_some());
    let work = move || {
        let reports = run_all(&sandbox, &of_all, &scenarios, (seed, records), json);
        let has_passed = reports.iter().all(|report| report.failure.is_none());
        let finding =
            runs.filter(|_| has_passed).and_then(|runs| explore(&sandbox, &of_all, &scenarios, (runs, seed), json));
        (reports, finding)
    };
    let (reports, finding) = tokio::task::spawn_blocking(work).await.context("a bug in the test runner")?;
    let mut seen = Seen::default();
    reports.iter().for_each(|report| seen.add(report.seen.clone()));
    let has_explored = reports.iter().all(|report| report.failure.is_none());
    let done = |runs: u64| finding.as_ref().map_or(runs, |finding| finding.run + 1);
    let explored = options.explore.filter(|_| has_explored).map(done);
    if let Some(folder) = &options.tapes {
        write_tapes(folder, &reports, &component)?;
    }
    if let Some(path) = &options.junit {
        std::fs::write(path, junit(&driver, &reports, explored, finding.as_deref()))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    let failed = reports.iter().filter(|report| report.failure.is_some()).count();
    match json {
        true => say!("{:#}", as_json(&driver, &reports, &seen, explored, finding.as_deref())),
        false => {
            if options.names.is_empty() && failed == 0 {
                say!("{}", coverage(&driver, &seen));
            }
            let passed = reports.len() - failed;
            say!("{}", summary(passed, failed, begin.elapsed()));
        }
    }
    Ok(if failed == 0 && finding.is_none() { Outcome::Done } else { Outcome::Failed })
}

/// All scenarios of a folder whose name or file has one of these texts in it.
pub(super) fn scenarios(folder: &Path, manifest: &Manifest, names: &[String]) -> Result<Vec<Scenario>> {
    let mut all = Vec::new();
    for file in scenario_files(folder)? {
        all.extend(Scenario::load(&file, manifest).map_err(anyhow::Error::msg)?);
    }
    let known: Vec<String> = all.iter().map(|scenario| scenario.name.clone()).collect();
    let is_meant = |scenario: &Scenario| {
        let file = scenario.file.to_string_lossy();
        names.is_empty() || names.iter().any(|name| scenario.name.contains(name) || file.contains(name))
    };
    all.retain(is_meant);
    if all.is_empty() {
        bail!("no scenario has {} in its name; there are {}", text::list(names), text::list(known));
    }
    Ok(all)
}

fn run_all(
    sandbox: &Sandbox,
    driver: &Arc<Driver>,
    scenarios: &[Scenario],
    (seed, records): (u64, bool),
    json: bool,
) -> Vec<Report> {
    let run = |scenario| {
        let report = scenario::run(sandbox, driver, scenario, seed, records);
        if !json {
            show(&report);
        }
        report
    };
    scenarios.iter().map(run).collect()
}

/// Writes a tape for each scenario, with the driver on it.
fn write_tapes(folder: &Path, reports: &[Report], component: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let component = std::fs::read(component).with_context(|| format!("reading {}", component.display()))?;
    for (number, report) in reports.iter().enumerate() {
        let Some(mut tape) = report.tape.clone() else { continue };
        tape.component = Some(component.clone());
        let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let name: String = report.name.chars().take(60).map(word).collect();
        let path = folder.join(format!("{:03}-{name}.tape", number + 1));
        std::fs::write(&path, tape.to_bytes()).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Tells now and then how far exploring is.
pub(super) fn tell_run(runs: u64) -> impl Fn(u64) {
    move |run| {
        if run.is_multiple_of((runs / 10).max(1)) && run < runs {
            tell!("explored {run} of {runs} runs");
        }
    }
}

/// Explores, and tells what is found.
fn explore(
    sandbox: &Sandbox,
    driver: &Arc<Driver>,
    scenarios: &[Scenario],
    (runs, seed): (u64, u64),
    json: bool,
) -> Option<Box<Finding>> {
    let begin = Instant::now();
    let finding = scenario::explore(sandbox, driver, scenarios, (runs, seed), tell_run(runs)).err();
    match &finding {
        _ if json => {}
        None => say!("explored {runs} runs with seed {seed} without a finding in {}", in_words(begin.elapsed())),
        Some(finding) => say!("{}", describe(finding)),
    }
    finding
}

/// A finding as a scenario that can be kept.
fn describe(finding: &Finding) -> String {
    let Finding { run, rule, found, given_of, steps, timeline } = finding;
    let mut lines = format!("FOUND   in run {run}, against the rule: {rule}\n          {found}");
    lines.push_str(&format!(
        "\n        as a scenario of {}, with what is given for {:?}:\n",
        given_of.0.display(),
        given_of.1
    ));
    lines.push_str(&format!("\n  found in run {run}:"));
    for line in steps.iter().flat_map(|step| step.lines()) {
        lines.push_str(&format!("\n    {line}"));
    }
    lines.push_str("\n\n        what had happened, newest last:");
    timeline.iter().for_each(|line| lines.push_str(&format!("\n          {line}")));
    lines
}

/// A line for a scenario, and what was wrong with it.
fn show(report: &Report) {
    let file = report.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Report { name, simulated, took, failure, .. } = report;
    let (simulated, took) = (in_words(*simulated), in_words(*took));
    let Some(failure) = failure else {
        return say!("ok      {file}: {name} ({simulated} in {took})");
    };
    let mut lines = format!("FAILED  {file}: {name}\n        {}:{}:", report.file.display(), failure.line);
    failure.problems.iter().for_each(|problem| lines.push_str(&format!("\n          {problem}")));
    if !failure.timeline.is_empty() {
        lines.push_str("\n        what had happened, newest last:");
        failure.timeline.iter().for_each(|line| lines.push_str(&format!("\n          {line}")));
    }
    say!("{lines}");
}

fn in_words(time: Duration) -> String {
    let rounded = match time.as_secs() {
        0 => Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or_default()),
        _ => Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or_default() / 100 * 100),
    };
    if rounded.is_zero() { "0ms".into() } else { humantime::format_duration(rounded).to_string() }
}

fn summary(passed: usize, failed: usize, took: Duration) -> String {
    let took = in_words(took);
    match failed {
        0 => format!("{} passed in {took}", text::count(passed, "scenario")),
        _ => format!("{} failed, {passed} passed in {took}", text::count(failed, "scenario")),
    }
}

/// How much of the manifest was seen.
fn coverage(driver: &Driver, seen: &Seen) -> String {
    let mut lines = String::from("seen of the manifest:");
    for (section, number, missing) in seen.coverage(&driver.manifest) {
        let _ = write!(lines, "\n  {section:<14}{} of {number}", number - missing.len());
        if !missing.is_empty() {
            let _ = write!(lines, ", not {}", text::list(&missing));
        }
    }
    lines
}

fn as_json(driver: &Driver, reports: &[Report], seen: &Seen, runs: Option<u64>, finding: Option<&Finding>) -> Json {
    let finding = finding.map(|finding| {
        json!({
            "run": finding.run, "rule": finding.rule.to_string(), "found": finding.found,
            "file": finding.given_of.0, "given_of": finding.given_of.1, "steps": finding.steps,
            "timeline": finding.timeline,
        })
    });
    let scenario = |report: &Report| {
        let failure = report
            .failure
            .as_ref()
            .map(|failure| json!({"line": failure.line, "problems": failure.problems, "timeline": failure.timeline}));
        json!({
            "file": report.file, "name": report.name, "passed": report.failure.is_none(), "failure": failure,
            "simulated_ms": millis(report.simulated), "took_ms": millis(report.took),
        })
    };
    let coverage = seen.coverage(&driver.manifest).into_iter().map(|(section, number, missing)| {
        (section.to_owned(), json!({"declared": number, "seen": number - missing.len(), "missing": missing}))
    });
    json!({
        "driver": driver.manifest.driver.name, "version": driver.manifest.driver.version,
        "digest": driver.digest.to_string(), "scenarios": reports.iter().map(scenario).collect::<Vec<_>>(),
        "coverage": coverage.collect::<serde_json::Map<_, _>>(),
        "explored": runs, "finding": finding,
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The results as test runners of CI systems read them.
fn junit(driver: &Driver, reports: &[Report], explored: Option<u64>, finding: Option<&Finding>) -> String {
    let failed = reports.iter().filter(|report| report.failure.is_some()).count() + usize::from(finding.is_some());
    let seconds = |time: Duration| format!("{:.3}", time.as_secs_f64());
    let total = reports.iter().map(|report| report.took).sum();
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n  <testsuite name=\"{}\" tests=\"{}\" \
         failures=\"{failed}\" time=\"{}\">\n",
        escaped(&driver.manifest.label()),
        reports.len() + usize::from(explored.is_some()),
        seconds(total)
    );
    for report in reports {
        let file = report.file.display().to_string();
        let _ = write!(
            xml,
            "    <testcase name=\"{}\" classname=\"{}\" file=\"{}\" time=\"{}\"",
            escaped(&report.name),
            escaped(&driver.manifest.driver.name),
            escaped(&file),
            seconds(report.took)
        );
        match &report.failure {
            None => xml.push_str("/>\n"),
            Some(failure) => {
                let first = failure.problems.first().cloned().unwrap_or_default();
                let mut all = failure.problems.clone();
                all.extend(failure.timeline.iter().cloned());
                let _ = write!(
                    xml,
                    ">\n      <failure message=\"{}\">{}:{}\n{}</failure>\n    </testcase>\n",
                    escaped(&first),
                    escaped(&file),
                    failure.line,
                    escaped(&all.join("\n"))
                );
            }
        }
    }
    if let Some(runs) = explored {
        let name = escaped(&driver.manifest.driver.name);
        let _ = write!(xml, "    <testcase name=\"exploring, {runs} runs\" classname=\"{name}\"");
        match finding {
            None => xml.push_str("/>\n"),
            Some(finding) => {
                let (rule, text) = (escaped(&finding.rule.to_string()), escaped(&describe(finding)));
                let _ = write!(xml, ">\n      <failure message=\"{rule}\">{text}</failure>\n    </testcase>\n");
            }
        }
    }
    xml.push_str("  </testsuite>\n</testsuites>\n");
    xml
}

/// A text in XML; what no XML may hold becomes a mark.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() => escaped.push('\u{FFFD}'),
            c => escaped.push(c),
        }
    }
    escaped
}
