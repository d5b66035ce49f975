//! The forms of one small result, as snapshots, and what hostile texts in it come to.

use pilotfish_pipeline::machine::Machine;
use pilotfish_pipeline::plots::{Kind, Plot, Point, Series};
use pilotfish_pipeline::report;
use pilotfish_pipeline::results::ResultFile;
use pilotfish_pipeline::tables::Table;

fn sample() -> ResultFile {
    let mut table = Table::new("Speed", &["category", "n", "tok/s", "speed-up [95 %]"]);
    table.row(["math & more", "6", "52.1", "1.11x [0.90, 1.41]"]);
    table.row(["qa", "6", "48.0"]);
    table.set_off();
    let point = |x: f64, y: f64| Point { x, y, interval: Some((y - 0.1, y + 0.2)) };
    let series = |name: &str, scale: f64| Series {
        name: name.into(),
        points: vec![point(0.0, scale), point(1.0, 2.0 * scale)],
    };
    let bars = Plot {
        title: "Speed-up by category".into(),
        x: String::new(),
        y: "ratio of means".into(),
        kind: Kind::Bars { labels: vec!["math & more".into(), "qa".into()] },
        series: vec![series("look-up", 1.0), series("other", 0.5)],
        reference: Some(1.0),
    };
    ResultFile {
        experiment: "sample".into(),
        title: "A small result".into(),
        summary: "Look-up decodes 1.11x as fast; the least of any category is <1x.".into(),
        config: serde_json::json!({ "draft": 5, "tokens": 64 }),
        seeds: vec![0, 1],
        versions: vec![("pilotfish".into(), "0.1.0".into())],
        commit: Some("0123abc".into()),
        machine: Machine {
            processor: "A processor".into(),
            cores: 2,
            memory_gb: 24.0,
            features: vec!["avx2".into(), "fma".into()],
            system: "linux x86_64".into(),
        },
        load: [Some(0.25), None],
        time: ["2026-01-02T03:04:05Z".into(), "2026-01-02T03:05:06Z".into()],
        rows: vec![serde_json::json!({ "id": "qa-1" })],
        tables: vec![table],
        plots: vec![bars],
        notes: vec!["Lossless.".into()],
    }
}

#[test]
fn page() {
    insta::assert_snapshot!("report", report::html(&sample()).unwrap());
}

#[test]
fn page_of_the_book() {
    insta::assert_snapshot!("markdown", report::markdown(&sample()).unwrap());
}

#[test]
fn list_of_results() {
    let entries = [("sample/0f/report.html".into(), sample())];
    insta::assert_snapshot!("index", report::index(&entries).unwrap());
    assert!(report::index(&[]).unwrap().contains("None yet"));
}

#[test]
fn table_on_the_terminal() {
    insta::assert_snapshot!("terminal", sample().tables[0].terminal());
}

/// Every text of a result replaced by one that would be a script.
#[test]
fn no_text_becomes_markup() {
    const BAD: &str = "\"'</title></pre></svg><script>x</script><img src=x>&";
    let bad = || BAD.to_owned();
    let mut result = sample();
    result.config = serde_json::json!({ BAD: BAD });
    for text in [&mut result.experiment, &mut result.title, &mut result.summary] {
        *text = bad();
    }
    result.versions = vec![(bad(), bad())];
    result.commit = Some(bad());
    result.time = [bad(), bad()];
    result.notes = vec![bad()];
    result.machine.processor = bad();
    result.machine.system = bad();
    result.machine.features = vec![bad()];
    result.tables = vec![Table {
        title: bad(),
        header: vec![bad(), bad()],
        rows: vec![vec![bad(); 3], vec![]],
        bold: vec![0, 99],
    }];
    let plot = &mut result.plots[0];
    (plot.title, plot.x, plot.y) = (bad(), bad(), bad());
    plot.kind = Kind::Bars { labels: vec![bad(), bad()] };
    plot.series.iter_mut().for_each(|series| series.name = bad());
    let mut lines = plot.clone();
    lines.kind = Kind::Lines;
    result.plots.push(lines);
    let index = report::index(&[(bad(), result.clone())]).unwrap();
    let pages = [report::html(&result).unwrap(), index, report::markdown(&result).unwrap()];
    for page in pages {
        assert!(page.contains("&lt;script"));
        for tag in ["<script", "<img"] {
            let around = page.find(tag).map(|at| page[..at].chars().rev().take(80).collect::<Vec<_>>());
            let around = around.map(|text| text.into_iter().rev().collect::<String>());
            assert_eq!(around, None, "a {tag} after this");
        }
        let count = |what: &str| page.matches(what).count();
        for tag in ["svg", "title", "pre"] {
            assert_eq!(count(&format!("<{tag}")), count(&format!("</{tag}")), "{tag}");
        }
    }
}
