//! Long tables in Parquet files.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::Field;

use super::read::{Long, open};
use crate::Result;

pub(super) fn fill(long: Long, path: &Path) -> Result<Long> {
    let file = open(path)?;
    let empty = Long::votes(path);
    // The reader of a damaged file may panic in its depths; to whoever passed the file that is one more format error.
    let read = catch_unwind(AssertUnwindSafe(move || rows(long, file)));
    read.unwrap_or_else(|_| Err("the file is damaged".into())).map_err(|why| empty.format(why))
}

fn rows(mut long: Long, file: std::fs::File) -> Result<Long, String> {
    let reader = SerializedFileReader::new(file).map_err(|error| error.to_string())?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let header: Vec<String> =
        schema.columns().iter().map(|column| column.path().string().to_lowercase()).collect();
    let places = long.columns(&header)?;
    for (number, row) in reader.get_row_iter(None).map_err(|error| error.to_string())?.enumerate() {
        let at = |why: String| format!("row {}: {why}", number + 1);
        let row = row.map_err(|error| at(error.to_string()))?;
        let fields: Vec<&Field> = row.get_column_iter().map(|(_, field)| field).collect();
        let text = |place: usize| -> Result<String, String> {
            Ok(match fields.get(place) {
                Some(Field::Str(text)) => text.clone(),
                Some(Field::Bool(value)) => value.to_string(),
                Some(Field::Byte(value)) => value.to_string(),
                Some(Field::Short(value)) => value.to_string(),
                Some(Field::Int(value)) => value.to_string(),
                Some(Field::Long(value)) => value.to_string(),
                Some(Field::UByte(value)) => value.to_string(),
                Some(Field::UShort(value)) => value.to_string(),
                Some(Field::UInt(value)) => value.to_string(),
                Some(Field::ULong(value)) => value.to_string(),
                Some(Field::Float(value)) => value.to_string(),
                Some(Field::Double(value)) => value.to_string(),
                Some(Field::Bytes(bytes)) => {
                    std::str::from_utf8(bytes.data()).map_err(|_| "not UTF-8".to_owned())?.to_owned()
                }
                Some(Field::Null) | None => return Err("a value is missing".into()),
                Some(_) => return Err("a value is neither a text nor a number".into()),
            })
        };
        let [question, worker, answer] = places;
        let fields = (|| Ok::<_, String>([text(question)?, text(worker)?, text(answer)?]))().map_err(at)?;
        long.push(&fields[0], &fields[1], &fields[2]).map_err(at)?;
    }
    Ok(long)
}
