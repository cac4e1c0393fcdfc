//! The types of DMS, and PostgreSQL's in their place.

/// A type to cast to, without its modifiers, or why there is none.
pub fn to_postgres(name: &str) -> Result<&'static str, String> {
    Ok(match name {
        // PostgreSQL has no integers of one byte, nor without a sign: each becomes the least that holds its values.
        "int1" | "int2" | "uint1" => "smallint",
        "int4" | "uint2" => "integer",
        "int8" | "uint4" => "bigint",
        "numeric" | "uint8" => "numeric",
        "real4" => "real",
        "real8" => "double precision",
        "string" | "wstring" | "clob" | "nclob" => "text",
        "boolean" => "boolean",
        "date" => "date",
        "time" => "time",
        "datetime" => "timestamp",
        "bytes" | "blob" => return Err(format!("there is no cast to {name} (bytea) here")),
        _ => return Err(format!("\"{name}\" is no type of DMS that is known here")),
    })
}
