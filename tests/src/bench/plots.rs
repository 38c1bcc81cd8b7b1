//! The results as pictures: throughput, processor time, and how latencies are distributed.
//!
//! Owns which pictures there are and how they look; drawing is `plotters`'. Each is an SVG file of
//! its own with a light background, because a document may be read on a dark one. A picture without
//! anything to show is not made.

use std::{ops::Range, path::Path};

use anyhow::{Context, Result, anyhow};
use plotters::{
    coord::ranged1d::{KeyPointHint, Ranged},
    prelude::{
        ChartBuilder, Color, IntoDrawingArea, IntoLogRange, LineSeries, PathElement, RGBColor,
        Rectangle, SVGBackend, SeriesLabelPosition, WHITE,
    },
    style::BLACK,
};

use super::{
    case::CASES,
    measure::{DOWNLOAD, OPEN, REQUEST, UPLOAD},
    results::{Number, Results},
};

/// A picture, before it is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plot {
    /// Of its file.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// For each case, a bar for downloads and one for uploads.
    Bars { number: Number, axis: &'static str },
    /// For each case, how many percent took at most so long.
    Distribution { metric: &'static str },
}

/// All that a run has something to show for.
pub(super) fn plots(results: &Results) -> Vec<Plot> {
    let shown = |plot: &&Plot| match plot.kind {
        Kind::Bars { number, .. } => !bars(results, number).is_empty(),
        Kind::Distribution { metric } => {
            results.distributions.iter().any(|one| one.metric == metric)
        }
    };
    PLOTS.iter().filter(shown).copied().collect()
}

const PLOTS: &[Plot] = &[
    Plot {
        name: "throughput.svg",
        title: "Throughput of one connection",
        kind: Kind::Bars {
            number: |sample| sample.gib_per_s,
            axis: "GiB per second",
        },
    },
    Plot {
        name: "cpu.svg",
        title: "Processor time of the whole machine, one connection",
        kind: Kind::Bars {
            number: |sample| sample.cpu_s_per_gib,
            axis: "CPU seconds per GiB",
        },
    },
    Plot {
        name: "request-latency.svg",
        title: "512 bytes and back on an open connection",
        kind: Kind::Distribution { metric: REQUEST },
    },
    Plot {
        name: "open-latency.svg",
        title: "Opening a connection, to the first byte back",
        kind: Kind::Distribution { metric: OPEN },
    },
];

impl Plot {
    /// Draws it into a file of the directory.
    pub(super) fn draw(&self, results: &Results, directory: &Path) -> Result<()> {
        let path = directory.join(self.name);
        let mut svg = String::new();
        match self.kind {
            Kind::Bars { number, axis } => {
                draw_bars(self.title, axis, &bars(results, number), &mut svg)
            }
            Kind::Distribution { metric } => {
                draw_distribution(self.title, &lines(results, metric), &mut svg)
            }
        }
        .with_context(|| format!("cannot draw {}", self.name))?;
        std::fs::write(&path, svg).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A case, and its numbers for downloads and uploads.
type Bar = (&'static str, [f64; 2]);

fn bars(results: &Results, number: Number) -> Vec<Bar> {
    let of = |case, metric| number(&results.row(case, metric, 1)?.sample);
    let cases = CASES.iter().map(|case| case.name);
    cases
        .filter_map(|case| Some((case, [of(case, DOWNLOAD)?, of(case, UPLOAD)?])))
        .collect()
}

/// A case, and its points: microseconds and percent.
type Line = (&'static str, Vec<(f64, f64)>);

fn lines(results: &Results, metric: &str) -> Vec<Line> {
    let all = results.distributions.iter();
    all.filter(|one| one.metric == metric)
        .map(|one| {
            let points = one.points.iter();
            #[expect(clippy::cast_precision_loss, reason = "a percentage")]
            let points = points.map(|(percent, us)| (*us, *percent as f64));
            (one.case, points.collect())
        })
        .collect()
}

fn draw_bars(title: &str, axis: &str, bars: &[Bar], svg: &mut String) -> Result<()> {
    let highest = bars.iter().flat_map(|(_, pair)| pair).copied();
    let highest = highest.fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(anything)?;
    let across = Slots(bars.len());
    let mut chart = ChartBuilder::on(&area)
        .caption(title, (FONT, TITLE_SIZE))
        .margin(MARGIN)
        .x_label_area_size(LABELS_BELOW)
        .y_label_area_size(LABELS_BESIDE)
        .build_cartesian_2d(across, 0.0..highest * 1.1)
        .map_err(anything)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(bars.len())
        .x_label_formatter(&|at: &f64| name_at(bars, *at))
        .x_label_style((FONT, LABEL_SIZE))
        .y_label_style((FONT, LABEL_SIZE))
        .y_desc(axis)
        .draw()
        .map_err(anything)?;
    for (which, (name, color)) in BAR_COLORS.into_iter().enumerate() {
        let drawn = bars.iter().enumerate().map(|(at, (_, pair))| {
            let height = pair.get(which).copied().unwrap_or_default();
            let left = whole(at) + 0.1 + 0.4 * whole(which);
            Rectangle::new([(left, 0.0), (left + 0.38, height)], color.filled())
        });
        chart
            .draw_series(drawn)
            .map_err(anything)?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 16, y + 5)], color.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, LABEL_SIZE))
        .draw()
        .map_err(anything)?;
    area.present().map_err(anything)
}

fn draw_distribution(title: &str, lines: &[Line], svg: &mut String) -> Result<()> {
    let all = || {
        lines
            .iter()
            .flat_map(|(_, points)| points)
            .map(|(us, _)| *us)
    };
    let least = all().fold(f64::MAX, f64::min).max(1.0);
    let most = all().fold(least * 1.1, f64::max);
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(anything)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, (FONT, TITLE_SIZE))
        .margin(MARGIN)
        .x_label_area_size(LABELS_BELOW)
        .y_label_area_size(LABELS_BESIDE)
        .build_cartesian_2d((least * 0.9..most * 1.1).log_scale(), 0.0..100.0)
        .map_err(anything)?;
    chart
        .configure_mesh()
        .x_labels(12)
        .x_label_formatter(&|us: &f64| format!("{us:.0}"))
        .x_label_style((FONT, LABEL_SIZE))
        .y_label_style((FONT, LABEL_SIZE))
        .x_desc("microseconds")
        .y_desc("percent took at most so long")
        .draw()
        .map_err(anything)?;
    for ((name, points), color) in lines.iter().zip(LINE_COLORS.iter().cycle()) {
        let style = color.stroke_width(2);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))
            .map_err(anything)?
            .label(*name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, LABEL_SIZE))
        .draw()
        .map_err(anything)?;
    area.present().map_err(anything)
}

/// An axis with a slot of width 1 for each case, and a name in the middle of each.
#[derive(Clone, Copy, Debug)]
struct Slots(usize);

impl Ranged for Slots {
    type FormatOption = plotters::coord::ranged1d::NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = value / whole(self.0.max(1));
        #[expect(clippy::cast_possible_truncation, reason = "between two pixels")]
        let at = (f64::from(to - from) * share).round() as i32;
        from + at
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        (0..self.0).map(|slot| whole(slot) + 0.5).collect()
    }

    fn range(&self) -> Range<f64> {
        0.0..whole(self.0)
    }
}

impl plotters::coord::ranged1d::ValueFormatter<f64> for Slots {}

fn name_at(bars: &[Bar], at: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the middle of a slot"
    )]
    let slot = at as usize;
    bars.get(slot)
        .map_or_else(String::new, |(name, _)| (*name).to_owned())
}

#[expect(clippy::cast_precision_loss, reason = "a few")]
fn whole(number: usize) -> f64 {
    number as f64
}

/// The library's errors borrow from the picture.
fn anything(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}

const SIZE: (u32, u32) = (900, 420);
const FONT: &str = "sans-serif";
const TITLE_SIZE: i32 = 20;
const LABEL_SIZE: i32 = 13;
const MARGIN: i32 = 12;
const LABELS_BELOW: i32 = 46;
const LABELS_BESIDE: i32 = 60;

/// Told apart by those who do not see all colours, too (Okabe and Ito).
const BAR_COLORS: [(&str, RGBColor); 2] = [
    (DOWNLOAD, RGBColor(0, 114, 178)),
    (UPLOAD, RGBColor(230, 159, 0)),
];
const LINE_COLORS: [RGBColor; 8] = [
    RGBColor(0, 0, 0),
    RGBColor(150, 150, 150),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
    RGBColor(0, 158, 115),
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
];

#[cfg(test)]
mod tests {
    use super::{
        super::{
            case::{PLAIN_TCP, SESSION},
            measure::Sample,
            results::{Distribution, Row},
        },
        *,
    };
    use crate::latency::Latencies;

    fn results() -> Results {
        let mut results = Results::default();
        for case in [PLAIN_TCP, SESSION] {
            for metric in [DOWNLOAD, UPLOAD] {
                results.rows.push(Row {
                    case,
                    metric,
                    streams: 1,
                    sample: Sample {
                        gib_per_s: Some(2.5),
                        cpu_s_per_gib: Some(0.5),
                        ..Sample::default()
                    },
                    ..Row::default()
                });
            }
            let mut latencies = Latencies::default();
            for us in 50..500 {
                latencies.add(std::time::Duration::from_micros(us));
            }
            let one = Distribution::of(case, REQUEST, &latencies);
            results.distributions.push(one);
        }
        results
    }

    #[test]
    fn each_picture_that_has_something_to_show_is_a_file_that_names_the_cases() {
        let place = tempfile::tempdir().unwrap();
        let results = results();
        let all = plots(&results);
        let names: Vec<_> = all.iter().map(|plot| plot.name).collect();
        assert_eq!(names, ["throughput.svg", "cpu.svg", "request-latency.svg"]);
        for plot in all {
            plot.draw(&results, place.path()).unwrap();
            let svg = std::fs::read_to_string(place.path().join(plot.name)).unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
            for text in [plot.title, PLAIN_TCP, SESSION] {
                assert!(svg.contains(text), "{text} in {}", plot.name);
            }
        }
    }
}
