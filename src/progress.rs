//! Progress of long work: what it is told, not how it is shown.
//!
//! The library reports through [`Progress`]; the command line shows bars with it (`cli::ui`), tests and machines pass
//! [`Silent`].

use std::sync::Arc;

/// Somebody who wants to know how far a piece of work is. Called from many threads.
pub trait Progress: Send + Sync {
    /// A stage begins: `what` is a gerund and its object ("packing the rest layer"), `total` its bytes if known.
    /// The stage ends when what is returned is dropped.
    fn stage(&self, what: &str, total: Option<u64>) -> Arc<dyn Stage>;
    /// Something the user should know although the work goes on.
    fn warn(&self, message: &str);
    /// A line that another program printed while it worked for us. Its bytes are that program's.
    fn output(&self, _line: &[u8]) {}
}

/// One running stage.
pub trait Stage: Send + Sync {
    /// `bytes` more are done.
    fn add(&self, bytes: u64);
}

/// Nobody wants to know.
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _what: &str, _total: Option<u64>) -> Arc<dyn Stage> {
        Arc::new(Self)
    }
    fn warn(&self, _message: &str) {}
}

impl Stage for Silent {
    fn add(&self, _bytes: u64) {}
}
