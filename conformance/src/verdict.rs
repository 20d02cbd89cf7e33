//! What programs that measure say, and how they end.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// Writes a line to standard output.
pub fn say(line: impl Display) {
    // Nobody reads any more: go on to the end all the same.
    let _ = writeln!(io::stdout(), "{line}");
}

/// Success where every limit is kept; an error is told first.
#[must_use]
pub fn conclude(kept: Result<bool, Box<dyn Error>>) -> ExitCode {
    match kept {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}
