//! What the rules look at: the component, its scenarios run, exploring, and a
//! second build elsewhere.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use sandgate::blueprint::{Blueprint, is_blueprint};
use sandgate::manifest::provenance::Provenance;
use sandgate::sandbox::{Compiler, Digest, Driver, Sandbox};
use sandgate::scenario::{self, Finding, Report, Rule, Seen};

use super::super::{Options, unused_requests_of};
use crate::cli::test::{scenarios, tell_run};
use crate::say::tell;
use crate::source::Source;
use crate::toolchain;

/// See the module documentation.
pub(super) struct Evidence {
    pub driver: Arc<Driver>,
    /// What of requests and imports does not fit.
    pub warnings: Vec<String>,
    pub provenance: Provenance,
    /// The scenarios that ran, or why there are none.
    pub reports: Result<Vec<Report>, String>,
    /// What they have seen, all together.
    pub seen: Seen,
    /// In how many runs it was explored; 0 when scenarios fail.
    pub explored: u64,
    pub finding: Option<Box<Finding>>,
    /// The text of the README, if there is one.
    pub readme: Option<String>,
    /// What a second build elsewhere gave, or why there was none.
    pub rebuilt: Result<Digest, String>,
}

impl Evidence {
    /// Builds, runs, explores and builds again.
    pub(super) async fn gather(options: &Options) -> Result<Evidence> {
        let source = Source::new(&options.path, options.tests.as_deref());
        let component = source.component()?;
        let component = component.canonicalize().with_context(|| component.display().to_string())?;
        let bytes = std::fs::read(&component).with_context(|| format!("reading {}", component.display()))?;
        let provenance = Provenance::read(&bytes)?;
        let sandbox = Sandbox::new(Compiler::InProcess, toolchain::cache().as_deref())?;
        let driver = Arc::new(sandbox.load(&component).await?);
        let readme = std::fs::read_to_string(source.folder().join("README.md")).ok();
        let (runs, seed) = (options.runs, options.seed);
        let work = move || {
            let scenarios = scenarios(&source.tests, &driver.manifest, &[]).map_err(|error| format!("{error:#}"));
            let reports = scenarios.as_ref().map_err(String::clone).map(|scenarios| {
                tell!("running {}", sandgate::text::count(scenarios.len(), "scenario"));
                let run = |scenario| scenario::run(&sandbox, &driver, scenario, seed, false);
                scenarios.iter().map(run).collect::<Vec<Report>>()
            });
            let has_passed = |reports: &Vec<Report>| reports.iter().all(|report| report.failure.is_none());
            let (explored, finding) = match &scenarios {
                Ok(scenarios) if reports.as_ref().is_ok_and(has_passed) => {
                    let finding = scenario::explore(&sandbox, &driver, scenarios, (runs, seed), tell_run(runs)).err();
                    (finding.as_ref().map_or(runs, |finding| finding.run + 1), finding)
                }
                _ => (0, None),
            };
            let mut seen = Seen::default();
            reports.iter().flatten().for_each(|report| seen.add(report.seen.clone()));
            let (warnings, rebuilt) = (unused_requests_of(&driver), rebuild(&source, &component));
            let rebuilt = rebuilt.map_err(|error| format!("{error:#}"));
            Evidence { driver, warnings, provenance, reports, seen, explored, finding, readme, rebuilt }
        };
        tokio::task::spawn_blocking(work).await.context("a bug in the check")
    }

    /// Under which licence it is: by the component, or by its manifest.
    pub(super) fn licence(&self) -> Option<&str> {
        self.provenance.licence.as_deref().or(self.driver.manifest.blueprint.license.as_deref())
    }

    /// What exploring has found against one of these rules.
    pub(super) fn found_against(&self, rules: &[Rule]) -> Option<&Finding> {
        self.finding.as_deref().filter(|finding| rules.contains(&finding.rule))
    }
}

/// Builds the driver once more, from a copy in another place and from nothing.
fn rebuild(source: &Source, component: &Path) -> Result<Digest> {
    if !source.is_built() {
        bail!("there is no source here that `sandgate build` builds");
    }
    if is_blueprint(source.folder()) {
        return Ok(Digest::of(&Blueprint::of_folder(source.folder())?.component()?));
    }
    tell!("building again, in another place");
    let place = tempfile::tempdir().context("making a folder for the second build")?;
    let is_of_files = toolchain::is_of_files(source.folder());
    let root = if is_of_files { source.folder().to_owned() } else { toolchain::workspace(source.folder())? };
    let root = root.canonicalize().with_context(|| format!("finding {}", root.display()))?;
    let folder = source.folder().canonicalize().with_context(|| format!("finding {}", source.folder().display()))?;
    let within = folder.strip_prefix(&root).context("expected the driver within its workspace")?;
    let copy = place.path().join("copy");
    // Without what tools have made.
    copy_source(&root, &copy, &[root.join("target"), root.join(".git"), component.to_owned()])?;
    let built = match is_of_files {
        true => toolchain::of_folder(&copy)?,
        false => toolchain::rust_into(&copy.join(within), Some(&copy.join("target")))?,
    };
    Ok(Digest::of(&built.bytes))
}

/// Copies a folder with its links, but for these, and for what is no file.
fn copy_source(from: &Path, to: &Path, without: &[PathBuf]) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    let entries = std::fs::read_dir(from).with_context(|| format!("reading {}", from.display()))?;
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())).collect::<Vec<PathBuf>>() {
        let (Some(name), copying) = (path.file_name(), || format!("copying {}", path.display())) else { continue };
        if without.contains(&path) || name == ".sandgate-dev" {
            continue;
        }
        let kind = path.symlink_metadata().with_context(copying)?.file_type();
        let copy = to.join(name);
        if kind.is_dir() {
            copy_source(&path, &copy, without)?;
        } else if kind.is_symlink() {
            std::fs::read_link(&path).and_then(|place| symlink(place, &copy)).with_context(copying)?;
        } else if kind.is_file() {
            std::fs::copy(&path, &copy).with_context(copying)?;
        }
    }
    Ok(())
}
