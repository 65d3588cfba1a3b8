//! Takes over what older versions of this program stored: one redb database
//! for all devices.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use anyhow::{Result, anyhow};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::Storage;
use crate::files;
use crate::message::DeviceId;

const VALUES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("values");

/// The new place took nothing: the old one is not to blame.
#[derive(Debug, thiserror::Error)]
#[error("taking over stored values: {0:#}")]
struct NotWritten(anyhow::Error);

/// Copies all values of a database, if there is one, and sets it aside.
pub(super) fn take_over(state: &Path, storage: &Storage) {
    let path = state.join("storage.redb");
    if path.symlink_metadata().is_err() {
        return;
    }
    // The library panics at some damages.
    let copied = catch_unwind(AssertUnwindSafe(|| copy(&path, storage))).unwrap_or_else(|_| Err(anyhow!("damaged")));
    if let Err(error) = &copied
        && error.is::<NotWritten>()
    {
        return tracing::error!("{}: {error:#}; it is tried again at the next start", path.display());
    }
    let aside = files::set_aside(&path);
    match (copied, aside) {
        (Ok(values), Ok(_)) => tracing::info!("took over {values} stored values of an older version"),
        (Err(error), Ok(aside)) => {
            tracing::error!("{}: {error:#}; set aside as {}", path.display(), aside.display());
        }
        (_, Err(error)) => tracing::error!("setting {} aside: {error}", path.display()),
    }
}

fn copy(path: &Path, storage: &Storage) -> Result<usize> {
    // A pipe in its place would be waited for.
    drop(files::open(path)?);
    let table = Database::open(path)?.begin_read()?.open_table(VALUES)?;
    let mut values = 0;
    for entry in table.iter()? {
        let (name, value) = entry?;
        let (device, key) = name.value();
        if crate::message::is_valid_device_id(device) {
            let device = storage.device(&DeviceId::new(device));
            device.set(key, value.value().to_vec(), usize::MAX).map_err(NotWritten)?;
            values += 1;
        }
    }
    Ok(values)
}
