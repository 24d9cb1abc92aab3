//! Fast commits: struct ext4_fc_tl and what follows it (fs/ext4/fast_commit.h). They tell changes of inodes, extents and
//! names rather than of blocks; here they become values that the reader asks before it looks at the disk.

use super::Volume;
use super::dir::Directory;
use super::extents::Run;

/// What fast commits changed.
#[derive(Default)]
pub(super) struct FastCommits {}

/// One change.
pub(super) struct Change {}

impl FastCommits {
    pub(super) fn inode(&self, _ino: u32) -> Option<&[u8]> {
        None
    }
    pub(super) fn runs(&self, _ino: u32) -> Option<&[Run]> {
        None
    }
    pub(super) fn directory(&self, _ino: u32) -> Option<Directory> {
        None
    }
}

pub(super) fn scan(
    mut blocks: impl Iterator<Item = Vec<u8>>,
    sequence: u32,
    problems: &mut Vec<String>,
) -> Vec<Change> {
    let first = blocks.next().unwrap_or_default();
    if crate::bytes::le16(&first, 0) == Some(9) && crate::bytes::le32(&first, 8) == Some(sequence) {
        problems.push("the journal holds fast commits, whose changes are missing".to_owned());
    }
    Vec::new()
}

pub(super) fn replay(_volume: &mut Volume, _changes: &[Change], _problems: &mut Vec<String>) {}
