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
    for folder in ["host", "sdk/rust/src", "plugins", "tests"] {
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

/// The modules of the host in the order of `lib.rs`, each with its floor: those
/// of one paragraph stand beside each other.
fn floors() -> Vec<(String, usize)> {
    let lib = std::fs::read_to_string(root().join("host/src/lib.rs")).unwrap();
    let mut floors = Vec::new();
    for (floor, paragraph) in lib.split("\n\n").enumerate() {
        let modules = paragraph.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
        floors.extend(modules.map(|module| (module.to_owned(), floor)));
    }
    floors
}

/// What a source file imports of its own crate, its unit tests left out.
fn imports(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut found = Vec::new();
    for line in code {
        for (place, _) in line.match_indices("crate::") {
            let path = &line[place + "crate::".len()..];
            let name: String = path.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            let is_whole_word = !line[..place].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
            assert!(!is_whole_word || !path.starts_with('{'), "one `use` for each module, so that it is found: {line}");
            if is_whole_word && !name.is_empty() {
                found.push(name);
            }
        }
    }
    found
}

#[test]
fn no_module_uses_one_of_its_own_floor_or_above() {
    let (floors, folder) = (floors(), root().join("host/src"));
    let floor_of = |module: &str| floors.iter().find(|(name, _)| name == module).map(|(_, floor)| *floor);
    let mut sources = Vec::new();
    files(&folder, ".rs", &mut sources);
    assert!(floors.len() > 30 && sources.len() > 100);
    let mut wrong = Vec::new();
    for path in sources {
        let place = path.strip_prefix(&folder).unwrap();
        let module = place.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let Some(own) = floor_of(module) else { continue };
        if path.ends_with("tests.rs") {
            continue;
        }
        for used in imports(&std::fs::read_to_string(&path).unwrap()) {
            if used != module && floor_of(&used).is_some_and(|floor| floor >= own) {
                wrong.push(format!("{}: `{module}` uses `{used}`, which is not below it", place.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_gateway_does_not_use_the_stand_ins() {
    let folder = root().join("host/src");
    let mut sources = Vec::new();
    files(&folder, ".rs", &mut sources);
    for path in sources.iter().filter(|path| !path.starts_with(folder.join("bin"))) {
        let source = std::fs::read_to_string(path).unwrap();
        let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        assert!(!code.contains("sandgate_standin"), "{}", path.display());
    }
}
