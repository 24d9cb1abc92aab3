//! Invariant: any text is a relation or an error in each grammar, without a panic, a deep recursion or a loop; and a graph
//! of packages with such relations is pruned without losing one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm2k::graph::{self, Facts, Graph};
use vm2k::pkgdb::{DATABASES, Package};

fuzz_target!(|text: &str| {
    for database in DATABASES {
        let _ = database.grammar.parse(text);
        let _ = database.grammar.parse_provided(text);
        // Each line is a package that is called by its first word, needs the rest, and provides its last word.
        let packages: Vec<Package> = text
            .lines()
            .take(64)
            .map(|line| {
                let mut package = Package::default();
                let (name, needs) = line.split_once(' ').unwrap_or((line, ""));
                package.name = name.to_owned();
                package.relations.depends = needs.split(',').map(str::to_owned).collect();
                package.relations.provides = needs.rsplit(' ').take(1).map(str::to_owned).collect();
                package
            })
            .collect();
        let graph = Graph::build(&packages, database, &[]);
        let pruned = graph::prune(&graph, &packages, &Facts::default());
        assert!(pruned.lost(&graph, &Facts::default()).is_empty());
    }
});
