//! Opening, first half: the files, the newest snapshot, the footers.
//!
//! Absent on purpose: groups ([`super::tail`]) and what is written at start ([`super::end`]).

use bytes::Bytes;
use millstream_batch::limits::BLOCK_BYTES;

use super::mend::Mend;
use super::{BLOCK, Found, Recover, Stage, TRAILER_READ_BYTES};
use crate::api::Event;
use crate::footer::Trailer;
use crate::index::SealedFile;
use crate::io::{FileId, IoError, IoOp};
use crate::log::Log;
use crate::manifest::{MANIFEST_BYTES_MAX, Manifest, Part};

impl Log {
    pub(super) fn listed(&mut self, mut recover: Box<Recover>, files: Vec<(FileId, u64)>) {
        let mut files = files;
        files.sort_unstable();
        for (file, bytes) in files {
            if !file.is_possible() {
                let what = "the log numbers no file so: give it the name it had, or take it away";
                recover.damage(file, 0, what.to_owned());
                recover.report.read_only.get_or_insert_with(|| {
                    format!("{} is not a name that the log gives", file.file_name())
                });
                continue;
            }
            match file {
                FileId::Wal(n) => {
                    recover.files.insert(
                        n,
                        Found {
                            bytes,
                            trailer: None,
                            end: 0,
                            made_bytes: 0,
                            groups: None,
                        },
                    );
                }
                FileId::Spare(n) => {
                    recover.next_spare = recover.next_spare.max(n + 1);
                    if self.is_length(bytes) {
                        recover.spares.insert(n, bytes);
                    } else {
                        recover.mends.push_back(Mend::Remove(file));
                    }
                }
                FileId::Snapshot { .. } => recover.snapshot_files.push((file, bytes)),
                FileId::Manifest {
                    temporary: true, ..
                } => recover.mends.push_back(Mend::Remove(file)),
                FileId::Manifest {
                    begin,
                    temporary: false,
                } => {
                    recover.manifests.push(begin);
                    recover.snapshot_files.push((file, bytes));
                }
            }
        }
        self.next_manifest(recover);
    }

    pub(super) fn next_manifest(&mut self, mut recover: Box<Recover>) {
        recover.manifest = None;
        recover.parts.clear();
        while let Some(begin) = recover.manifests.pop() {
            let file = FileId::Manifest {
                begin,
                temporary: false,
            };
            let bytes = recover.snapshot_bytes(file).unwrap_or(0);
            if bytes == 0 || bytes > MANIFEST_BYTES_MAX {
                recover.damage(
                    file,
                    0,
                    "this snapshot manifest has an impossible length; it is not used".to_owned(),
                );
                recover.snapshot_lost = true;
                continue;
            }
            let len = (bytes as usize).next_multiple_of(BLOCK_BYTES);
            // Kept to know which one was asked for.
            recover.manifests.push(begin);
            return self.ask(recover, Stage::Manifest, IoOp::Read { file, at: 0, len });
        }
        if recover.snapshot_lost {
            recover.without_snapshot();
        }
        self.snapshot_found(recover);
    }

    pub(super) fn manifest_read(
        &mut self,
        mut recover: Box<Recover>,
        result: Result<Bytes, IoError>,
    ) {
        let begin = recover.manifests.pop().expect("one was asked for");
        let file = FileId::Manifest {
            begin,
            temporary: false,
        };
        match result.map(|bytes| Manifest::decode(&bytes)) {
            Ok(Some(manifest)) if manifest.begin.0 == begin => {
                recover.manifest = Some(manifest);
                self.next_part(recover);
            }
            Ok(_) => {
                recover.damage(
                    file,
                    0,
                    "this snapshot manifest is damaged; it is not used".to_owned(),
                );
                recover.snapshot_lost = true;
                self.next_manifest(recover);
            }
            Err(e) => {
                recover.damage(
                    file,
                    0,
                    format!("this snapshot manifest cannot be read ({e}); it is not used"),
                );
                recover.snapshot_lost = true;
                self.next_manifest(recover);
            }
        }
    }

    pub(super) fn next_part(&mut self, mut recover: Box<Recover>) {
        let manifest = recover.manifest.as_ref().expect("parts follow a manifest");
        let part = recover.parts.len();
        let Some(expected) = manifest.parts.get(part).copied() else {
            recover.snapshot_lost = false;
            return self.snapshot_found(recover);
        };
        let file = FileId::Snapshot {
            begin: manifest.begin.0,
            part: part as u32,
        };
        if recover.snapshot_bytes(file) != Some(expected.len) {
            recover.damage(
                file,
                0,
                format!(
                    "this snapshot archive is missing or not {} bytes long",
                    expected.len
                ),
            );
            recover.snapshot_lost = true;
            return self.next_manifest(recover);
        }
        if expected.len == 0 {
            recover.parts.push(Bytes::new());
            return self.next_part(recover);
        }
        let len = (expected.len as usize).next_multiple_of(BLOCK_BYTES);
        self.ask(recover, Stage::Parts, IoOp::Read { file, at: 0, len });
    }

    pub(super) fn part_read(&mut self, mut recover: Box<Recover>, result: Result<Bytes, IoError>) {
        let manifest = recover.manifest.as_ref().expect("parts follow a manifest");
        let (begin, part) = (manifest.begin, recover.parts.len());
        let expected = manifest.parts[part];
        let file = FileId::Snapshot {
            begin: begin.0,
            part: part as u32,
        };
        match result {
            Ok(bytes) if Part::of(begin, &bytes) == expected => {
                recover.report.bytes_read += bytes.len() as u64;
                recover.parts.push(bytes);
                self.next_part(recover);
            }
            Ok(_) => {
                recover.damage(
                    file,
                    0,
                    "this snapshot archive does not match its checksum".to_owned(),
                );
                recover.snapshot_lost = true;
                self.next_manifest(recover);
            }
            Err(e) => {
                recover.damage(
                    file,
                    0,
                    format!("this snapshot archive cannot be read: {e}"),
                );
                recover.snapshot_lost = true;
                self.next_manifest(recover);
            }
        }
    }

    /// Give the snapshot out and look at the files.
    pub(super) fn snapshot_found(&mut self, mut recover: Box<Recover>) {
        let begin = recover.begin();
        for bytes in std::mem::take(&mut recover.parts) {
            self.out.event(Event::SnapshotPart { begin, bytes });
        }
        recover.last_lsn = begin;
        if let Some(manifest) = &recover.manifest {
            self.snapshots.found(manifest);
            recover.term = manifest.term;
            recover.proved = manifest.durable_group;
            // What the manifest does not name any more was freed when it was written.
            for n in recover.files.keys() {
                if *n < manifest.next_file && !manifest.files.contains(n) {
                    recover.freed.insert(*n);
                }
            }
        }
        recover.trailers = recover
            .files
            .keys()
            .filter(|n| !recover.freed.contains(n))
            .copied()
            .collect();
        self.next_trailer(recover);
    }

    pub(super) fn next_trailer(&mut self, mut recover: Box<Recover>) {
        while let Some(file) = recover.trailers.pop_front() {
            let bytes = recover.files[&file].bytes / BLOCK * BLOCK;
            if bytes < 2 * BLOCK {
                continue;
            }
            let at = bytes - TRAILER_READ_BYTES.min(bytes);
            let op = IoOp::Read {
                file: FileId::Wal(file),
                at,
                len: (bytes - at) as usize,
            };
            return self.ask(recover, Stage::Trailer { file, at }, op);
        }
        self.plan_scans(recover);
    }

    pub(super) fn trailer_read(
        &mut self,
        mut recover: Box<Recover>,
        file: u64,
        at: u64,
        result: Result<Bytes, IoError>,
    ) {
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(e) => {
                recover.damage(
                    FileId::Wal(file),
                    at,
                    format!("the end of this file cannot be read: {e}"),
                );
                return self.next_trailer(recover);
            }
        };
        recover.report.bytes_read += bytes.len() as u64;
        let block_at = bytes.len().saturating_sub(BLOCK_BYTES);
        let block = &bytes[block_at..];
        match Trailer::decode(block, file, recover.files[&file].bytes) {
            Some(trailer) => {
                let start = trailer.directory_at.checked_sub(at).map(|s| s as usize);
                let end = start.map(|s| s + trailer.directory_bytes() as usize);
                if let (Some(start), Some(end)) = (start, end)
                    && let Some(directory) = bytes.get(start..end)
                {
                    let directory = directory.to_vec();
                    self.directory_known(&mut recover, trailer, &directory);
                    return self.next_trailer(recover);
                }
                let at = trailer.directory_at / BLOCK * BLOCK;
                let end =
                    (trailer.directory_at + trailer.directory_bytes()).next_multiple_of(BLOCK);
                let op = IoOp::Read {
                    file: FileId::Wal(file),
                    at,
                    len: (end - at) as usize,
                };
                self.ask(recover, Stage::Directory { trailer, at }, op);
            }
            None => {
                if Trailer::claims(block, file) {
                    recover.footers.push((file, at + block_at as u64));
                }
                self.next_trailer(recover);
            }
        }
    }

    pub(super) fn directory_read(
        &mut self,
        mut recover: Box<Recover>,
        trailer: Trailer,
        at: u64,
        result: Result<Bytes, IoError>,
    ) {
        let bytes = result.unwrap_or_default();
        recover.report.bytes_read += bytes.len() as u64;
        let start = (trailer.directory_at - at) as usize;
        let directory = bytes
            .get(start..start + trailer.directory_bytes() as usize)
            .unwrap_or_default();
        self.directory_known(&mut recover, trailer, directory);
        self.next_trailer(recover);
    }

    pub(super) fn directory_known(
        &mut self,
        recover: &mut Recover,
        trailer: Trailer,
        bytes: &[u8],
    ) {
        let Some(directory) = trailer.directory(bytes) else {
            recover.footers.push((trailer.file, trailer.directory_at));
            return;
        };
        let found = recover
            .files
            .get_mut(&trailer.file)
            .expect("its end was read");
        found.trailer = Some(trailer);
        recover.proved = recover.proved.max(trailer.last_group);
        self.index.seal(SealedFile {
            number: trailer.file,
            bytes: trailer.file_bytes,
            incarnation: trailer.incarnation,
            last_lsn: trailer.last_lsn,
            last_group: trailer.last_group,
            directory,
            holding: 0,
        });
    }

    /// Which files must be walked: those without a footer, and those with entries after the
    /// snapshot.
    pub(super) fn plan_scans(&mut self, mut recover: Box<Recover>) {
        let begin = recover.begin();
        let group = recover.manifest.as_ref().map_or(0, |m| m.durable_group);
        // Footers are written in order: the last one begun may be torn, the others were whole.
        let last = recover
            .files
            .iter()
            .rev()
            .find(|(_, f)| f.trailer.is_some());
        let last = last.map_or(0, |(n, _)| *n);
        for (file, at) in std::mem::take(&mut recover.footers) {
            if file < last {
                let what = "the footer is damaged; the index is made anew from the file";
                recover.damage(FileId::Wal(file), at, what.to_owned());
            }
        }
        for (n, found) in &mut recover.files {
            if recover.freed.contains(n) {
                continue;
            }
            match &found.trailer {
                Some(t) if t.last_lsn <= begin && t.last_group <= group => {
                    found.groups = Some((t.first_group, t.last_group));
                }
                _ => recover.scans.push_back(*n),
            }
        }
        self.next_scan(recover);
    }
}
