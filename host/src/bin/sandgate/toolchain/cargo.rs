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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_list_has_what_the_driver_needs_and_marks_what_only_its_build_does() {
        let registry = "registry+somewhere";
        let package = |id: &str, kind: &str, source: Option<&str>| {
            json!({"name": id, "version": "1.0.0", "id": id, "license": null, "manifest_path": "/x", "source": source,
                "targets": [{"kind": [kind]}], "dependencies": [{"source": registry, "registry": null}]})
        };
        let packages = [
            package("driver", "cdylib", None),
            package("used", "lib", Some(registry)),
            package("macro", "proc-macro", Some(registry)),
            package("of-macro", "lib", Some("git+somewhere")),
            package("of-both", "lib", Some("registry+elsewhere")),
            package("of-tests", "lib", Some(registry)),
        ];
        let packages: Vec<Package> = serde_json::from_value(json!(packages)).unwrap();
        let needs = |id: &str, kind: Option<&str>| json!({"pkg": id, "dep_kinds": [{"kind": kind}]});
        let resolve = serde_json::from_value(json!({"nodes": [
            {"id": "driver", "deps": [needs("used", None), needs("macro", None), needs("of-tests", Some("dev"))]},
            {"id": "used", "deps": [needs("of-both", None)]},
            {"id": "macro", "deps": [needs("of-macro", None), needs("of-both", None)]},
        ]}))
        .unwrap();
        let list = dependencies(&packages[0], &packages, &resolve);
        let found: Vec<_> = list.packages.iter().map(|it| (it.name.as_str(), it.kind, &it.source, it.root)).collect();
        let (runtime, build) = (DependencyKind::Runtime, DependencyKind::Build);
        let expected = [
            ("driver", runtime, &Source::Local, true),
            ("macro", build, &Source::CratesIo, false),
            ("of-both", runtime, &Source::Registry, false),
            ("of-macro", build, &Source::Git, false),
            ("used", runtime, &Source::CratesIo, false),
        ];
        assert_eq!(found, expected);
        assert_eq!(list.packages[0].dependencies, [1, 4]);
    }
}
