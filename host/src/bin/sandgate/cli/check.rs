//! `sandgate check`: what a driver is, what it wants, whether it loads.

use std::path::Path;

use anyhow::Result;
use sandgate::manifest::Requested;
use serde_json::{Map, json};

use super::Outcome;
use crate::say::say;
use sandgate::sandbox::{Compiler, Sandbox};

/// Checks and compiles a component and prints what it is.
pub(super) async fn run(path: &Path, json: bool) -> Result<Outcome> {
    let sandbox = Sandbox::new(Compiler::InProcess, None)?;
    let driver = sandbox.load(path).await?;
    let (manifest, inspection) = (&driver.manifest, &driver.inspection);
    let requests = manifest.driver.requests.list();
    let own = inspection.imports.iter().filter(|name| name.starts_with("sandgate:")).cloned().collect::<Vec<_>>();
    let wasi = inspection.imports.len() - own.len();
    let unused = unused_requests(&own, &requests);
    if json {
        let text = json!({
            "name": manifest.driver.name, "version": manifest.driver.version, "digest": driver.digest.to_string(),
            "wit_version": inspection.wit_version, "imports": inspection.imports, "exports": inspection.exports,
            "requests": requests.iter().map(|kind| (kind.key.to_owned(), json!(kind.items))).collect::<Map<_, _>>(),
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
    for warning in unused {
        say!("warning    {warning}");
    }
    Ok(Outcome::Done)
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
