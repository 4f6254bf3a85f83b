//! Plots as SVG.

use plotters::coord::ranged1d::SegmentValue;
use plotters::prelude::*;

/// Stands for the page's own color of text while a plot is drawn.
const INK: RGBColor = RGBColor(1, 2, 3);
/// That color in the SVG.
pub(super) const INK_TEXT: &str = "#010203";
/// Seen on white and on black.
const COLORS: [RGBColor; 10] = [
    RGBColor(0x3b, 0x82, 0xc4),
    RGBColor(0xe0, 0x7b, 0x2e),
    RGBColor(0x3f, 0xa3, 0x5c),
    RGBColor(0xd2, 0x4f, 0x56),
    RGBColor(0x8d, 0x6c, 0xc9),
    RGBColor(0x9c, 0x72, 0x4f),
    RGBColor(0xd0, 0x6b, 0xb0),
    RGBColor(0x7f, 0x88, 0x91),
    RGBColor(0xa8, 0xa6, 0x2a),
    RGBColor(0x2b, 0xa9, 0xb8),
];
const WIDTH: u32 = 940;
const TEXT: (&str, u32) = ("sans-serif", 14);

/// Bars that lie, one group of them for each label.
#[derive(Debug)]
pub(crate) struct Bars {
    /// What each group is.
    pub labels: Vec<String>,
    /// What each bar in a group is.
    pub names: Vec<String>,
    /// A list for each name, with a value for each label.
    pub values: Vec<Vec<f64>>,
    /// Behind the numbers of the axis.
    pub unit: &'static str,
}

/// Lines over time or another number.
#[derive(Debug)]
pub(crate) struct Lines {
    /// Each with its name.
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
    /// Whether the lower axis has seconds since 1970.
    pub moments: bool,
    /// A level to look at.
    pub mark: Option<f64>,
}

/// The color of a name, as HTML has it.
pub(super) fn color_of(index: usize) -> String {
    let RGBColor(red, green, blue) = COLORS[index % COLORS.len()];
    format!("#{red:02x}{green:02x}{blue:02x}")
}

impl Bars {
    /// Draws them.
    pub(crate) fn svg(&self) -> Result<String, String> {
        let most = self.values.iter().flatten().copied().fold(0.0, f64::max);
        let most = if most > 0.0 { most * 1.05 } else { 1.0 };
        let height = 50 + self.labels.len() * (12 + 14 * self.names.len());
        let mut svg = String::new();
        self.draw(&mut svg, most, u32::try_from(height).unwrap_or(u32::MAX))
            .map_err(|error| error.to_string())?;
        Ok(svg.replace(INK_TEXT, "currentColor"))
    }

    fn draw(
        &self,
        svg: &mut String,
        most: f64,
        height: u32,
    ) -> Result<(), Box<dyn std::error::Error + '_>> {
        let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
        // The axis goes upwards, and the first label and the first name are to stand on top.
        let from_top = |index: usize| self.labels.len().saturating_sub(index + 1);
        let label = |at: &SegmentValue<usize>| match at {
            SegmentValue::CenterOf(index) if *index < self.labels.len() => {
                self.labels[from_top(*index)].clone()
            }
            _ => String::new(),
        };
        let mut chart = ChartBuilder::on(&root)
            .margin(6)
            .margin_right(30)
            .x_label_area_size(28)
            .y_label_area_size(190)
            .build_cartesian_2d(0.0..most, (0..self.labels.len()).into_segmented())?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .bold_line_style(INK.mix(0.15))
            .light_line_style(TRANSPARENT)
            .axis_style(INK.mix(0.4))
            .label_style(TEXT.into_font().color(&INK))
            .y_labels(self.labels.len() + 1)
            .y_label_formatter(&label)
            .x_label_formatter(&|value| format!("{}{}", short(*value), self.unit))
            .draw()?;
        let bars = u32::try_from(self.names.len()).unwrap_or(1);
        for (number, values) in (0..bars).zip(&self.values) {
            let (above, below) = (6 + 14 * number, 6 + 14 * (bars - 1 - number));
            let color = COLORS[number as usize % COLORS.len()];
            chart.draw_series(values.iter().enumerate().map(|(index, value)| {
                let corners = [
                    (0.0, SegmentValue::Exact(from_top(index))),
                    (*value, SegmentValue::Exact(from_top(index) + 1)),
                ];
                let mut bar = Rectangle::new(corners, color.filled());
                bar.set_margin(above, below, 0, 0);
                bar
            }))?;
        }
        root.present()?;
        Ok(())
    }
}

impl Lines {
    /// Draws them.
    pub(crate) fn svg(&self) -> Result<String, String> {
        let mut svg = String::new();
        self.draw(&mut svg).map_err(|error| error.to_string())?;
        Ok(svg.replace(INK_TEXT, "currentColor"))
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error + '_>> {
        let points = || self.lines.iter().flat_map(|(_, points)| points);
        let from = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
        let until = points()
            .map(|point| point.0)
            .fold(f64::NEG_INFINITY, f64::max);
        let most = points()
            .map(|point| point.1)
            .chain(self.mark)
            .fold(0.0, f64::max);
        let (from, until) = if from < until {
            (from, until)
        } else {
            (0.0, 1.0)
        };
        let most = if most > 0.0 { most * 1.05 } else { 1.0 };
        let root = SVGBackend::with_string(svg, (WIDTH, 320)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(6)
            .margin_right(30)
            .x_label_area_size(28)
            .y_label_area_size(60)
            .build_cartesian_2d(from..until, 0.0..most)?;
        chart
            .configure_mesh()
            .bold_line_style(INK.mix(0.15))
            .light_line_style(TRANSPARENT)
            .axis_style(INK.mix(0.4))
            .label_style(TEXT.into_font().color(&INK))
            .x_labels(if self.moments { 7 } else { 12 })
            .x_label_formatter(&|value| self.below(*value))
            .y_label_formatter(&|value| short(*value))
            .draw()?;
        for (index, (_, points)) in self.lines.iter().enumerate() {
            let style = COLORS[index % COLORS.len()].stroke_width(2);
            chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
        }
        if let Some(mark) = self.mark {
            chart.draw_series(LineSeries::new(
                [(from, mark), (until, mark)],
                INK.mix(0.6).stroke_width(1),
            ))?;
        }
        root.present()?;
        Ok(())
    }

    fn below(&self, value: f64) -> String {
        if self.moments {
            // Month, day, hour and minute.
            crate::log::time::format(value as i64)[5..16].replace('T', " ")
        } else {
            short(value)
        }
    }
}

/// A number of an axis.
fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 1e9 => format!("{}G", value / 1e9),
        large if large >= 1e6 => format!("{}M", value / 1e6),
        large if large >= 1e4 => format!("{}k", value / 1e3),
        // Steps of an axis are round numbers; what stands behind is of their sums.
        _ => format!("{}", (value * 1e4).round() / 1e4),
    }
}
