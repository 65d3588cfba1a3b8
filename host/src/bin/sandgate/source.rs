//! A driver's folder: what it is made of, and its scenarios.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sandgate::blueprint::is_blueprint;
use sandgate::text;

use crate::toolchain;

/// How often it is looked for new files.
pub(crate) const LOOK: Duration = Duration::from_secs(2);

/// See the module documentation.
pub(crate) struct Source {
    /// The driver's folder, or a component.
    path: PathBuf,
    /// Where the scenarios are.
    pub(crate) tests: PathBuf,
}

impl Source {
    /// A driver's folder or a component, with its scenarios beside it or elsewhere.
    pub(crate) fn new(path: &Path, tests: Option<&Path>) -> Source {
        let folder = folder_of(path);
        let tests = tests.map_or_else(|| folder.join("tests"), Path::to_owned);
        Source { path: path.to_owned(), tests }
    }

    /// The folder in which the driver is.
    pub(crate) fn folder(&self) -> &Path {
        folder_of(&self.path)
    }

    /// Whether there is something to build.
    pub(crate) fn is_built(&self) -> bool {
        self.path.join("Cargo.toml").exists() || toolchain::is_of_files(&self.path) || is_blueprint(&self.path)
    }

    /// The files that the driver and its scenarios are made of.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let is_built = self.is_built();
        let is_source = |file: &Path| {
            let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let is_component = !is_built && name.ends_with(".wasm");
            let ends = [".rs", ".py", ".js", ".ts", ".lua", ".test.yml"];
            let names = ["manifest.yml", "sandgate.yml", "Cargo.toml"];
            is_component || names.contains(&name.as_str()) || ends.iter().any(|end| name.ends_with(end))
        };
        let (mut files, mut folders) = (Vec::new(), vec![self.tests.clone()]);
        match self.path.is_dir() {
            true => folders.push(self.path.clone()),
            false => files.push(self.path.clone()),
        }
        while let Some(folder) = folders.pop() {
            for path in std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())) {
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                let is_output = ["target", "vendor", "node_modules"].contains(&name.as_str()) || name.starts_with('.');
                match path.is_dir() {
                    true if !is_output => folders.push(path),
                    false if is_source(&path) => files.push(path),
                    _ => {}
                }
            }
        }
        files.sort_unstable();
        files.dedup();
        files
    }

    /// The component, built now if there is something to build.
    pub(crate) fn component(&self) -> Result<PathBuf> {
        let path = &self.path;
        if !path.is_dir() {
            return Ok(path.clone());
        }
        if self.is_built() {
            let name = toolchain::in_place(path)?;
            return Ok(path.join(format!("{name}.wasm")));
        }
        let entries = std::fs::read_dir(path).with_context(|| path.display().to_string())?;
        let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        found.retain(|file| file.extension().is_some_and(|extension| extension == "wasm"));
        found.sort_unstable();
        match found.as_slice() {
            [file] => Ok(file.clone()),
            [] => bail!("{}: expected a driver's source or a component", path.display()),
            several => {
                let names = text::list(several.iter().map(|file| file.display().to_string()));
                bail!("{}: expected one component, found {names}; name the one that is meant", path.display())
            }
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.is_dir() {
        true => path,
        false => path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")),
    }
}

/// The files with scenarios in a folder; at least one.
pub(crate) fn scenario_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)
        .with_context(|| format!("{}: expected a folder with files such as begin.test.yml", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".test.yml")));
    files.sort_unstable();
    if files.is_empty() {
        bail!("{}: expected files such as begin.test.yml, found none", folder.display());
    }
    Ok(files)
}
