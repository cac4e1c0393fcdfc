//! The command line: one file a command, results on stdout, logs on stderr, exit codes as `error` gives them.

mod bench;
mod capture;
mod change;
mod confirm;
mod import_dms;
mod output;
mod resync;
mod row;
mod rules;
mod run;
mod schema;
mod setup;
mod skip;
mod status;
mod tail;
mod teardown;
mod trail;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing::level_filters::LevelFilter;

use crate::config::Config;
use crate::error::{EXIT_DONE, Error, Kind, Stage};
use crate::screen::Screen;

#[derive(Debug, Parser)]
#[command(name = "pgsluice", version, about, propagate_version = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed while working, 2 usage or configuration, 3 refused by a check")]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// How results are printed on stdout
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// How the log is printed on stderr
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// More in the log: -v for details, -vv for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the selected tables, and what they need, on the target; safe to run again
    Schema(schema::SchemaArguments),
    /// Make the publication, the slot and the schema for progress; safe to run again
    Setup(setup::SetupArguments),
    /// Replicate until stopped; SIGTERM, SIGINT and SIGHUP end on a commit
    Run(run::RunArguments),
    /// Only write the trail, from which any number of `run` apply
    Capture(capture::CaptureArguments),
    /// Show slot, progress and the lag of every hop
    Status(status::StatusArguments),
    /// Measure on the running chain how long rows take from the primary to the target, and how many pass
    Bench(bench::BenchArguments),
    /// Have tables emptied on the target and copied again by `run`, while the others stream
    Resync(resync::ResyncArguments),
    /// Pass one transaction of the source over: nothing of it is applied
    Skip(skip::SkipArguments),
    /// Show what the rules make of tables, and of sample rows
    Rules(rules::RulesArguments),
    /// Print changes, as rules leave them, as JSON lines, without applying or confirming them
    Tail(tail::TailArguments),
    /// Show what is in the trail, check it, or forget one of its readers
    Trail(trail::TrailArguments),
    /// Translate a table mapping of AWS DMS to rules, with every difference named
    ImportDms(import_dms::ImportDmsArguments),
    /// Remove the slot, the publication and the schema for progress
    Teardown(teardown::TeardownArguments),
}

#[derive(Debug, Args)]
struct ConfigArgument {
    /// The configuration file
    #[arg(short, long = "config", value_name = "FILE")]
    config: PathBuf,
}

impl ConfigArgument {
    fn load(&self) -> Result<Config, Error> {
        Config::load(&self.config).map_err(|error| Error::new(Stage::Config, Kind::Config(error)))
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let screen = start_log(&arguments.global);
    let format = arguments.global.format;
    let result = match &arguments.command {
        Command::Schema(arguments) => schema::run(arguments, format),
        Command::Setup(arguments) => setup::run(arguments, format),
        Command::Run(arguments) => run::run(arguments, format, &screen),
        Command::Capture(arguments) => capture::run(arguments, format),
        Command::Status(arguments) => status::run(arguments, format),
        Command::Bench(arguments) => bench::run(arguments, format, &screen),
        Command::Resync(arguments) => resync::run(arguments, format),
        Command::Skip(arguments) => skip::run(arguments, format),
        Command::Rules(arguments) => rules::run(arguments, format),
        Command::Tail(arguments) => tail::run(arguments),
        Command::Trail(arguments) => trail::run(arguments, format),
        Command::ImportDms(arguments) => import_dms::run(arguments, format),
        Command::Teardown(arguments) => teardown::run(arguments, format),
    };
    match result {
        Ok(()) => ExitCode::from(EXIT_DONE),
        // Whoever read has seen enough, as in `pgsluice tail | head`.
        Err(error) if error.is_closed_output() => ExitCode::from(EXIT_DONE),
        Err(error) => {
            tracing::error!(stage = ?error.stage(), "{error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Returns where it goes.
fn start_log(global: &Global) -> Screen {
    let level = match global.verbose {
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        2.. => LevelFilter::TRACE,
    };
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(LevelFilter::WARN.into())
        .parse_lossy(format!("pgsluice={level}"));
    let screen = Screen::stderr(global.log_format == LogFormat::Text);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(screen.clone()).with_target(false);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    match global.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    screen
}
