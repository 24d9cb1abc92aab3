//! The proof that asking for the roots brings all. It shares nothing with the pruning that it judges.

use super::Graph;

/// The packages that neither installing `roots` on a system that has `base` would bring, nor `apart` names, in ascending
/// order. Empty: nothing is lost.
///
/// It installs as a package manager does: a package brings one of each clause's packages if the clause leaves no choice,
/// else it is not counted on to bring any.
pub fn prove(
    graph: &Graph,
    base: impl IntoIterator<Item = usize>,
    roots: impl IntoIterator<Item = usize>,
    apart: impl IntoIterator<Item = usize>,
) -> Vec<usize> {
    let mut missing: Vec<bool> = vec![true; graph.len()];
    // Clauses lie in the order of no one: gather them by package first.
    let mut brings: Vec<Vec<usize>> = vec![Vec::new(); graph.len()];
    for clause in graph.clauses() {
        if let (true, [only]) = (
            clause.certain && clause.kind.is_hard(),
            clause.satisfiers.as_slice(),
        ) && let Some(list) = brings.get_mut(clause.package)
        {
            list.push(only.package);
        }
    }
    let mut queue: Vec<usize> = base.into_iter().chain(roots).collect();
    while let Some(package) = queue.pop() {
        if let Some(is_missing @ true) = missing.get_mut(package) {
            *is_missing = false;
            queue.extend(brings.get(package).into_iter().flatten());
        }
    }
    for package in apart {
        if let Some(is_missing) = missing.get_mut(package) {
            *is_missing = false;
        }
    }
    let all = missing.iter().enumerate();
    all.filter(|(_, missing)| **missing)
        .map(|(package, _)| package)
        .collect()
}
