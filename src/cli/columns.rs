//! Rows as aligned columns, for people.

use std::io::{self, Write};

/// Writes `rows` under `head`; nothing without rows, so that `wc -l` says 0.
pub(super) fn write<const N: usize>(
    out: &mut impl Write,
    head: [&str; N],
    rows: &[[String; N]],
) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let head = head.map(str::to_owned);
    let mut widths = [0; N];
    for row in rows.iter().chain([&head]) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in [&head].into_iter().chain(rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{:width$}", plain(cell)));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// One line, whatever characters are in it.
pub(super) fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_an_empty_table_is_empty() {
        let mut out = Vec::new();
        write(&mut out, ["A", "B"], &[]).expect("a buffer");
        assert!(out.is_empty());
        write(&mut out, ["A", "B"], &[["long\n".into(), "x".into()], ["é".into(), String::new()]])
            .expect("a buffer");
        assert_eq!(String::from_utf8(out).expect("text"), "A      B\nlong   x\né\n");
    }
}
