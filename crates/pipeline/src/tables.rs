//! Tables, for the terminal, for Markdown and for HTML.

use comfy_table::{CellAlignment, Table as Terminal, presets};
use serde::{Deserialize, Serialize};

/// A table of texts. Columns whose cells look like numbers are aligned to the right.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Column names.
    pub header: Vec<String>,
    /// Rows; shorter ones are filled with empty cells.
    pub rows: Vec<Vec<String>>,
    /// Rows to set off, such as the worst.
    #[serde(default)]
    pub bold: Vec<usize>,
}

impl Table {
    /// An empty table.
    pub fn new(title: impl Into<String>, header: &[&str]) -> Self {
        let header = header.iter().map(|name| (*name).to_owned()).collect();
        Self { title: title.into(), header, ..Self::default() }
    }

    /// Adds a row.
    pub fn row<C: Into<String>>(&mut self, cells: impl IntoIterator<Item = C>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Sets off the row added last.
    pub fn set_off(&mut self) {
        self.bold.extend(self.rows.len().checked_sub(1));
    }

    pub(crate) fn numeric(&self, column: usize) -> bool {
        let mut cells =
            self.rows.iter().filter_map(|row| row.get(column)).filter(|cell| !cell.is_empty()).peekable();
        cells.peek().is_some()
            && cells.all(|cell| {
                cell.trim_start_matches(['-', '+', '±']).starts_with(|c: char| c.is_ascii_digit())
                    || cell == "-"
            })
    }

    /// The table as the terminal shows it.
    pub fn terminal(&self) -> String {
        let mut table = Terminal::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(&self.header);
        for (index, row) in self.rows.iter().enumerate() {
            let mark =
                |cell: &String| if self.bold.contains(&index) { format!("{cell} *") } else { cell.clone() };
            let cells = row
                .iter()
                .enumerate()
                .map(|(column, cell)| if column == 0 { mark(cell) } else { cell.clone() });
            table.add_row(cells);
        }
        for column in 0..self.header.len() {
            if self.numeric(column)
                && let Some(column) = table.column_mut(column)
            {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!("{}\n{table}", self.title)
    }

    /// The table as Markdown.
    pub fn markdown(&self) -> String {
        let escape = |cell: &str| escape(cell).replace('|', "\\|");
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut out = format!("**{}**\n\n", escape(&self.title));
        out += &line(self.header.iter().map(|name| escape(name)).collect());
        let rule = |column| if self.numeric(column) { "---:" } else { "---" };
        out += &format!("|{}|\n", (0..self.header.len()).map(rule).collect::<Vec<_>>().join("|"));
        for (index, row) in self.rows.iter().enumerate() {
            let cells = (0..self.header.len()).map(|column| {
                let cell = row.get(column).map(|cell| escape(cell)).unwrap_or_default();
                if self.bold.contains(&index) && !cell.is_empty() { format!("**{cell}**") } else { cell }
            });
            out += &line(cells.collect());
        }
        out
    }
}

/// A text that Markdown shows as it is, on one line, as far as it could be taken for HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_forms_of_one_table() {
        let mut table = Table::new("Speed", &["method", "tokens/s"]);
        table.row(["plain", "52.1"]);
        table.row(["a|b", "-"]);
        table.set_off();
        assert_eq!(
            table.markdown(),
            "**Speed**\n\n| method | tokens/s |\n|---|---:|\n| plain | 52.1 |\n| **a\\|b** | **-** |\n"
        );
        let terminal = table.terminal();
        assert!(terminal.contains("a|b *") && terminal.starts_with("Speed\n"), "{terminal}");
        table.row(["<b>&\r\n"]);
        assert!(table.markdown().ends_with("\n| &lt;b&gt;&amp;   |  |\n"), "{}", table.markdown());
        assert!(table.numeric(1) && !table.numeric(0) && !Table::new("", &["x"]).numeric(0));
    }
}
