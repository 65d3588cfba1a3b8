//! What cargo says about packages, and the list of those that a driver is made of.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use sandgate::manifest::provenance::{DependencyKind, Package as Entry, Source, VersionInfo};
use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct Package {
    pub name: String,
    pub license: Option<String>,
    pub manifest_path: PathBuf,
    id: String,
    version: String,
    source: Option<String>,
    targets: Vec<Target>,
    dependencies: Vec<Declared>,
}

/// A dependency as it is declared.
#[derive(Deserialize)]
struct Declared {
    source: Option<String>,
    /// None for the default one.
    registry: Option<String>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
}

/// Who needs whom.
#[derive(Deserialize)]
pub(super) struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    /// None for what is part of the driver; `build` or `dev`.
    kind: Option<String>,
}

impl Package {
    fn is_macro(&self) -> bool {
        self.targets.iter().any(|target| target.kind.iter().any(|kind| kind == "proc-macro"))
    }

    /// Where it is from; the default registry is known by those who name none.
    fn source(&self, packages: &[Package]) -> Source {
        let is_default = |source: &str| {
            let declared = packages.iter().flat_map(|package| &package.dependencies);
            declared.filter(|it| it.registry.is_none()).any(|it| it.source.as_deref() == Some(source))
        };
        match self.source.as_deref() {
            None => Source::Local,
            Some(source) if source.starts_with("git+") => Source::Git,
            Some(source) if is_default(source) => Source::CratesIo,
            Some(_) => Source::Registry,
        }
    }
}

/// All that a package is made of, itself first; what only runs while it is built is marked.
pub(super) fn dependencies(root: &Package, packages: &[Package], resolve: &Resolve) -> VersionInfo {
    let by_id: HashMap<&str, &Package> = packages.iter().map(|package| (package.id.as_str(), package)).collect();
    let nodes: HashMap<&str, &Node> = resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let needed = |id: &str| -> Vec<(&str, DependencyKind)> {
        let needed = nodes.get(id).into_iter().flat_map(|node| &node.deps);
        let kind = |dependency: &Dependency| {
            let has = |kind: Option<&str>| dependency.dep_kinds.iter().any(|other| other.kind.as_deref() == kind);
            match (has(None), has(Some("build"))) {
                (true, _) => Some(DependencyKind::Runtime),
                (false, true) => Some(DependencyKind::Build),
                (false, false) => None,
            }
        };
        needed.filter_map(|dependency| Some((dependency.pkg.as_str(), kind(dependency)?))).collect()
    };
    let mut found: BTreeMap<&str, DependencyKind> = BTreeMap::new();
    let mut waiting = vec![(root.id.as_str(), DependencyKind::Runtime)];
    while let Some((id, kind)) = waiting.pop() {
        let Some(package) = by_id.get(id) else { continue };
        let kind = if package.is_macro() { DependencyKind::Build } else { kind };
        // What was found for the build may be part of the driver as well.
        if found.get(id).is_some_and(|known| *known == kind || *known == DependencyKind::Runtime) {
            continue;
        }
        found.insert(id, kind);
        let of_kind = |own: DependencyKind| if kind == DependencyKind::Build { DependencyKind::Build } else { own };
        waiting.extend(needed(id).into_iter().map(|(id, own)| (id, of_kind(own))));
    }
    // By name and version, not by where they are on this machine.
    let mut order: Vec<&Package> = found.keys().filter_map(|id| by_id.get(id).copied()).collect();
    order.sort_by(|one, other| {
        (&one.name, &one.version, &one.source).cmp(&(&other.name, &other.version, &other.source))
    });
    let place = |id: &str| order.iter().position(|package| package.id == id);
    let entries = order.iter().filter_map(|package| {
        let mut dependencies: Vec<usize> = needed(&package.id).into_iter().filter_map(|(id, _)| place(id)).collect();
        dependencies.sort_unstable();
        dependencies.dedup();
        Some(Entry {
            name: package.name.clone(),
            version: package.version.parse().ok()?,
            source: package.source(packages),
            kind: *found.get(package.id.as_str())?,
            dependencies,
            root: package.id == root.id,
        })
    });
    // 1: what macros need counts as needed for the build.
    VersionInfo { packages: entries.collect(), format: 1 }
}
