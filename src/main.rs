use std::process::ExitCode;

fn main() -> ExitCode {
    pgsluice::cli::main()
}
