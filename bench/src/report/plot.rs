//! A picture of each row: a bar for each contestant, as long as its median, with its range across.

use plotters::prelude::*;

use super::{Entry, Range, Row};
use crate::contest::Role;

const WIDTH: u32 = 720;
const BAR_HEIGHT: u32 = 34;
/// Title, axis and its label.
const FRAME_HEIGHT: u32 = 96;
const NAMES_WIDTH: u32 = 130;
/// Room behind the longest range.
const SPARE: f64 = 1.08;

/// Name of a row's picture.
pub(super) fn file_name(row: &Row) -> String {
    format!("{}.svg", row.name)
}

/// Whether there is anything to draw.
pub(super) fn has_bars(row: &Row) -> bool {
    !bars(row).is_empty()
}

/// The picture, or nothing where nothing was measured.
pub(super) fn svg(row: &Row) -> anyhow::Result<Option<String>> {
    let Some(table) = row.main_table() else { return Ok(None) };
    let bars = bars(row);
    if bars.is_empty() {
        return Ok(None);
    }
    let mut drawing = String::new();
    {
        let height = FRAME_HEIGHT + BAR_HEIGHT * u32::try_from(bars.len())?;
        let area = SVGBackend::with_string(&mut drawing, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        let begin = bars.iter().map(|(_, range)| range.min).fold(0.0, f64::min) * SPARE;
        let end = bars.iter().map(|(_, range)| range.max).fold(f64::MIN_POSITIVE, f64::max) * SPARE;
        let mut chart = ChartBuilder::on(&area)
            .caption(format!("{}: {}", row.name, row.title), ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(NAMES_WIDTH)
            .build_cartesian_2d(begin..end, (0..bars.len()).into_segmented())?;
        let name = |at: &SegmentValue<usize>| match at {
            SegmentValue::CenterOf(index) => {
                bars.get(*index).map_or_else(String::new, |(entry, _)| entry.contestant.name().to_owned())
            }
            SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(bars.len())
            .y_label_formatter(&name)
            .x_desc(format!("{} {}", table.figure.title(), table.figure.unit()))
            .draw()?;
        for (index, (entry, range)) in bars.iter().enumerate() {
            let bar = [(0.0, SegmentValue::Exact(index)), (range.median, SegmentValue::Exact(index + 1))];
            let mut bar = Rectangle::new(bar, color(entry).filled());
            bar.set_margin(6, 6, 0, 0);
            chart.draw_series([bar])?;
            let middle = SegmentValue::CenterOf(index);
            chart.draw_series([PathElement::new(
                vec![(range.min, middle.clone()), (range.max, middle)],
                BLACK,
            )])?;
        }
        area.present()?;
    }
    Ok(Some(drawing))
}

/// The last contestant first, since the axis goes upwards.
fn bars(row: &Row) -> Vec<(&Entry, Range)> {
    let entries = row.main_table().map_or(&[][..], |table| &table.entries);
    let counting = entries.iter().filter(|entry| entry.counts);
    counting.rev().filter_map(|entry| Some((entry, entry.range?))).collect()
}

fn color(entry: &Entry) -> RGBColor {
    match entry.contestant.role() {
        Role::Ours => RGBColor(200, 60, 50),
        Role::Rival => RGBColor(70, 110, 180),
        Role::Relay => RGBColor(170, 170, 170),
        Role::Floor => RGBColor(110, 110, 110),
    }
}
