//! Rules about the source that no compiler checks.

use std::path::{Path, PathBuf};

use crate::harness::root;

fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            files(&path, ending, found);
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
}

#[test]
fn every_source_file_says_first_what_it_is() {
    let mut sources = Vec::new();
    for folder in ["host/src", "sdk/rust/src", "plugins", "tests"] {
        files(&root().join(folder), ".rs", &mut sources);
    }
    assert!(sources.len() > 50);
    for path in sources {
        let text = std::fs::read_to_string(&path).unwrap();
        let good =
            text.starts_with("//! ") || text.starts_with("#![doc = include_str!") || text.starts_with("// The work");
        assert!(good, "{} has no //! line at its top", path.display());
        assert_ne!(path.file_name().unwrap(), "mod.rs");
    }
}

#[test]
fn every_fixture_has_a_test() {
    let mut tests = Vec::new();
    files(&root().join("tests/e2e"), ".rs", &mut tests);
    files(&root().join("host/benches"), ".rs", &mut tests);
    let tests: String = tests.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    for entry in std::fs::read_dir(root().join("tests/fixtures")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() && name != "src" {
            assert!(tests.contains(&format!("\"{name}\"")), "no test uses the fixture {name}");
        }
    }
}

#[test]
fn every_item_of_the_contract_is_documented() {
    let mut contract = Vec::new();
    files(&root().join("wit"), ".wit", &mut contract);
    for path in contract {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (number, line) in lines.iter().enumerate() {
            let is_item = ["record ", "variant ", "enum ", "resource ", "interface ", "world ", "type "]
                .iter()
                .any(|word| line.starts_with(word))
                || line.contains(": func(")
                || line.contains(": static func(");
            let before = lines[..number].iter().rev().find(|line| !line.starts_with("@since")).unwrap_or(&"");
            assert!(!is_item || before.starts_with("///"), "{}:{}: {line}", path.display(), number + 1);
        }
    }
}
