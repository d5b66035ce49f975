//! Reports: a self-contained HTML page, and Markdown for the book.

use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, context};

use crate::error::{PipelineError, Result};
use crate::results::ResultFile;
use crate::tables::escape;

fn failed(error: minijinja::Error) -> PipelineError {
    PipelineError::Report(format!("{error:#}"))
}

fn page(template: &'static str, source: &'static str, values: Value) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_template(template, source).map_err(failed)?;
    environment.get_template(template).and_then(|template| template.render(values)).map_err(failed)
}

/// The page of a result: nothing in it is loaded from elsewhere.
pub fn html(result: &ResultFile) -> Result<String> {
    let plots = result
        .plots
        .iter()
        .map(|plot| plot.svg().map(Value::from_safe_string))
        .collect::<Result<Vec<_>>>()?;
    let tables: Vec<Value> = result
        .tables
        .iter()
        .map(|table| {
            let numeric: Vec<bool> = (0..table.header.len()).map(|column| table.numeric(column)).collect();
            context! { table => Value::from(Serde(table.clone())), numeric }
        })
        .collect();
    let config = serde_json::to_string_pretty(&result.config).unwrap_or_default();
    page(
        "report.html",
        include_str!("../templates/report.html"),
        context! { result => Value::from(Serde(result.clone())), plots, tables, config },
    )
}

/// The page that lists results: paths relative to it, and what they are.
pub fn index(results: &[(String, ResultFile)]) -> Result<String> {
    let entries: Vec<Value> = results
        .iter()
        .map(|(path, result)| {
            context! {
                path,
                title => result.title.as_str(),
                experiment => result.experiment.as_str(),
                summary => result.summary.as_str(),
                time => result.time[1].as_str(),
            }
        })
        .collect();
    page("index.html", include_str!("../templates/index.html"), context! { entries })
}

/// The result as a page of the book.
pub fn markdown(result: &ResultFile) -> Result<String> {
    let mut out = format!("{}\n\n", escape(&result.summary));
    for table in &result.tables {
        out += &format!("{}\n", table.markdown());
    }
    for plot in &result.plots {
        // A blank line would end the HTML block.
        out += &format!("<div>{}</div>\n\n", plot.svg()?.replace('\n', ""));
    }
    for note in &result.notes {
        out += &format!("- {}\n", escape(note));
    }
    let machine = &result.machine;
    let load = result.load.map(|load| load.map_or("unknown".into(), |load| load.to_string()));
    let measured = format!(
        "Measured {} on {} ({} cores, {} GB{}), load {} before and {} after.",
        result.time[1],
        machine.processor,
        machine.cores,
        machine.memory_gb,
        machine.features.iter().fold(String::new(), |all, feature| all + ", " + feature),
        load[0],
        load[1],
    );
    out += &format!("\n{}", escape(&measured));
    let versions: Vec<String> =
        result.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    if !versions.is_empty() {
        out += &format!(" {}.", escape(&versions.join(", ")));
    }
    Ok(out + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::Table;

    #[test]
    fn everything_is_escaped_and_nothing_is_loaded() {
        let mut table = Table::new("<b>title</b>", &["<i>"]);
        table.row(["<script>alert(1)</script>"]);
        let result = ResultFile {
            title: "a<b".into(),
            summary: "x & y".into(),
            tables: vec![table],
            notes: vec!["<u>".into()],
            config: serde_json::json!({"prompt": "</pre><script>"}),
            ..ResultFile::default()
        };
        let page = html(&result).expect("renders");
        assert!(
            page.contains("a&lt;b") && page.contains("x &amp; y") && page.contains("&lt;u&gt;"),
            "{page}"
        );
        assert!(!page.contains("<script") && !page.contains("src=") && !page.contains("http"), "{page}");
        let list = index(&[("quickstart/1/report.html".into(), result)]).expect("renders");
        assert!(list.contains("quickstart/1/report.html") || list.contains("quickstart&#x2f;1"), "{list}");
    }
}
