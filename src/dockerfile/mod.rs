//! A build context: the Dockerfile that a person would have written for the machine, and what only the machine has.
//!
//! The package manager of the base brings what repositories serve ([`ladder`]), the rest layer the remainder. [`write_context`]
//! decides and writes; what is written is a [`Recipe`], a value without secrets, and [`render`] is a pure function of it.

mod config;
mod context;
mod directory;
pub mod ladder;
pub mod remove;
mod render;
mod rest;
pub mod sources;
mod supply;
mod words;

pub use context::{PackageReport, RemovedPackage, Report, RestReport, SCHEMA, write_context};
pub use render::{render, tool_of};

use serde::Serialize;

/// What the user asks for, besides what a conversion takes.
#[derive(Debug, Clone)]
pub struct Options {
    /// True for a context that is whole by itself: with the rest layer, and with what must be deleted before it. False where
    /// the caller compares the built image with the machine and adds a layer.
    pub rest: bool,
    /// The packages that somebody asked for, as indexes into the inventory's list; `None`: the roots of their graph.
    pub roots: Option<Vec<usize>>,
    /// Ask no repository: every version is taken to be served.
    pub offline: bool,
    /// Replacements of the beginning of repositories' URLs, for asking and for building.
    pub mirrors: Vec<(String, String)>,
    /// What stands behind `FROM`; `None`: the base's name with its digest, or a name of this machine if no registry has it.
    pub from: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rest: true,
            roots: None,
            offline: false,
            mirrors: Vec::new(),
            from: None,
        }
    }
}

/// What a Dockerfile says, in the order in which it says it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Recipe {
    /// The package tool whose template is used; empty for none.
    pub tool: String,
    /// What the machine is, in lines of comment.
    pub summary: Vec<String>,
    /// The base.
    pub base: From,
    /// Repositories and keys; `None` if those of the base do.
    pub repositories: Option<Repositories>,
    /// Commands, one `RUN` each.
    pub groups: Vec<Group>,
    /// What must go before the rest layer comes.
    pub deletions: Option<Deletions>,
    /// The rest layer, if it is part of the context.
    pub rest: Option<Rest>,
    /// Labels.
    pub labels: Vec<Pair>,
    /// Environment that the base does not set so.
    pub env: Vec<Pair>,
    /// Ports, as `80/tcp`.
    pub expose: Vec<String>,
    /// Working directory, where the base has another.
    pub working_dir: Option<String>,
    /// User, where the base has another.
    pub user: Option<String>,
    /// What the container runs, where the base runs something else.
    pub runs: Option<Runs>,
}

/// The base image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct From {
    /// What stands behind `FROM`: a name with a digest, a name of this machine, or `scratch`.
    pub from: String,
    /// Lines of comment.
    pub why: Vec<String>,
    /// True if the base's config names another user than root.
    pub not_root: bool,
}

/// The machine's repositories, where they are not those of the base.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Repositories {
    /// Lines of comment.
    pub why: Vec<String>,
    /// The command that removes files of the base that name other repositories; empty for none.
    pub remove: Vec<String>,
    /// True if the context has files in `repositories/`.
    pub copy: bool,
}

/// One command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Lines of comment.
    pub why: Vec<String>,
    /// The shell script in lines; those that begin with `#` are comments.
    pub script: Vec<String>,
}

/// What is deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Deletions {
    /// Commands with their arguments.
    pub commands: Vec<Vec<String>>,
    /// The file of the context that lists further paths, each ended by a NUL.
    pub list: Option<String>,
    /// Where it lies in the image while it is used.
    pub place: String,
    /// The script that uses it.
    pub script: Vec<String>,
}

/// The rest layer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Rest {
    /// Lines of comment.
    pub why: Vec<String>,
}

/// A name and its value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// Letters, digits, `_`, `.` and `-`.
    pub name: String,
    /// A text without control characters.
    pub value: String,
}

/// What the container runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Runs {
    /// A line of comment; empty for none.
    pub why: String,
    /// True if the base's entrypoint is replaced.
    pub entrypoint_set: bool,
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Command.
    pub cmd: Vec<String>,
}
