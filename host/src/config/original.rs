//! Where things stand in a configuration file, for errors about it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

/// The text of a configuration file, and the file's name. All are equal: two
/// configurations that say the same are.
#[derive(Clone, Default)]
pub struct Original {
    name: Arc<str>,
    text: Arc<str>,
}

impl Original {
    pub(super) fn new(path: &Path, text: &str) -> Original {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        Original { name: name.into(), text: text.into() }
    }

    /// `file:line:column` of the deepest part of a key path that is there.
    pub fn place(&self, keys: &[&str]) -> String {
        let offset = offset_of(&self.text, keys);
        format!("{}:{}", self.name, line_and_column(&self.text, offset))
    }
}

impl PartialEq for Original {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// The text may hold secrets.
impl fmt::Debug for Original {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// `line:column` of a byte, both from 1.
pub(super) fn line_and_column(text: &str, offset: usize) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
    format!("{line}:{column}")
}

/// Finds where the deepest existing part of a key path stands.
pub(super) fn offset_of<K: AsRef<str>>(text: &str, keys: &[K]) -> usize {
    let Ok(document) = DeTable::parse(text) else { return 0 };
    let mut table = Some(document.get_ref());
    let mut offset = 0;
    for key in keys {
        let entry = table.and_then(|table| table.iter().find(|(name, _)| name.get_ref() == key.as_ref()));
        let Some((name, value)) = entry else { break };
        offset = name.span().start;
        table = match value.get_ref() {
            DeValue::Table(table) => Some(table),
            _ => None,
        };
    }
    offset
}

/// The key path of the value at a byte; empty when there is none.
pub(super) fn keys_at(text: &str, offset: usize) -> String {
    fn find(table: &DeTable<'_>, offset: usize, path: &str) -> Option<String> {
        for (name, value) in table {
            let path = if path.is_empty() { name.get_ref().to_string() } else { format!("{path}.{}", name.get_ref()) };
            if let DeValue::Table(inner) = value.get_ref()
                && let Some(found) = find(inner, offset, &path)
            {
                return Some(found);
            }
            if name.span().contains(&offset) || value.span().contains(&offset) {
                return Some(path);
            }
        }
        None
    }
    DeTable::parse(text).ok().and_then(|document| find(document.get_ref(), offset, "")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[devices.a]\ndriver = \"x\"\ngrants.tcp = [\"a:1\"]\n\n[devices.a.configuration.b]\nc = 1\n";

    #[test]
    fn a_key_path_has_a_place_and_a_place_a_key_path() {
        let original = Original::new(Path::new("/etc/site/gateway.toml"), TEXT);
        for (keys, place) in [
            (&["devices", "a", "grants", "tcp"][..], "gateway.toml:3:8"),
            (&["devices", "a", "configuration", "b", "c"], "gateway.toml:6:1"),
            (&["devices", "a", "configuration", "b", "d"], "gateway.toml:5:26"),
            (&["devices", "z"], "gateway.toml:1:2"),
            (&["buses"], "gateway.toml:1:1"),
        ] {
            assert_eq!(original.place(keys), place, "{keys:?}");
        }
        for (at, keys) in [("\"a:1\"", "devices.a.grants.tcp"), ("c = 1", "devices.a.configuration.b.c")] {
            assert_eq!(keys_at(TEXT, TEXT.find(at).unwrap()), keys);
        }
    }
}
