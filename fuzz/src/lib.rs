//! The checks that the fuzz targets share with the tests of `pgsluice-proto`.

#[path = "../../proto/tests/support/checks.rs"]
pub mod checks;
#[path = "../../proto/tests/support/encode.rs"]
mod encode;
