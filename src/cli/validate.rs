//! `streamgate validate`: JSON lines in, verdicts out.

use std::io::{self, BufRead, BufWriter, Write};
use std::process::ExitCode;

use streamgate::config::RulesConfig;
use streamgate::resource::{Rules, validate_line};

use super::{ConfigFile, complain};

/// Arguments of `validate`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let config = match rules(&arguments.config) {
        Ok(config) => config,
        Err(code) => return code,
    };
    match judge(&Rules::new(&config), io::stdin().lock(), BufWriter::new(io::stdout().lock())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("cannot read or write lines: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// The rules of the given config.yaml; without one, everything that is known is enabled.
pub(super) fn rules(file: &ConfigFile) -> Result<RulesConfig, ExitCode> {
    match file.config {
        Some(_) => file.load().map(|config| config.rules),
        None => Ok(RulesConfig::everything()),
    }
}

fn judge(rules: &Rules, input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    for line in input.split(b'\n') {
        let line = line?;
        // Bytes that are no UTF-8 are no JSON either: let the judge say so about this line.
        let line = String::from_utf8_lossy(&line);
        if line.trim().is_empty() {
            continue;
        }
        writeln!(output, "{}", validate_line(rules, &line))?;
        // A co-process waits for each answer.
        output.flush()?;
    }
    Ok(())
}
