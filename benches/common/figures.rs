//! Figures over rounds. The rounds of a shared machine scatter, so it is medians that are told, and the range with them.

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

/// Not a number where there are no values, as are [`least`] and [`most`].
pub fn median(values: &[f64]) -> f64 {
    let values = sorted(values);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

pub fn least(values: &[f64]) -> f64 {
    sorted(values).first().copied().unwrap_or(f64::NAN)
}

pub fn most(values: &[f64]) -> f64 {
    sorted(values).last().copied().unwrap_or(f64::NAN)
}
