//! Plots, as SVG.

use crate::spread::Spread;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use std::path::Path;

const SIZE: (u32, u32) = (860, 420);
const FONT: &str = "sans-serif";

/// A line of a plot, or bars of one colour.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// How axes are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Both by factors: what is 0 has no place.
    Factors,
    /// Both evenly, from 0.
    Even,
}

/// Points with lines between them.
pub fn lines(file: &Path, title: &str, x: &str, y: &str, scale: Scale, lines: &[Line]) {
    let points = || lines.iter().flat_map(|line| &line.points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let positive = || points().map(of).filter(|value| *value > 0.0);
        let (min, max) = (positive().fold(f64::INFINITY, f64::min), positive().fold(0.0, f64::max));
        min.is_finite().then_some((min, max))
    };
    let (Some(xs), Some(ys)) = (range(|point| point.0), range(|point| point.1)) else {
        return;
    };
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE).expect("a drawing");
    let texts = (title, x, y);
    match scale {
        Scale::Factors => {
            // Above the lines there is room for their names.
            let (xs, ys) = (xs.0 / 1.3..xs.1 * 1.3, ys.0 / 1.3..ys.1 * 4.0);
            draw_lines(&root, texts, xs.log_scale(), ys.log_scale(), lines);
        }
        Scale::Even => draw_lines(&root, texts, 0.0..xs.1 * 1.03, 0.0..ys.1 * 1.2, lines),
    }
    root.present().unwrap_or_else(|e| panic!("{}: {e}", file.display()));
}

fn draw_lines<X, Y>(
    root: &DrawingArea<SVGBackend<'_>, Shift>,
    (title, x, y): (&str, &str, &str),
    xs: X,
    ys: Y,
    lines: &[Line],
) where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64> + Ranged<ValueType = f64>,
    Y::CoordDescType: ValueFormatter<f64> + Ranged<ValueType = f64>,
{
    let mut chart = ChartBuilder::on(root)
        .caption(title, (FONT, 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(xs, ys)
        .expect("a chart");
    let label = |value: &f64| short(*value);
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_label_formatter(&label)
        .y_label_formatter(&label)
        .light_line_style(WHITE)
        .draw()
        .expect("a mesh");
    for (nth, line) in lines.iter().enumerate() {
        let colour = Palette99::pick(nth).to_rgba();
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style).point_size(3))
            .expect("a line")
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    if lines.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2))
            .draw()
            .expect("a legend");
    }
}

/// Bars that stand together, one for each name; none where nothing was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    pub name: String,
    pub bars: Vec<Option<Spread>>,
}

/// Groups of bars, with a whisker from the smallest to the largest.
pub fn bars(file: &Path, title: &str, y: &str, names: &[String], groups: &[Group]) {
    let bars = groups.iter().flat_map(|group| &group.bars).flatten();
    let top = bars.map(|bar| bar.max).fold(0.0, f64::max) * 1.45;
    if top <= 0.0 {
        return;
    }
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE).expect("a drawing");
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 18))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..groups.len() as f64, 0.0..top)
        .expect("a chart");
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_desc(y)
        .y_label_formatter(&|value| short(*value))
        .light_line_style(WHITE)
        .draw()
        .expect("a mesh");
    let width = 0.84 / names.len().max(1) as f64;
    for (nth, name) in names.iter().enumerate() {
        let colour = Palette99::pick(nth).to_rgba();
        let placed = groups.iter().enumerate().filter_map(|(at, group)| {
            Some((at as f64 + 0.08 + width * nth as f64, (*group.bars.get(nth)?)?))
        });
        let placed: Vec<(f64, Spread)> = placed.collect();
        let rectangles = placed.iter().map(|(x, bar)| {
            Rectangle::new([(*x, 0.0), (x + width * 0.92, bar.median)], colour.filled())
        });
        chart
            .draw_series(rectangles)
            .expect("bars")
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
        let whiskers = placed.iter().map(|(x, bar)| {
            let middle = x + width * 0.46;
            PathElement::new([(middle, bar.min), (middle, bar.max)], BLACK.stroke_width(1))
        });
        chart.draw_series(whiskers).expect("whiskers");
    }
    let area = chart.plotting_area().clone();
    let style = TextStyle::from((FONT, 13)).color(&BLACK);
    for (at, group) in groups.iter().enumerate() {
        let (x, y) = area.map_coordinate(&(at as f64 + 0.08, 0.0));
        root.draw(&Text::new(group.name.clone(), (x, y + 8), &style)).expect("a label");
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .draw()
        .expect("a legend");
    drop(chart);
    root.present().unwrap_or_else(|e| panic!("{}: {e}", file.display()));
}

/// As a person writes it: 1k, 2.5M, 0.3.
pub fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        1e6.. => (value / 1e6, "M"),
        1e3.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = match scaled.abs() {
        10.0.. => format!("{scaled:.0}"),
        1.0.. => format!("{scaled:.1}"),
        _ => format!("{scaled:.2}"),
    };
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.25, "0.25"),
            (1.0, "1"),
            (2.5, "2.5"),
            (100.0, "100"),
            (1000.0, "1k"),
            (250_000.0, "250k"),
            (10_000_000.0, "10M"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
