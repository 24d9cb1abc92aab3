use super::*;
use crate::graph::{Facts, Graph, prune};
use crate::pkgdb::DATABASES;

fn drawn(format: Format) -> String {
    let package = |name: &str, depends: &[&str]| Package {
        name: name.to_owned(),
        version: "1<2>&\"'".to_owned(),
        size: Some(5 << 20),
        relations: crate::pkgdb::Relations {
            depends: depends.iter().map(|d| (*d).to_owned()).collect(),
            ..Default::default()
        },
        ..Package::default()
    };
    let packages = [
        package("top", &["lib<\"&", "gone"]),
        package("lib<\"&", &["libc"]),
        package("libc", &[]),
        package("\u{1}\u{202e}kernel]]>", &[]),
    ];
    // Names of any kind: the grammar that only looks for signs is not in the way.
    let database = DATABASES.iter().find(|d| d.name == "rpm").unwrap();
    let graph = Graph::build(&packages, database, &[]);
    let globs = [(
        "*kernel*".to_owned(),
        globset::Glob::new("*kernel*").unwrap().compile_matcher(),
    )];
    let facts = Facts {
        base: &[2],
        not_in_containers: &globs,
    };
    let pruned = prune(&graph, &packages, &facts);
    let view = View {
        title: "web \"<server>\"",
        graph: &graph,
        packages: &packages,
        pruned: &pruned,
    };
    draw(&view, format)
}

#[test]
fn a_picture_is_xml_whatever_packages_are_called() {
    let svg = drawn(Format::Svg);
    let mut reader = quick_xml::Reader::from_str(&svg);
    let mut circles = 0;
    loop {
        match reader.read_event().unwrap() {
            quick_xml::events::Event::Eof => break,
            quick_xml::events::Event::Empty(e) if e.name().as_ref() == "circle" => circles += 1,
            _ => {}
        }
    }
    assert_eq!(circles, 4);
    assert!(!svg.chars().any(|c| c.is_control() && c != '\n'));
    assert!(!svg.contains('\u{202e}'));
    assert!(svg.contains("lib&lt;&quot;&amp;") && svg.contains("web &quot;&lt;server&gt;&quot;"));
    assert!(svg.contains("1 to ask for, 1 they bring, 1 in the base, 1 set apart"));
    assert!(svg.contains("brings 1, 10 MiB in all"), "{svg}");
}

#[test]
fn documents_say_what_the_picture_shows() {
    let json: serde_json::Value = serde_json::from_str(&drawn(Format::Json)).unwrap();
    assert_eq!(json["schema"], SCHEMA);
    let marks: Vec<_> = json["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["mark"].clone())
        .collect();
    assert_eq!(marks, ["root", "implied", "base", "apart"]);
    assert_eq!(json["edges"][0]["relation"], "lib<\"&");
    assert_eq!(json["edges"][0]["certain"], true);
    assert_eq!(json["unmet"][0]["relation"], "gone");
    let dot = drawn(Format::Dot);
    assert!(dot.starts_with("digraph \"web \\\"<server>\\\"\" {\n"), "{dot}");
    assert!(dot.contains("  p0 -> p1 [tooltip=\"lib<\\\"&\"];"), "{dot}");
    assert_eq!(Format::of(Path::new("a.svg")), Some(Format::Svg));
    assert_eq!(Format::of(Path::new("a.gv")), Some(Format::Dot));
    assert_eq!(Format::of(Path::new("a.png")), None);
}

#[test]
fn sizes() {
    assert_eq!(
        [size(0), size(1), size(1 << 20), size(3 << 30)],
        ["no size", "1 KiB", "1.0 MiB", "3072 MiB"]
    );
}
