//! Translates a table mapping. The rules are the result; with `--check` the report is.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Format, output};
use crate::dms::{self, Report, Translation, Underscore};
use crate::error::{Error, Kind, Stage};

/// Mappings are far smaller: DMS takes 2 MB.
const MAPPING_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, Args)]
pub struct ImportDmsArguments {
    /// The table mapping, a JSON document; - reads it from standard input
    #[arg(value_name = "FILE")]
    mapping: PathBuf,
    /// Write the rules to this file, which must not exist, instead of printing them
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print what would become of each rule, and write nothing
    #[arg(long, conflicts_with = "output")]
    check: bool,
    /// Leave out what is not possible, instead of refusing all of it
    #[arg(long)]
    lenient: bool,
    /// Take _ in names for itself, where DMS takes it for any one character
    #[arg(long)]
    literal_underscores: bool,
}

pub fn run(arguments: &ImportDmsArguments, format: Format) -> Result<(), Error> {
    let path = &arguments.mapping;
    let underscore = if arguments.literal_underscores { Underscore::Itself } else { Underscore::AnyCharacter };
    let text = read(path).map_err(|error| usage(format!("cannot read {}: {error}", path.display())))?;
    let translation =
        dms::translate(&text, underscore).map_err(|error| usage(format!("{}: {error}", path.display())))?;
    let Translation { toml, report } = translation;
    let refusal = if arguments.lenient { None } else { refusal(&report) };
    if arguments.check {
        print_report(&report, format, &mut io::stdout())?;
        return refusal.map_or(Ok(()), Err);
    }
    print_report(&report, format, &mut io::stderr())?;
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    match &arguments.output {
        Some(file) => write_new(file, &toml),
        None => output::text_line(toml.trim_end()),
    }
}

fn read(path: &Path) -> io::Result<String> {
    let file: Box<dyn Read> =
        if path == Path::new("-") { Box::new(io::stdin().lock()) } else { Box::new(File::open(path)?) };
    let mut text = String::new();
    let bytes = file.take(MAPPING_BYTES_MAX + 1).read_to_string(&mut text)?;
    if bytes as u64 > MAPPING_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {MAPPING_BYTES_MAX} bytes"),
        ));
    }
    Ok(text)
}

/// What is there may hold more than these rules.
fn write_new(path: &Path, toml: &str) -> Result<(), Error> {
    let mut file = File::create_new(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            usage(format!("{} exists already, and is left as it is; name a new file", path.display()))
        }
        _ => output::failed(error),
    })?;
    file.write_all(toml.as_bytes()).map_err(|error| {
        // Half of the rules would look like all of them.
        match fs::remove_file(path) {
            Ok(()) => output::failed(error),
            Err(_) => usage(format!("{} is written in part only, since {error}; remove it", path.display())),
        }
    })
}

fn print_report(report: &Report, format: Format, to: &mut impl Write) -> Result<(), Error> {
    let text = match format {
        Format::Json => serde_json::to_string(report).map_err(|error| output::failed(error.into()))?,
        Format::Table => report.to_string(),
    };
    writeln!(to, "{text}").map_err(output::failed)
}

/// Of a mapping that cannot be carried over wholly.
fn refusal(report: &Report) -> Option<Error> {
    let missing: Vec<_> = report.not_possible().iter().map(ToString::to_string).collect();
    let what = match missing.as_slice() {
        [] if report.includes_nothing => "no rule of the mapping includes a table".to_owned(),
        [] => return None,
        [one] => format!("rule {one} of the mapping cannot be carried over"),
        more => format!("{} rules of the mapping cannot be carried over: {}", more.len(), more.join(", ")),
    };
    let mend = "see the report; change the mapping, or leave out what is not possible with --lenient";
    Some(Error::refused(Stage::Config, what, mend))
}

fn usage(what: String) -> Error {
    Error::new(Stage::Config, Kind::Usage(what))
}
