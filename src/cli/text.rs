//! Tables and numbers for people.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// Bytes with a binary unit, as in `1.5 MiB`.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS.get(unit).unwrap_or(&""))
}

/// A number with thin groups of three digits: `22,123`.
pub(super) fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A table without borders; columns named in `right` are aligned to the right.
pub(super) fn table(header: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    if !header.is_empty() {
        table.set_header(header.to_vec());
    }
    for column in right {
        while table.column_count() <= *column {
            table.add_row(Vec::<String>::new());
        }
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// What went over the network, for a summary.
pub(super) fn traffic(traffic: &crate::source::Traffic) -> String {
    let mut text = format!(
        "{} received from the host, {} sent; {} files read there",
        bytes(traffic.received),
        bytes(traffic.sent),
        count(usize::try_from(traffic.read).unwrap_or(usize::MAX)),
    );
    for (number, what) in [
        (traffic.vanished, "vanished before they were read"),
        (traffic.torn, "changed each time that they were read"),
    ] {
        if number > 0 {
            text.push_str(&format!("; {number} {what}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(
            [count(1), count(999), count(22_123), count(1_000_000)],
            ["1", "999", "22,123", "1,000,000"]
        );
    }
}
