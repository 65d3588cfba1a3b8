//! `sandgate check`: what a driver is, what it wants, whether it loads; and how
//! good it is.

mod scale;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use sandgate::manifest::Requested;
use sandgate::manifest::provenance::Provenance;
use serde_json::{Map, json};

use super::Outcome;
use crate::say::say;
use crate::source::Source;
use sandgate::sandbox::{Compiler, Driver, Sandbox};
use scale::Tier;

/// What to check.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The driver's folder, which is built first, or a component.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Say how good it is, bronze, silver or gold, with the evidence for each rule. It runs the
    /// scenarios, explores, and builds once more in another place.
    #[arg(long)]
    scale: bool,
    /// Fail when it is not so good.
    #[arg(long, value_name = "TIER", requires = "scale")]
    at_least: Option<Tier>,
    /// In how many runs to explore.
    #[arg(long, requires = "scale", default_value_t = 1000)]
    runs: u64,
    /// Where chance begins.
    #[arg(long, requires = "scale", default_value_t = 0)]
    seed: u64,
    /// Where the `*.test.yml` files are; default is `tests` beside the driver.
    #[arg(long, requires = "scale")]
    tests: Option<PathBuf>,
}

/// Checks a driver and prints what it is, or how good.
pub(super) async fn run(options: &Options, json: bool) -> Result<Outcome> {
    if options.scale {
        return scale::run(options, json).await;
    }
    let source = Source::new(&options.path, None);
    let component = tokio::task::spawn_blocking(move || source.component()).await.context("building")??;
    describe(&component, json).await
}

/// Compiles a component and prints what it is.
async fn describe(path: &Path, json: bool) -> Result<Outcome> {
    let sandbox = Sandbox::new(Compiler::InProcess, None)?;
    let driver = sandbox.load(path).await?;
    let (manifest, inspection) = (&driver.manifest, &driver.inspection);
    let requests = manifest.driver.requests.list();
    let own = own_imports(&driver);
    let wasi = inspection.imports.len() - own.len();
    let unused = unused_requests_of(&driver);
    let provenance = Provenance::read(&std::fs::read(path).with_context(|| path.display().to_string())?)?;
    let licence = provenance.licence.as_deref().or(manifest.blueprint.license.as_deref());
    let packages = provenance.dependencies.as_ref().map(|list| list.packages.len().saturating_sub(1));
    if json {
        let text = json!({
            "name": manifest.driver.name, "version": manifest.driver.version, "digest": driver.digest.to_string(),
            "wit_version": inspection.wit_version, "imports": inspection.imports, "exports": inspection.exports,
            "requests": requests.iter().map(|kind| (kind.key.to_owned(), json!(kind.items))).collect::<Map<_, _>>(),
            "licence": licence, "dependencies": provenance.dependencies.map(|list| list.packages),
            "warnings": unused, "compile_ms": driver.compile_time.as_millis(),
        });
        say!("{text:#}");
        return Ok(Outcome::Done);
    }
    let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    say!("driver     {} {}", manifest.driver.name, manifest.driver.version);
    say!("device     {}", manifest.blueprint.display_name);
    say!("digest     {}", driver.digest);
    say!("size       {} KiB, compiled in {} ms", size / 1024, driver.compile_time.as_millis());
    say!("contract   sandgate:driver {}", inspection.wit_version);
    say!("imports    {}, and {wasi} of WASI", list(&own));
    for (number, kind) in requests.iter().enumerate() {
        let label = if number == 0 { "requests" } else { "" };
        say!("{label:<10} {}: {}", kind.title, list(&kind.items));
    }
    say!(
        "declares   {} telemetry, {} properties, {} alerts, {} commands, {} configuration buckets",
        manifest.blueprint.telemetry.len(),
        manifest.blueprint.properties.len(),
        manifest.blueprint.alerts.len(),
        manifest.blueprint.commands.len(),
        manifest.blueprint.configuration.len(),
    );
    say!(
        "made of    {}; licence: {}",
        packages.map_or("what is not known".into(), |number| sandgate::text::count(number, "package")),
        licence.unwrap_or("not said")
    );
    for warning in unused {
        say!("warning    {warning}");
    }
    Ok(Outcome::Done)
}

/// Imports of the contract.
fn own_imports(driver: &Driver) -> Vec<String> {
    driver.inspection.imports.iter().filter(|name| name.starts_with("sandgate:")).cloned().collect()
}

fn unused_requests_of(driver: &Driver) -> Vec<String> {
    unused_requests(&own_imports(driver), &driver.manifest.driver.requests.list())
}

/// Requests that the component cannot make use of, and imports without a
/// request, which will always be refused. Scripting runtimes import everything.
fn unused_requests(imports: &[String], requests: &[Requested]) -> Vec<String> {
    let imported = |name: &str| imports.iter().any(|import| import.starts_with(&format!("sandgate:driver/{name}@")));
    let check = |Requested { import, is_shared, items, .. }: &Requested| match (imported(import), items.is_empty()) {
        (true, true) => Some(format!("it imports {import} but the manifest requests none: calls will be refused")),
        (false, false) if !is_shared => Some(format!("the manifest requests {import} but it does not import it")),
        _ => None,
    };
    requests.iter().filter_map(check).collect()
}
