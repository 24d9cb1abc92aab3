//! The graph as a picture: roots in a column on the left, what they bring in columns by distance to the right, below the
//! packages of the base and those that are set apart.
//!
//! A circle has the size of what the package installs. Each root has a colour; what only that root brings has it too, what
//! several bring is grey. The lines that are always there show through whom a package first came in; all of its lines
//! are shown while the pointer is on it.

use super::{View, size};
use crate::graph::{Kind, Mark};
use std::collections::VecDeque;
use std::fmt::Write;

/// Distances in the picture's own unit, which is about a pixel.
const MARGIN: f64 = 28.0;
const HEADER: f64 = 76.0;
const ROOT_WIDTH: f64 = 270.0;
const ROOT_ROW: f64 = 34.0;
const WIDTH: f64 = 178.0;
const ROW: f64 = 17.0;
const SMALL_WIDTH: f64 = 150.0;
const SMALL_ROW: f64 = 14.0;
/// Between the layers of one distance, where the lines run.
const GAP: f64 = 60.0;
/// Width to height of the part with the roots.
const ASPECT: f64 = 1.5;

const STYLE: &str = "\
text{font-family:system-ui,'DejaVu Sans',sans-serif;fill:#1f2937}
.halo{paint-order:stroke;stroke:#fff;stroke-width:3px;stroke-linejoin:round}
.h1{font-size:22px;font-weight:700}.h2{font-size:13px;fill:#4b5563}.h3{font-size:14px;font-weight:600;fill:#4b5563}
.root text{font-size:14px;font-weight:700}.root .sub{font-size:10px;font-weight:400;fill:#6b7280}
.dep text{font-size:10.5px}.base text{font-size:9px;fill:#6b7280}.apart text{font-size:9px;fill:#9ca3af}
.base circle{fill:#d1d5db}.apart circle{fill:none;stroke:#9ca3af;stroke-dasharray:2 2}
path{fill:none}.tree path{stroke-width:1.1;stroke-opacity:.38}
.all{visibility:hidden}.all path{stroke:#111827;stroke-width:1.3;stroke-opacity:.75}.all .weak{stroke-dasharray:3 3}
g:hover>.all{visibility:visible}.root:hover text,.dep:hover text,.base:hover text,.apart:hover text{fill:#000;font-weight:700}
";

/// Text that may stand in XML 1.0 (section 2.2, Char), its marks escaped.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            // What turns the direction of text around would make a label lie.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.push('\u{fffd}')
            }
            c => out.push(c),
        }
    }
    out
}

fn short(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.to_owned();
    }
    let head: String = text.chars().take(letters.saturating_sub(1)).collect();
    head + "…"
}

/// Where a package is drawn.
#[derive(Clone, Copy, Default)]
struct Place {
    x: f64,
    y: f64,
    r: f64,
}

struct Picture<'a> {
    view: &'a View<'a>,
    labels: Vec<String>,
    reasons: Vec<String>,
    marks: Vec<Mark>,
    places: Vec<Place>,
    colours: Vec<String>,
    /// Through whom each package first came in.
    parents: Vec<Option<usize>>,
    width: f64,
    height: f64,
    headings: Vec<(f64, String)>,
}

pub(super) fn draw(view: &View<'_>) -> String {
    let labels = view.labels();
    let reasons = view.reasons(&labels);
    let n = view.packages.len();
    let mut picture = Picture {
        view,
        marks: view.marks(),
        labels,
        reasons,
        places: vec![Place::default(); n],
        colours: vec!["#64748b".to_owned(); n],
        parents: vec![None; n],
        width: 0.0,
        height: 0.0,
        headings: Vec::new(),
    };
    picture.colour();
    picture.place();
    picture.text()
}

impl Picture<'_> {
    fn mark(&self, package: usize) -> Option<Mark> {
        self.marks.get(package).copied()
    }

    fn place_of(&self, package: usize) -> Place {
        self.places.get(package).copied().unwrap_or_default()
    }

    fn label(&self, package: usize) -> &str {
        self.labels.get(package).map_or("", String::as_str)
    }

    fn of(&self, mark: Mark) -> Vec<usize> {
        let all = self.marks.iter().enumerate().filter(|(_, m)| **m == mark);
        all.map(|(package, _)| package).collect()
    }

    /// A colour for each root, and for what only it brings.
    fn colour(&mut self) {
        let mut owner: Vec<Option<usize>> = vec![None; self.marks.len()];
        let mut shared = vec![false; self.marks.len()];
        for (number, root) in self.view.pruned.roots.iter().enumerate() {
            let mut seen: Vec<usize> = vec![root.package];
            // What several bring is known to be shared already, and so is all that it brings.
            let mut next = 0;
            while let Some(package) = seen.get(next).copied() {
                next += 1;
                if let (Some(owner), Some(shared)) = (owner.get_mut(package), shared.get_mut(package)) {
                    match owner {
                        Some(other) if *other == number => continue,
                        Some(_) if *shared => continue,
                        Some(_) => *shared = true,
                        None => *owner = Some(number),
                    }
                }
                let needs = self.view.graph.needs(package);
                let certain = needs.filter(|(_, e)| self.view.graph.clause(*e).is_some_and(|c| c.certain));
                seen.extend(certain.map(|(other, _)| other));
            }
        }
        for (package, colour) in self.colours.iter_mut().enumerate() {
            let alone = shared.get(package) == Some(&false);
            if let (Some(Some(root)), true) = (owner.get(package), alone) {
                // Steps of the golden angle keep neighbours apart.
                let hue = (*root as f64 * 137.508) % 360.0;
                *colour = hsl(hue, 0.58, 0.46);
            }
        }
    }

    /// The distance of each package from the nearest root, over what is needed; the packages of each distance in the order
    /// in which the rows should stand.
    fn layers(&mut self) -> Vec<Vec<usize>> {
        let mut depth: Vec<Option<usize>> = vec![None; self.marks.len()];
        let mut todo: VecDeque<usize> = VecDeque::new();
        for root in &self.view.pruned.roots {
            if let Some(depth) = depth.get_mut(root.package) {
                *depth = Some(0);
                todo.push_back(root.package);
            }
        }
        let mut layers: Vec<Vec<usize>> = Vec::new();
        while let Some(package) = todo.pop_front() {
            let own = depth.get(package).copied().flatten().unwrap_or(0);
            while layers.len() <= own {
                layers.push(Vec::new());
            }
            if let Some(layer) = layers.get_mut(own) {
                layer.push(package);
            }
            for (other, edge) in self.view.graph.needs(package) {
                let hard = self.view.graph.clause(edge).is_some_and(|c| c.kind.is_hard());
                if !hard || self.mark(other) != Some(Mark::Implied) {
                    continue;
                }
                if let Some(depth @ None) = depth.get_mut(other) {
                    *depth = Some(own + 1);
                    if let Some(parent) = self.parents.get_mut(other) {
                        *parent = Some(package);
                    }
                    todo.push_back(other);
                }
            }
        }
        layers
    }

    fn place(&mut self) {
        let mut layers = self.layers();
        let biggest = self
            .view
            .packages
            .iter()
            .filter_map(|p| p.size)
            .max()
            .unwrap_or(0)
            .max(1) as f64;
        let radius = |bytes: u64, most: f64| 2.2 + (most - 2.2) * (bytes as f64 / biggest).sqrt();
        let deps: usize = layers.iter().skip(1).map(Vec::len).sum();
        let roots = layers.first().map_or(0, Vec::len);
        // As many rows as give the whole a shape that fits a screen.
        let area = deps as f64 * WIDTH * ROW + roots as f64 * ROOT_WIDTH * ROOT_ROW;
        let tall = (area / ASPECT)
            .sqrt()
            .max(ROOT_ROW * (roots as f64).min(18.0))
            .max(120.0);
        let mut x = MARGIN;
        let top = HEADER + MARGIN;
        for (depth, layer) in layers.iter_mut().enumerate() {
            let (width, row) = if depth == 0 {
                (ROOT_WIDTH, ROOT_ROW)
            } else {
                (WIDTH, ROW)
            };
            let rows_fit = (tall / row).floor().max(1.0);
            let columns = (layer.len() as f64 / rows_fit).ceil().max(1.0) as usize;
            if depth > 0 {
                self.sort_by_needers(layer);
            }
            let rows = layer.len().div_ceil(columns).max(1);
            let pitch = (tall / rows as f64).clamp(row, row * 2.2);
            let start = top + (tall - pitch * rows as f64).max(0.0) / 2.0;
            for (position, package) in layer.iter().enumerate() {
                // Row by row, so that what lies near in the order lies near in height.
                let (line, column) = (position / columns, position % columns);
                let bytes = self.view.packages.get(*package).and_then(|p| p.size).unwrap_or(0);
                let most = if depth == 0 { 15.0 } else { 8.0 };
                if let Some(place) = self.places.get_mut(*package) {
                    *place = Place {
                        x: x + 16.0 + column as f64 * width,
                        y: start + (line as f64 + 0.5) * pitch,
                        r: radius(bytes, most) + if depth == 0 { 3.0 } else { 0.0 },
                    };
                }
            }
            x += columns as f64 * width + GAP;
        }
        self.width = (x - GAP + MARGIN).max(960.0);
        self.height = top + tall + MARGIN;
        self.grid(Mark::Base, "in the base");
        self.grid(Mark::Apart, "set apart");
        self.height += MARGIN;
    }

    /// Orders a layer by the middle height of those that need its packages and have a place already: none of the layer
    /// itself has.
    fn sort_by_needers(&self, layer: &mut [usize]) {
        let middle = |package: usize| -> f64 {
            let (mut sum, mut count) = (0.0, 0.0);
            for (other, edge) in self.view.graph.needed_by(package) {
                let hard = self.view.graph.clause(edge).is_some_and(|c| c.kind.is_hard());
                let place = self.place_of(other);
                if hard && place.r > 0.0 {
                    // The one through whom it came in counts most: its line is drawn.
                    let parent = self.parents.get(package).copied().flatten() == Some(other);
                    let weight = if parent { 8.0 } else { 1.0 };
                    sum += place.y * weight;
                    count += weight;
                }
            }
            if count > 0.0 { sum / count } else { 0.0 }
        };
        let mut keyed: Vec<(f64, usize)> = layer.iter().map(|p| (middle(*p), *p)).collect();
        keyed.sort_by(|a, b| {
            a.0.total_cmp(&b.0)
                .then_with(|| self.label(a.1).cmp(self.label(b.1)))
        });
        for (slot, (_, package)) in layer.iter_mut().zip(keyed) {
            *slot = package;
        }
    }

    /// A block of small rows over the whole width, column by column in the order of the alphabet.
    fn grid(&mut self, mark: Mark, heading: &str) {
        let mut packages = self.of(mark);
        if packages.is_empty() {
            return;
        }
        packages.sort_by_key(|p| (self.reasons.get(*p).cloned(), self.label(*p).to_owned()));
        let total: u64 = packages
            .iter()
            .filter_map(|p| self.view.packages.get(*p)?.size)
            .sum();
        self.headings.push((
            self.height + 18.0,
            format!("{heading}: {} packages, {}", packages.len(), size(total)),
        ));
        let top = self.height + 32.0;
        let columns = ((self.width - 2.0 * MARGIN) / SMALL_WIDTH).floor().max(1.0) as usize;
        let rows = packages.len().div_ceil(columns);
        for (position, package) in packages.into_iter().enumerate() {
            if let Some(place) = self.places.get_mut(package) {
                *place = Place {
                    x: MARGIN + 8.0 + (position / rows) as f64 * SMALL_WIDTH,
                    y: top + ((position % rows) as f64 + 0.5) * SMALL_ROW,
                    r: 3.0,
                };
            }
        }
        self.height = top + rows as f64 * SMALL_ROW + 14.0;
    }

    fn text(&self) -> String {
        let (w, h) = (self.width.ceil(), self.height.ceil());
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\">\n<style>{STYLE}</style>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        );
        let counts = format!(
            "{} packages: {} to ask for, {} they bring, {} in the base, {} set apart",
            self.marks.len(),
            self.view.pruned.roots.len(),
            self.view.pruned.implied.len(),
            self.view.pruned.base.len(),
            self.view.pruned.apart.len(),
        );
        let _ = writeln!(
            out,
            "<text class=\"h1\" x=\"{MARGIN}\" y=\"42\">{}</text>\n<text class=\"h2\" x=\"{MARGIN}\" y=\"64\">{}. A circle's area is \
             what is installed; a colour is one root and what only it brings, grey is shared.</text>",
            escaped(&short(self.view.title, 80)),
            escaped(&counts),
        );
        for (y, heading) in &self.headings {
            let _ = writeln!(
                out,
                "<text class=\"h3\" x=\"{MARGIN}\" y=\"{y:.0}\">{}</text>",
                escaped(heading)
            );
        }
        out.push_str("<g class=\"tree\">\n");
        for (package, parent) in self.parents.iter().enumerate() {
            if let Some(parent) = parent {
                let colour = self.colours.get(package).map_or("#64748b", String::as_str);
                let line = self.line(*parent, package);
                let _ = writeln!(out, "<path d=\"{line}\" stroke=\"{colour}\"/>");
            }
        }
        out.push_str("</g>\n");
        for package in 0..self.marks.len() {
            self.package(&mut out, package);
        }
        out.push_str("</svg>\n");
        out
    }

    /// A line from the end of a label to the left side of a circle; what needs is on the left, mostly.
    fn line(&self, from: usize, to: usize) -> String {
        let (a, b) = (self.place_of(from), self.place_of(to));
        let letters = self.label(from).chars().count() as f64;
        // About as wide as letters of these sizes are.
        let label = match self.mark(from) {
            Some(Mark::Root) => 27.0 + (letters.min(27.0) * 8.4).max(60.0),
            Some(Mark::Implied) => 14.0 + letters.min(25.0) * 5.9,
            _ => 9.0 + letters.min(24.0) * 5.1,
        };
        let (ax, bx) = (a.x + label, b.x - b.r);
        let bend = ((bx - ax).abs() / 2.0).clamp(30.0, 220.0);
        format!(
            "M{ax:.0} {:.0}C{:.0} {:.0} {:.0} {:.0} {bx:.0} {:.0}",
            a.y,
            ax + bend,
            a.y,
            bx - bend,
            b.y,
            b.y
        )
    }

    fn package(&self, out: &mut String, package: usize) {
        let Some(data) = self.view.packages.get(package) else {
            return;
        };
        let place = self.place_of(package);
        let (class, letters) = match self.mark(package) {
            Some(Mark::Root) => ("root", 27),
            Some(Mark::Implied) => ("dep", 25),
            Some(Mark::Base) => ("base", 24),
            _ => ("apart", 24),
        };
        let (x, y, r) = (place.x, place.y, place.r);
        let label = self.label(package);
        let _ = write!(
            out,
            "<g class=\"{class}\"><title>{}</title>",
            escaped(&self.tip(package))
        );
        out.push_str("<g class=\"all\">");
        for (other, edge) in self.view.graph.needs(package) {
            let Some(clause) = self.view.graph.clause(edge) else {
                continue;
            };
            if clause.kind == Kind::Suggests {
                continue;
            }
            let weak = if clause.kind.is_hard() {
                ""
            } else {
                " class=\"weak\""
            };
            let _ = write!(out, "<path{weak} d=\"{}\"/>", self.line(package, other));
        }
        out.push_str("</g>");
        let fill = match class {
            "root" | "dep" => {
                let colour = self.colours.get(package).map_or("#64748b", String::as_str);
                format!(" fill=\"{colour}\"")
            }
            _ => String::new(),
        };
        let _ = write!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r:.1}\"{fill}/>");
        let shown = escaped(&short(label, letters));
        // Labels of a column begin at one place.
        let text_x = match class {
            "root" => x + 23.0,
            "dep" => x + 11.0,
            _ => x + 7.0,
        };
        if class == "root" {
            let root = self.view.pruned.roots.iter().find(|root| root.package == package);
            let (brings, bytes) = root.map_or((1, 0), |root| (root.brings, root.bytes));
            let sub = match brings {
                1 => size(data.size.unwrap_or(0)),
                _ => format!("brings {}, {} in all", brings - 1, size(bytes)),
            };
            let _ = write!(
                out,
                "<text class=\"halo\" x=\"{text_x:.1}\" y=\"{:.1}\">{shown}</text><text class=\"halo sub\" x=\"{text_x:.1}\" \
                 y=\"{:.1}\">{sub}</text>",
                y + 2.0,
                y + 13.5
            );
        } else {
            let _ = write!(
                out,
                "<text class=\"halo\" x=\"{text_x:.1}\" y=\"{:.1}\">{shown}</text>",
                y + 3.5
            );
        }
        out.push_str("</g>\n");
    }

    /// What is shown while the pointer is on a package.
    fn tip(&self, package: usize) -> String {
        let Some(data) = self.view.packages.get(package) else {
            return String::new();
        };
        let mut tip = format!(
            "{} {}\n{}",
            self.label(package),
            data.full_version(),
            size(data.size.unwrap_or(0))
        );
        if let Some(reason) = self.reasons.get(package).filter(|r| !r.is_empty()) {
            let _ = write!(tip, "\n{reason}");
        }
        for (heading, hard) in [("needed by", true), ("wanted by", false)] {
            let mut names: Vec<&str> = self
                .view
                .graph
                .needed_by(package)
                .filter(|(_, edge)| {
                    let clause = self.view.graph.clause(*edge);
                    clause.is_some_and(|c| c.kind.is_hard() == hard && c.kind != Kind::Suggests)
                })
                .map(|(other, _)| self.label(other))
                .collect();
            names.sort_unstable();
            names.dedup();
            if let Some(more) = names.len().checked_sub(1) {
                let shown: Vec<&str> = names.into_iter().take(6).collect();
                let _ = write!(tip, "\n{heading} {}", shown.join(", "));
                if more > 5 {
                    let _ = write!(tip, " and {} more", more - 5);
                }
            }
        }
        tip
    }
}

/// A colour of hue (degrees), saturation and lightness (0 to 1) as `#rrggbb`.
fn hsl(hue: f64, saturation: f64, lightness: f64) -> String {
    let chroma = (1.0 - (2.0 * lightness - 1.0).abs()) * saturation;
    let part = |n: f64| {
        let k = (n + hue / 30.0) % 12.0;
        let value = lightness - chroma / 2.0 * (k - 3.0).min(9.0 - k).clamp(-1.0, 1.0);
        (value * 255.0).round() as u8
    };
    format!("#{:02x}{:02x}{:02x}", part(0.0), part(8.0), part(4.0))
}
