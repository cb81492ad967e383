//! Breaking things on purpose: what the crash tests do to a data directory.

pub mod past;

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// The WAL files of one shard, oldest first.
pub fn wal_files(data: &Path, shard: u16) -> Result<Vec<PathBuf>> {
    let folder = data.join(format!("shard-{shard}"));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with("wal-") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Flip one bit of the first place where `needle` stands in the file. The place.
pub fn flip_inside(file: &Path, needle: &[u8]) -> Result<u64> {
    let mut bytes = Vec::new();
    File::open(file)?.read_to_end(&mut bytes)?;
    let at = bytes
        .windows(needle.len())
        .position(|w| w == needle)
        .context("the file holds these bytes")?;
    let mut file = OpenOptions::new().write(true).open(file)?;
    file.seek(SeekFrom::Start(at as u64))?;
    file.write_all(&[bytes[at] ^ 1])?;
    file.sync_all()?;
    Ok(at as u64)
}

/// Cut a file to this length.
pub fn truncate(file: &Path, len: u64) -> Result<()> {
    let file = OpenOptions::new().write(true).open(file)?;
    ensure!(file.metadata()?.len() > len, "the file is shorter already");
    file.set_len(len)?;
    file.sync_all()?;
    Ok(())
}

/// Make zeros of the block where `needle` first stands: a small write begins there, and is no longer to be
/// recognised.
pub fn zero_around(file: &Path, needle: &[u8]) -> Result<()> {
    const BLOCK: usize = 4 << 10;
    let bytes = std::fs::read(file)?;
    let at = bytes
        .windows(needle.len())
        .position(|w| w == needle)
        .context("the file holds these bytes")?;
    let block = at / BLOCK * BLOCK;
    let mut file = OpenOptions::new().write(true).open(file)?;
    file.seek(SeekFrom::Start(block as u64))?;
    file.write_all(&[0; BLOCK])?;
    file.sync_all()?;
    Ok(())
}
