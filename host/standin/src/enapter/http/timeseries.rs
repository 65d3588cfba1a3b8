//! Samples as a table: one row for each step of time, one column for each
//! attribute of a device.
//!
//! Pure. The form is that of the platform's CSV.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::Value;

use sandgate_manifest::Type;

/// How the values of one step become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Aggregation {
    /// The last one. What the platform takes is not public.
    #[default]
    Auto,
    /// The mean of numbers.
    Avg,
    /// The last one.
    Last,
    /// The smallest number.
    Min,
    /// The largest number.
    Max,
    /// Whether any was true.
    BoolOr,
}

/// One attribute.
#[derive(Debug)]
pub(super) struct Column {
    label: String,
    kind: Option<Type>,
    aggregation: Aggregation,
}

impl Column {
    /// Makes a column; without a declared type its values tell it.
    pub(super) fn new(label: String, kind: Option<Type>, aggregation: Aggregation) -> Column {
        Column { label, kind, aggregation }
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct Table {
    from: u64,
    to: u64,
    step: u64,
    columns: Vec<Column>,
    /// The values of each step and column, as they came: timestamp and value.
    cells: BTreeMap<u64, BTreeMap<usize, Vec<(u64, Value)>>>,
}

impl Table {
    /// Makes an empty table from a second up to, and without, another.
    pub(super) fn new(from: u64, to: u64, step: u64) -> Table {
        Table { from, to, step: step.max(1), columns: Vec::new(), cells: BTreeMap::new() }
    }

    /// How many columns there are.
    pub(super) fn columns(&self) -> usize {
        self.columns.len()
    }

    /// Adds a column.
    pub(super) fn add(&mut self, column: Column) {
        self.columns.push(column);
    }

    /// Whether a second lies in the table's time.
    pub(super) fn covers(&self, timestamp: u64) -> bool {
        (self.from..self.to).contains(&timestamp)
    }

    /// Adds a value.
    pub(super) fn put(&mut self, column: usize, timestamp: u64, value: Value) {
        if value.is_null() {
            return;
        }
        let step = timestamp - timestamp % self.step;
        self.cells.entry(step).or_default().entry(column).or_default().push((timestamp, value));
    }

    /// The columns' types, joined by commas.
    pub(super) fn types(&self) -> String {
        let of = |(index, column): (usize, &Column)| match column.kind {
            _ if column.aggregation == Aggregation::Avg => "float",
            Some(Type::Boolean) => "boolean",
            Some(Type::Integer) => "integer",
            Some(Type::Float) => "float",
            Some(Type::ArrayOfStrings | Type::Alerts) => "string_array",
            Some(Type::String | Type::Json) => "string",
            None => self.seen(index),
        };
        self.columns.iter().enumerate().map(of).collect::<Vec<_>>().join(",")
    }

    /// The narrowest type that all values of a column have.
    fn seen(&self, column: usize) -> &'static str {
        let values = || self.cells.values().filter_map(|row| row.get(&column)).flatten().map(|(_, value)| value);
        let all = |fits: fn(&Value) -> bool| values().all(fits);
        match () {
            () if values().next().is_none() => "string",
            () if all(|value| value.is_i64() || value.is_u64()) => "integer",
            () if all(Value::is_number) => "float",
            () if all(Value::is_boolean) => "boolean",
            () if all(|value| value.as_array().is_some_and(|list| list.iter().all(Value::is_string))) => "string_array",
            () => "string",
        }
    }

    /// The table as CSV, with a head line.
    pub(super) fn csv(&self) -> String {
        let mut text = String::from("ts");
        for column in &self.columns {
            text.push(',');
            text.push_str(&field(&column.label));
        }
        text.push('\n');
        for (step, row) in &self.cells {
            let _ = write!(text, "{step}");
            for (index, column) in self.columns.iter().enumerate() {
                let value = row.get(&index).and_then(|values| aggregate(column.aggregation, values));
                text.push(',');
                text.push_str(&field(&value.map(word).unwrap_or_default()));
            }
            text.push('\n');
        }
        text
    }
}

/// One value out of some; none when there is none that fits.
fn aggregate(aggregation: Aggregation, values: &[(u64, Value)]) -> Option<Value> {
    let numbers = || values.iter().filter_map(|(_, value)| Some((value.as_f64()?, value)));
    match aggregation {
        // Of equal times the one that came last.
        Aggregation::Auto | Aggregation::Last => values.iter().max_by_key(|(time, _)| *time).map(|(_, v)| v.clone()),
        Aggregation::Min => numbers().min_by(|one, two| one.0.total_cmp(&two.0)).map(|(_, value)| value.clone()),
        Aggregation::Max => numbers().max_by(|one, two| one.0.total_cmp(&two.0)).map(|(_, value)| value.clone()),
        Aggregation::Avg => {
            let (count, sum) = numbers().fold((0.0, 0.0), |(count, sum), (number, _)| (count + 1.0, sum + number));
            (count > 0.0).then(|| Value::from(sum / count))
        }
        Aggregation::BoolOr => {
            let mut truths = values.iter().filter_map(|(_, value)| value.as_bool()).peekable();
            truths.peek().is_some().then(|| Value::from(truths.any(|truth| truth)))
        }
    }
}

fn word(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// A CSV field, quoted where it must be.
fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_of_one_step_become_one_as_asked() {
        for (aggregation, expected) in [
            (Aggregation::Auto, "2"),
            (Aggregation::Last, "2"),
            (Aggregation::Min, "1"),
            (Aggregation::Max, "6"),
            (Aggregation::Avg, "3.0"),
            (Aggregation::BoolOr, ""),
        ] {
            let mut table = Table::new(0, 100, 60);
            table.add(Column::new("x".into(), None, aggregation));
            // The one in the middle came late.
            for (timestamp, value) in [(60, json!(1)), (65, json!(2)), (62, json!(6)), (63, json!(null))] {
                table.put(0, timestamp, value);
            }
            assert_eq!(table.csv(), format!("ts,x\n60,{expected}\n"), "{aggregation:?}");
        }
        let truths = |values: &[bool]| {
            let values: Vec<_> = values.iter().map(|value| (0, json!(value))).collect();
            aggregate(Aggregation::BoolOr, &values)
        };
        assert_eq!(
            (truths(&[false, true]), truths(&[false]), truths(&[])),
            (Some(json!(true)), Some(json!(false)), None)
        );
    }

    #[test]
    fn columns_have_types_and_fields_are_quoted() {
        let mut table = Table::new(10, 20, 1);
        let columns = [json!(1), json!(1.5), json!(true), json!("a,\"b\"\n"), json!(["a"]), json!({"a": 1})];
        for (index, value) in columns.into_iter().enumerate() {
            table.add(Column::new(format!("c{index}"), None, Aggregation::Auto));
            table.put(index, 12, value);
        }
        table.add(Column::new("declared".into(), Some(Type::Float), Aggregation::Auto));
        assert_eq!(table.types(), "integer,float,boolean,string,string_array,string,float");
        let row = "12,1,1.5,true,\"a,\"\"b\"\"\n\",\"[\"\"a\"\"]\",\"{\"\"a\"\":1}\",";
        assert_eq!(table.csv(), format!("ts,c0,c1,c2,c3,c4,c5,declared\n{row}\n"));
        assert!(table.covers(10) && table.covers(19) && !table.covers(20) && !table.covers(9));
    }
}
