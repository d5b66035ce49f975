//! Plots as data, drawn as SVG.

use std::ops::Range;

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde::{Deserialize, Serialize};

use crate::error::{PipelineError, Result};

/// A point, with an interval if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Horizontal.
    pub x: f64,
    /// Vertical.
    pub y: f64,
    /// Ends of the interval of `y`.
    #[serde(default)]
    pub interval: Option<(f64, f64)>,
}

/// Points that belong together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Points; for bars, `x` is the index of a label.
    pub points: Vec<Point>,
}

/// Kinds of plots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Lines through points.
    Lines,
    /// Groups of bars at labels.
    Bars {
        /// Labels, from left to right.
        labels: Vec<String>,
    },
}

/// A plot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plot {
    /// Title.
    pub title: String,
    /// Meaning and unit of the horizontal axis.
    pub x: String,
    /// Meaning and unit of the vertical axis.
    pub y: String,
    /// Kind.
    pub kind: Kind,
    /// Series.
    pub series: Vec<Series>,
    /// A value to compare with, drawn as a dashed line.
    #[serde(default)]
    pub reference: Option<f64>,
}

/// Colours that people with any colour vision tell apart (Okabe and Ito). A page may put others in their place,
/// for a dark ground say, by setting `--series-1` to `--series-6`.
const PALETTE: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
/// How lines look from the second round of colours on; their points and their squares in the legend are hollow.
const DASHES: [&str; 2] = ["7 4", "2 3"];

/// The colour of a series. Those of later rounds are a shade off, and [`Plot::svg`] knows them by it.
fn colour(series: usize) -> RGBColor {
    let RGBColor(r, g, b) = PALETTE[series % PALETTE.len()];
    RGBColor(r, g + (series / PALETTE.len()).min(DASHES.len()) as u8, b)
}

const GREY: RGBColor = RGBColor(128, 128, 128);
/// The colour of lines that become dashed grey ones: the backend would draw each dash as a line.
const DASHED: RGBColor = RGBColor(128, 128, 129);
const SIZE: (u32, u32) = (760, 400);
/// Width of a character, roughly: no font is read.
const CHARACTER: f64 = 7.0;

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = std::result::Result<(), String>;

impl Plot {
    /// A histogram of some values in `bins` intervals of equal width, as bars that add up to 1.
    ///
    /// # Errors
    /// No values, values that are not finite, no bins.
    pub fn histogram(
        title: impl Into<String>,
        x: impl Into<String>,
        values: &[f64],
        bins: usize,
    ) -> Result<Self> {
        let title = title.into();
        if values.is_empty() || bins == 0 || values.iter().any(|value| !value.is_finite()) {
            let why = "a histogram needs values, all of them finite, and bins".into();
            return Err(PipelineError::Plot { title, why });
        }
        let (low, high) = extent(values.iter().copied());
        let width = (high - low) / bins as f64;
        let mut counts = vec![0usize; bins];
        for value in values {
            counts[(((value - low) / width) as usize).min(bins - 1)] += 1;
        }
        let edge = |bin: usize| number(low + width * bin as f64);
        let labels = (0..bins).map(|bin| format!("{} to {}", edge(bin), edge(bin + 1))).collect();
        let share = |(bin, count): (usize, &usize)| Point {
            x: bin as f64,
            y: *count as f64 / values.len() as f64,
            interval: None,
        };
        let points = counts.iter().enumerate().map(share).collect();
        Ok(Self {
            title,
            x: x.into(),
            y: "share".into(),
            kind: Kind::Bars { labels },
            series: vec![Series { name: "share".into(), points }],
            reference: None,
        })
    }

    /// The plot as an SVG image with a transparent ground.
    ///
    /// # Errors
    /// No points, points that are not finite numbers or beyond 1e100, a bar whose `x` is no label's index.
    pub fn svg(&self) -> Result<String> {
        let fail = |why: String| PipelineError::Plot { title: self.title.clone(), why };
        let points = || self.series.iter().flat_map(|series| &series.points);
        let ends = |point: &Point| {
            let (low, high) = point.interval.unwrap_or((point.y, point.y));
            [low, high, point.y]
        };
        if points().next().is_none() {
            return Err(fail("there are no points".into()));
        }
        let numbers = || points().flat_map(|point| [[point.x].as_slice(), &ends(point)].concat());
        if let Some(bad) = numbers().chain(self.reference).find(|number| !(number.abs() < 1e100)) {
            return Err(fail(format!("{bad} cannot be drawn")));
        }
        if let Kind::Bars { labels } = &self.kind
            && let Some(point) = points().find(|point| !(0..labels.len()).any(|at| at as f64 == point.x))
        {
            return Err(fail(format!("a bar at {}, of {} labels", point.x, labels.len())));
        }
        // Nothing is as long as a bar from 0, or a line above 0, says.
        let (low, high) = extent(points().flat_map(ends).chain(self.reference).chain([0.0]));
        let room = 0.06 * (high - low);
        let ys = (if low < 0.0 { low - room } else { low })..(if high > 0.0 { high + room } else { high });
        let mut out = String::new();
        {
            let root = SVGBackend::with_string(&mut out, SIZE).into_drawing_area();
            let drawn = self.heading(&root).and_then(|height| {
                let (_, root) = root.split_vertically(height);
                match &self.kind {
                    Kind::Lines => {
                        let (left, right) = extent(points().map(|point| point.x));
                        self.lines(&root, left..right, ys)
                    }
                    Kind::Bars { labels } => self.bars(&root, labels, ys),
                }
            });
            drawn.and_then(|()| root.present().map_err(|error| error.to_string())).map_err(fail)?;
        }
        let title = minijinja::HtmlEscape(&self.title);
        let head = format!("<svg role=\"img\" aria-label=\"{title}\" style=\"max-width:100%;height:auto\" ");
        // Text and axes take the page's colour.
        let mut out = out
            .replacen("<svg ", &head, 1)
            .replace("fill=\"#000000\"", "fill=\"currentColor\"")
            .replace("stroke=\"#000000\"", "stroke=\"currentColor\"")
            .replace("stroke=\"#808081\"", "stroke=\"#808080\" stroke-dasharray=\"6 4\"");
        for series in 0..PALETTE.len() * (1 + DASHES.len()) {
            let (round, index) = (series / PALETTE.len(), series % PALETTE.len());
            let hex = |RGBColor(r, g, b): RGBColor| format!("#{r:02X}{g:02X}{b:02X}");
            let (own, themed) = (hex(colour(series)), hex(PALETTE[index]));
            let themed = format!("var(--series-{},{themed})", index + 1);
            let (fill, stroke) = match round.checked_sub(1) {
                None => (format!("style=\"fill:{themed}\""), format!("style=\"stroke:{themed}\"")),
                Some(round) => (
                    format!("style=\"fill:none;stroke:{themed}\""),
                    format!("style=\"stroke:{themed};stroke-dasharray:{}\"", DASHES[round]),
                ),
            };
            out =
                out.replace(&format!("fill=\"{own}\""), &fill).replace(&format!("stroke=\"{own}\""), &stroke);
        }
        Ok(out)
    }

    /// The title and, where there is more than one series, the legend. Returns their height.
    fn heading(&self, root: &Area<'_>) -> std::result::Result<u32, String> {
        let text = |error: DrawingAreaErrorKind<_>| format!("{error}");
        let style = |size: u32| ("sans-serif", size).into_font().color(&BLACK);
        root.draw(&Text::new(self.title.as_str(), (16, 14), style(18))).map_err(text)?;
        let (mut x, mut y) = (16, 44);
        if self.series.len() < 2 {
            return Ok(y as u32 - 8);
        }
        for (series, color) in self.series.iter().zip((0..).map(colour)) {
            let width = 36 + (series.name.chars().count() as f64 * CHARACTER) as i32;
            if x > 16 && x + width > SIZE.0 as i32 - 16 {
                (x, y) = (16, y + 20);
            }
            root.draw(&Rectangle::new([(x, y), (x + 12, y + 10)], color.filled())).map_err(text)?;
            root.draw(&Text::new(series.name.as_str(), (x + 18, y - 1), style(14))).map_err(text)?;
            x += width;
        }
        Ok(y as u32 + 16)
    }

    fn lines(&self, root: &Area<'_>, xs: Range<f64>, ys: Range<f64>) -> Drawn {
        let text = |error: DrawingAreaErrorKind<_>| format!("{error}");
        let span = xs.clone();
        let mut chart = self.builder(root, 20).build_cartesian_2d(xs, ys).map_err(text)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.3))
            .axis_style(GREY)
            .label_style(("sans-serif", 14).into_font())
            .x_label_formatter(&|x| number(*x))
            .y_label_formatter(&|y| number(*y))
            .x_desc(&self.x)
            .y_desc(&self.y)
            .draw()
            .map_err(text)?;
        if let Some(reference) = self.reference {
            let ends = [(span.start, reference), (span.end, reference)];
            chart.draw_series(LineSeries::new(ends, DASHED)).map_err(text)?;
        }
        for (series, color) in self.series.iter().zip((0..).map(colour)) {
            let points = || series.points.iter().map(|point| (point.x, point.y));
            chart.draw_series(LineSeries::new(points(), color.stroke_width(2))).map_err(text)?;
            chart.draw_series(points().map(|point| Circle::new(point, 3, color.filled()))).map_err(text)?;
            let intervals = series.points.iter().filter_map(|point| Some((point.x, point.interval?)));
            whiskers(&mut chart, intervals, color)?;
        }
        Ok(())
    }

    fn bars(&self, root: &Area<'_>, labels: &[String], ys: Range<f64>) -> Drawn {
        let text = |error: DrawingAreaErrorKind<_>| format!("{error}");
        let count = labels.len().max(1);
        let slot = (f64::from(SIZE.0) - 90.0) / count as f64;
        let labels: Vec<Vec<String>> = labels.iter().map(|label| wrap(label, slot)).collect();
        let height = 15 * labels.iter().map(Vec::len).max().unwrap_or(1) as u32;
        let mut chart = self.builder(root, height).build_cartesian_2d(0.0..count as f64, ys).map_err(text)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.3))
            .axis_style(GREY)
            .label_style(("sans-serif", 14).into_font())
            .x_labels(0)
            .y_label_formatter(&|y| number(*y))
            .x_desc(&self.x)
            .y_desc(&self.y)
            .draw()
            .map_err(text)?;
        let plotting = chart.plotting_area().clone();
        for (at, lines) in labels.into_iter().enumerate() {
            let (x, y) = plotting.map_coordinate(&(at as f64 + 0.5, plotting.get_y_range().start));
            for (line, label) in lines.into_iter().enumerate() {
                let style = ("sans-serif", 13).into_font().color(&BLACK);
                let style = style.pos(Pos::new(HPos::Center, VPos::Top));
                label_below(root, label, (x, y + 6 + 15 * line as i32), style)?;
            }
        }
        if let Some(reference) = self.reference {
            let ends = [(0.0, reference), (count as f64, reference)];
            chart.draw_series(LineSeries::new(ends, DASHED)).map_err(text)?;
        }
        let width = 0.8 / self.series.len().max(1) as f64;
        for (index, (series, color)) in self.series.iter().zip((0..).map(colour)).enumerate() {
            let left = |point: &Point| point.x + 0.1 + index as f64 * width;
            let bar = |point: &Point| {
                Rectangle::new([(left(point), 0.0), (left(point) + 0.92 * width, point.y)], color.filled())
            };
            chart.draw_series(series.points.iter().map(bar)).map_err(text)?;
            let intervals =
                series.points.iter().filter_map(|point| Some((left(point) + 0.46 * width, point.interval?)));
            whiskers(&mut chart, intervals, BLACK)?;
        }
        Ok(())
    }

    /// A chart with room for labels of this height below it, and for the axes' descriptions.
    fn builder<'a, 'b>(&self, root: &'a Area<'b>, labels: u32) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
        let below = labels + if self.x.is_empty() { 10 } else { 30 };
        let mut builder = ChartBuilder::on(root);
        builder.margin(12).x_label_area_size(below).y_label_area_size(62);
        builder
    }
}

/// Draws a label at a place of the whole image.
fn label_below(root: &Area<'_>, label: String, at: (i32, i32), style: TextStyle<'_>) -> Drawn {
    let (left, top) = root.get_base_pixel();
    root.draw(&Text::new(label, (at.0 - left, at.1 - top), style)).map_err(|error| error.to_string())
}

/// Vertical bars with caps.
fn whiskers<'a, 'b: 'a>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    intervals: impl Iterator<Item = (f64, (f64, f64))>,
    color: RGBColor,
) -> Drawn {
    let text = |error: DrawingAreaErrorKind<_>| format!("{error}");
    let intervals: Vec<_> = intervals.collect();
    let caps = intervals.iter().flat_map(|&(x, (low, high))| [(x, low), (x, high)]);
    let cap = |at| EmptyElement::at(at) + PathElement::new([(-4, 0), (4, 0)], color.stroke_width(1));
    chart.draw_series(caps.map(cap)).map_err(text)?;
    let bar = |&(x, (low, high))| PathElement::new([(x, low), (x, high)], color.stroke_width(1));
    chart.draw_series(intervals.iter().map(bar)).map_err(text)?;
    Ok(())
}

/// The ends of some numbers, moved apart where they are too close for a scale.
fn extent(numbers: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = numbers.fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
    let largest = low.abs().max(high.abs());
    if high - low > 1e-9 * largest && high - low > 1e-100 {
        return (low, high);
    }
    let room = if largest > 1e-100 { 0.5 * largest } else { 0.5 };
    if low == 0.0 { (0.0, 2.0 * room) } else { (low - room, high + room) }
}

/// A number with as many digits as it needs, four at most where it is no large integer.
fn number(value: f64) -> String {
    let size = value.abs();
    if size < 1e-12 {
        return "0".into();
    }
    if !(1e-4..1e7).contains(&size) {
        return format!("{value:.2e}");
    }
    let digits = (3 - size.log10().floor() as i32).clamp(0, 7) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A label in lines that fit a width, as far as its words allow.
fn wrap(label: &str, width: f64) -> Vec<String> {
    let most = (width / CHARACTER).max(1.0) as usize;
    let mut lines: Vec<String> = Vec::new();
    for word in label.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= most => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(kind: Kind, points: &[(f64, f64)]) -> Plot {
        let points =
            points.iter().map(|&(x, y)| Point { x, y, interval: Some((y - 0.1, y + 0.1)) }).collect();
        Plot {
            title: "a < b & c".into(),
            x: "rows".into(),
            y: "ms".into(),
            kind,
            series: vec![Series { name: "one".into(), points }],
            reference: Some(1.0),
        }
    }

    #[test]
    fn draws_and_escapes() {
        for kind in [Kind::Lines, Kind::Bars { labels: vec!["x".into(), "y<z".into()] }] {
            let svg = plot(kind, &[(0.0, 1.0), (1.0, 2.0)]).svg().expect("drawable");
            assert!(
                svg.starts_with("<svg") && svg.contains("a &lt; b &amp; c") && !svg.contains("y<z"),
                "{svg}"
            );
        }
        assert!(plot(Kind::Lines, &[(1.0, 1.0)]).svg().is_ok(), "one point");
    }

    #[test]
    fn themes_can_change_colours() {
        let mut plot = plot(Kind::Lines, &[(0.0, 1.0), (1.0, 2.0)]);
        plot.series.push(Series { name: "two <".into(), ..plot.series[0].clone() });
        let svg = plot.svg().expect("drawable");
        assert!(
            svg.contains("style=\"stroke:var(--series-1,#0072B2)\"") && svg.contains("--series-2"),
            "{svg}"
        );
        assert!(!svg.contains("\"#0072B2\"") && !svg.contains("#000000"), "{svg}");
        assert!(
            svg.contains("two &lt;") && svg.contains("currentColor"),
            "a legend in the page's colour: {svg}"
        );
    }

    /// Thirteen series: two rounds of colours and the beginning of a third.
    #[test]
    fn series_beyond_the_palette_look_different() {
        let mut plot = plot(Kind::Lines, &[(0.0, 1.0), (1.0, 2.0)]);
        let first = plot.series[0].clone();
        plot.series = (0..13).map(|at| Series { name: format!("s{at}"), ..first.clone() }).collect();
        let svg = plot.svg().expect("drawable");
        for line in ["stroke:var(--series-1,#0072B2)", "stroke:var(--series-6,#56B4E9)"] {
            let own = format!("<polyline fill=\"none\" opacity=\"1\" style=\"{line}");
            assert_eq!(svg.matches(&format!("{own}\" stroke-width=\"2\"")).count(), 1, "{svg}");
            assert_eq!(svg.matches(&format!("{own};stroke-dasharray:7 4\" stroke-width=\"2\"")).count(), 1);
        }
        assert_eq!(svg.matches("stroke-dasharray:7 4\" stroke-width=\"2\"").count(), 6);
        assert_eq!(svg.matches("stroke-dasharray:2 3\" stroke-width=\"2\"").count(), 1);
        assert!(svg.contains("fill:none;stroke:var(--series-1,#0072B2)"));
        // No shade that only this file knows is left.
        assert!(!svg.contains("\"#0073B2\"") && !svg.contains("\"#0074B2\""), "{svg}");
    }

    #[test]
    fn any_scale_is_drawn() {
        // Scales so narrow or so wide that steps along them vanish in rounding.
        for points in [
            &[(1e17, 1.0), (1e17, 2.0)][..],
            &[(1e17, 1.0), (1e17 + 16.0, 2.0)],
            &[(0.0, 0.0)],
            &[(0.0, 5e-324), (5e-324, 1e-310)],
            &[(-1e99, -1e99), (1e99, 1e99)],
            &[(0.0, -3.0), (1.0, -5.0)],
            &[(1e-30, 1e-30), (2e-30, 2e-30)],
        ] {
            let mut plot = plot(Kind::Lines, points);
            plot.reference = None;
            plot.series[0].points.iter_mut().for_each(|point| point.interval = None);
            assert!(plot.svg().is_ok(), "{points:?}");
            plot.kind = Kind::Bars { labels: vec!["a".into(), "b".into()] };
            plot.series[0].points.iter_mut().zip([0.0, 1.0]).for_each(|(point, at)| point.x = at);
            assert!(plot.svg().is_ok(), "{points:?}");
        }
    }

    #[test]
    fn numbers_on_axes() {
        for (value, want) in [
            (0.0, "0"),
            (-0.0, "0"),
            (2.0, "2"),
            (0.1 + 0.2, "0.3"),
            (-1.25, "-1.25"),
            (1234.0, "1234"),
            (123_456.0, "123456"),
            (0.00025, "0.00025"),
            (1e9, "1.00e9"),
            (-3e-7, "-3.00e-7"),
        ] {
            assert_eq!(number(value), want);
        }
    }

    #[test]
    fn histograms_by_hand() {
        let plot = Plot::histogram("h", "x", &[0.0, 0.5, 1.0, 3.0, 4.0], 2).expect("drawable");
        let shares: Vec<f64> = plot.series[0].points.iter().map(|point| point.y).collect();
        assert_eq!(shares, [0.6, 0.4]);
        assert_eq!(plot.kind, Kind::Bars { labels: vec!["0 to 2".into(), "2 to 4".into()] });
        assert!(plot.svg().is_ok());
        let same = Plot::histogram("h", "x", &[7.0; 3], 4).expect("drawable");
        assert_eq!(same.series[0].points.iter().map(|point| point.y).sum::<f64>(), 1.0);
        assert!(Plot::histogram("h", "x", &[], 2).is_err() && Plot::histogram("h", "x", &[1.0], 0).is_err());
        assert!(Plot::histogram("h", "x", &[f64::NAN], 2).is_err());
    }

    #[test]
    fn labels_are_wrapped_between_words() {
        assert_eq!(wrap("math reasoning", 60.0), ["math", "reasoning"]);
        assert_eq!(wrap("math reasoning", 100.0), ["math reasoning"]);
        assert_eq!(wrap("a b c", 0.0), ["a", "b", "c"]);
        assert!(wrap(" ", 10.0).is_empty());
    }

    #[test]
    fn refuses_what_cannot_be_drawn() {
        assert!(plot(Kind::Lines, &[]).svg().is_err());
        assert!(plot(Kind::Lines, &[(0.0, f64::NAN)]).svg().is_err());
        assert!(plot(Kind::Lines, &[(f64::INFINITY, 0.0)]).svg().is_err());
        assert!(plot(Kind::Lines, &[(f64::MAX, 0.0)]).svg().is_err());
        for at in [0.5, -1.0, 1.0, 1e9] {
            let error =
                plot(Kind::Bars { labels: vec!["x".into()] }, &[(at, 1.0)]).svg().expect_err("no label");
            assert!(error.to_string().contains("of 1 labels"), "{error}");
        }
    }
}
