//! The proof: every file of the image against every file of the machine.

use crate::diff::{Change, Known, Side, compare};
use crate::error::Result;
use crate::path::GuestPath;
use crate::plan::note::Note;
use crate::plan::{Rewritten, image_tree};
use crate::progress::Progress;
use crate::read_at::ReadAt;
use crate::source::Source;
use crate::tree::{FileId, Problem, Tree};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What [`verify`] found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Paths that were compared in every field.
    pub compared: usize,
    /// Bytes of file contents that were compared.
    pub bytes: u64,
    /// Paths of the machine that the plan leaves out, by rule: the topmost paths.
    pub left_out: Vec<(GuestPath, String)>,
    /// Files whose content the plan replaces; their new content was compared.
    pub rewritten: Vec<GuestPath>,
    /// Extended attributes that no layer can carry.
    pub unsaid: Vec<(GuestPath, String)>,
    /// What differs and is not named by the plan. [`Change::Added`]: the image has it and must not.
    pub differences: Vec<(GuestPath, Change)>,
    /// Files that could not be read for the comparison, and why.
    pub unread: Vec<(GuestPath, String)>,
    /// Places where the machine itself could not be read, so that nothing can be said of them.
    pub problems: Vec<Problem>,
}

impl Report {
    /// True if the image shows the machine, but for what the plan names.
    pub fn is_clean(&self) -> bool {
        self.differences.is_empty() && self.unread.is_empty()
    }
}

/// A source with another tree and some other contents.
struct View<'a> {
    inner: &'a dyn Source,
    tree: Tree,
    contents: HashMap<FileId, Vec<u8>>,
}

impl Source for View<'_> {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn tree(&self) -> &Tree {
        &self.tree
    }
    fn open(&self, id: FileId) -> Result<Arc<dyn ReadAt>> {
        match self.contents.get(&id) {
            Some(bytes) => Ok(Arc::new(bytes.clone())),
            None => self.inner.open(id),
        }
    }
    fn problems(&self) -> &[Problem] {
        self.inner.problems()
    }
    fn hashes(&self, ids: &[FileId]) -> Option<HashMap<FileId, Result<[u8; 32]>>> {
        let own: Vec<FileId> = ids
            .iter()
            .copied()
            .filter(|id| !self.contents.contains_key(id))
            .collect();
        self.inner.hashes(&own)
    }
}

/// Compares every path's type, mode, owner, size, content, link target, device numbers, extended attributes, hard links and
/// time of modification (whole seconds: what a layer can say).
///
/// `note` names what may be missing; `rewritten` are the contents that its rewritten files must have, computed anew from the
/// machine; `ignored` says which paths container engines mount over.
///
/// # Errors
/// If the note's paths are none.
pub fn verify(
    machine: &dyn Source,
    image: Side<'_>,
    note: &Note,
    rewritten: &BTreeMap<GuestPath, Rewritten>,
    ignored: &dyn Fn(&GuestPath) -> bool,
    jobs: usize,
    progress: &dyn Progress,
) -> Result<Report> {
    let left_out = note.left_out()?;
    let (mut tree, unsaid) = image_tree(machine.tree(), &left_out, rewritten);
    let mut contents = HashMap::new();
    tree.for_each_mut(|path, node| {
        if let Some(new) = rewritten.get(path) {
            contents.insert(node.id, new.content.clone());
        }
        // What the base has just as the machine has it keeps its time; what a layer states is clamped.
        let clamped = crate::layer::mtime(node, note.clamp);
        if image
            .source
            .tree()
            .get(path)
            .is_some_and(|n| n.mtime.sec == clamped)
        {
            node.mtime.sec = clamped;
        }
    });
    let expected = View {
        inner: machine,
        tree,
        contents,
    };
    let nothing = Known::new();
    let (diff, _) = compare(
        Side {
            source: &expected,
            known: &nothing,
        },
        image,
        jobs,
        progress,
    );
    let mut report = Report {
        compared: expected.tree.len().saturating_sub(1),
        bytes: expected.tree.iter().map(|(_, n)| n.size()).sum(),
        left_out,
        rewritten: rewritten.keys().cloned().collect(),
        unsaid,
        unread: diff.unread,
        problems: machine.problems().to_vec(),
        ..Report::default()
    };
    let counted = |(path, _): &(GuestPath, Change)| !ignored(path) && !path.is_root();
    report.differences = diff.changes.into_iter().filter(counted).collect();
    Ok(report)
}
