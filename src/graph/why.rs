//! How a package came in.

use super::{Edge, Graph};
use crate::pkgdb::Package;
use std::collections::VecDeque;

/// One step of a path: `from` needs or wants `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The package that needs.
    pub from: usize,
    /// The package that is needed.
    pub to: usize,
    /// Through which relation.
    pub edge: Edge,
}

/// A path from a package that was asked for. Empty for that package itself.
pub type Path = Vec<Step>;

/// A shortest path from each of `from` that leads to `package`, the shortest first, at most `limit`. Only what is needed
/// counts; where that leads nowhere, what is wanted counts too.
pub fn why(graph: &Graph, from: &[usize], package: usize, limit: usize) -> Vec<Path> {
    let hard = search(graph, from, package, limit, true);
    if !hard.is_empty() {
        return hard;
    }
    search(graph, from, package, limit, false)
}

fn search(graph: &Graph, from: &[usize], package: usize, limit: usize, hard: bool) -> Vec<Path> {
    let mut is_start = vec![false; graph.len()];
    for start in from {
        if let Some(flag) = is_start.get_mut(*start) {
            *flag = true;
        }
    }
    // The next step on the way to `package`.
    let mut next: Vec<Option<Step>> = vec![None; graph.len()];
    let mut seen = vec![false; graph.len()];
    let mut paths = Vec::new();
    let mut todo = VecDeque::from([package]);
    if let Some(seen) = seen.get_mut(package) {
        *seen = true;
    }
    while let Some(at) = todo.pop_front() {
        if is_start.get(at) == Some(&true) {
            let mut path = Path::new();
            let mut step = next.get(at).copied().flatten();
            while let Some(taken) = step {
                path.push(taken);
                step = next.get(taken.to).copied().flatten();
            }
            paths.push(path);
            if paths.len() >= limit {
                break;
            }
        }
        let mut needers: Vec<(usize, Edge)> = graph.needed_by(at).collect();
        needers.sort_by_key(|(other, edge)| (*other, edge.clause));
        for (from, edge) in needers {
            let follows = graph.clause(edge).is_some_and(|c| !hard || c.kind.is_hard());
            if let Some(seen @ false) = seen.get_mut(from).filter(|_| follows) {
                *seen = true;
                if let Some(next) = next.get_mut(from) {
                    *next = Some(Step { from, to: at, edge });
                }
                todo.push_back(from);
            }
        }
    }
    paths
}

/// The names of at most three packages that are nearest to `name`, for one that is not there.
pub fn near_names<'a>(packages: &'a [Package], name: &str) -> Vec<&'a str> {
    // The distance is quadratic in the length, and nobody mistypes a name of a hundred letters.
    let short: String = name.chars().take(100).collect();
    let mut near: Vec<(usize, &str)> = Vec::new();
    for package in packages {
        let other = package.name.as_str();
        let within = short.len() >= 3 && other.contains(&short);
        let distance = if within { 1 } else { distance(&short, other) };
        // Two letters that changed places count as two.
        if distance <= (short.len() / 3).max(1 + usize::from(short.len() > 3))
            && !near.iter().any(|(_, known)| *known == other)
        {
            near.push((distance, other));
        }
    }
    near.sort_by_key(|(distance, name)| (*distance, name.len(), *name));
    near.into_iter().take(3).map(|(_, name)| name).collect()
}

/// The least number of bytes to put in, take out or change.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut before = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (y, above) in b.bytes().zip(row.iter().copied().skip(1)) {
            left = (before + usize::from(x != y)).min(above + 1).min(left + 1);
            next.push(left);
            before = above;
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}
