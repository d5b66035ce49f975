//! Plots as data, drawn as SVG.

use plotters::prelude::*;
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

/// Colours that people with any colour vision tell apart, on white and on black.
const PALETTE: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
const GREY: RGBColor = RGBColor(128, 128, 128);

impl Plot {
    /// The plot as an SVG image with a transparent ground.
    ///
    /// # Errors
    /// No points, or points that are not finite numbers.
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
        if points().any(|point| !point.x.is_finite() || ends(point).iter().any(|end| !end.is_finite())) {
            return Err(fail("a point is not a finite number".into()));
        }
        let ys = points().flat_map(ends).chain(self.reference);
        let (low, high) = ys.fold((0.0f64, f64::MIN), |(low, high), y| (low.min(y), high.max(y)));
        let high = if high > low { high + 0.08 * (high - low) } else { low + 1.0 };
        let mut out = String::new();
        {
            let root = SVGBackend::with_string(&mut out, (760, 400)).into_drawing_area();
            let drawn = match &self.kind {
                Kind::Lines => {
                    let xs = points().map(|point| point.x);
                    let (left, right) = xs.fold((f64::MAX, f64::MIN), |(l, r), x| (l.min(x), r.max(x)));
                    let right = if right > left { right } else { left + 1.0 };
                    self.lines(&root, left..right, low..high)
                }
                Kind::Bars { labels } => self.bars(&root, labels, low..high),
            };
            drawn.and_then(|()| root.present().map_err(|error| error.to_string())).map_err(fail)?;
        }
        // Text and axes take the page's colour.
        Ok(out
            .replacen("<svg ", "<svg role=\"img\" style=\"max-width:100%;height:auto\" ", 1)
            .replace("fill=\"#000000\"", "fill=\"currentColor\"")
            .replace("stroke=\"#000000\"", "stroke=\"currentColor\""))
    }

    fn lines(
        &self,
        root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
        xs: std::ops::Range<f64>,
        ys: std::ops::Range<f64>,
    ) -> std::result::Result<(), String> {
        let text = |error: DrawingAreaErrorKind<_>| format!("{error}");
        let span = xs.clone();
        let mut chart = builder(root, &self.title).build_cartesian_2d(xs, ys).map_err(text)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.3))
            .axis_style(GREY)
            .label_style(("sans-serif", 14).into_font())
            .x_desc(&self.x)
            .y_desc(&self.y)
            .draw()
            .map_err(text)?;
        if let Some(reference) = self.reference {
            let ends = [(span.start, reference), (span.end, reference)];
            chart.draw_series(DashedLineSeries::new(ends, 6, 4, GREY.stroke_width(1))).map_err(text)?;
        }
        for (series, color) in self.series.iter().zip(PALETTE.iter().cycle()) {
            let color = *color;
            let points = || series.points.iter().map(|point| (point.x, point.y));
            chart
                .draw_series(LineSeries::new(points(), color.stroke_width(2)))
                .map_err(text)?
                .label(&series.name)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], color.filled()));
            chart.draw_series(points().map(|point| Circle::new(point, 3, color.filled()))).map_err(text)?;
            let bars = series.points.iter().filter_map(|point| Some((point.x, point.interval?)));
            let bars =
                bars.map(|(x, (low, high))| PathElement::new([(x, low), (x, high)], color.stroke_width(1)));
            chart.draw_series(bars).map_err(text)?;
        }
        legend(&mut chart)
    }

    fn bars(
        &self,
        root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
        labels: &[String],
        ys: std::ops::Range<f64>,
    ) -> std::result::Result<(), String> {
        let text = |error: DrawingAreaErrorKind<_>| format!("{error}");
        let count = labels.len().max(1);
        let mut chart = builder(root, &self.title).build_cartesian_2d(0.0..count as f64, ys).map_err(text)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.3))
            .axis_style(GREY)
            .label_style(("sans-serif", 14).into_font())
            .x_labels(0)
            .y_desc(&self.y)
            .draw()
            .map_err(text)?;
        let plotting = chart.plotting_area().clone();
        for (at, label) in labels.iter().enumerate() {
            let (x, y) = plotting.map_coordinate(&(at as f64 + 0.5, plotting.get_y_range().start));
            let style = ("sans-serif", 13).into_font().color(&BLACK);
            let position = plotters::style::text_anchor::Pos::new(
                plotters::style::text_anchor::HPos::Center,
                plotters::style::text_anchor::VPos::Top,
            );
            root.draw(&Text::new(label.clone(), (x, y + 6), style.pos(position))).map_err(text)?;
        }
        if let Some(reference) = self.reference {
            let ends = [(0.0, reference), (count as f64, reference)];
            chart.draw_series(DashedLineSeries::new(ends, 6, 4, GREY.stroke_width(1))).map_err(text)?;
        }
        let width = 0.8 / self.series.len().max(1) as f64;
        for (index, (series, color)) in self.series.iter().zip(PALETTE.iter().cycle()).enumerate() {
            let color = *color;
            let left = |point: &Point| point.x + 0.1 + index as f64 * width;
            chart
                .draw_series(series.points.iter().map(|point| {
                    Rectangle::new(
                        [(left(point), 0.0), (left(point) + 0.92 * width, point.y)],
                        color.mix(0.85).filled(),
                    )
                }))
                .map_err(text)?
                .label(&series.name)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], color.filled()));
            let bars =
                series.points.iter().filter_map(|point| Some((left(point) + 0.46 * width, point.interval?)));
            let bars =
                bars.map(|(x, (low, high))| PathElement::new([(x, low), (x, high)], BLACK.stroke_width(1)));
            chart.draw_series(bars).map_err(text)?;
        }
        legend(&mut chart)
    }
}

fn builder<'a, 'b>(
    root: &'a DrawingArea<SVGBackend<'b>, plotters::coord::Shift>,
    title: &str,
) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(root);
    builder.caption(title, ("sans-serif", 18)).margin(12).x_label_area_size(46).y_label_area_size(62);
    builder
}

fn legend<'a, 'b: 'a, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>,
) -> std::result::Result<(), String>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(TRANSPARENT)
        .border_style(TRANSPARENT)
        .label_font(("sans-serif", 14))
        .draw()
        .map_err(|error| format!("{error}"))
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
    fn refuses_what_cannot_be_drawn() {
        assert!(plot(Kind::Lines, &[]).svg().is_err());
        assert!(plot(Kind::Lines, &[(0.0, f64::NAN)]).svg().is_err());
        assert!(plot(Kind::Lines, &[(f64::INFINITY, 0.0)]).svg().is_err());
    }
}
