//! `echo NAME ADDRESS…`: answers every TCP chunk and UDP datagram with `NAME:` and what it got.

use std::process::ExitCode;

use streamgate_conformance::echo;

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command for a terminal")]
fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        eprintln!("usage: echo NAME ADDRESS:PORT…");
        return ExitCode::from(64);
    };
    for address in arguments {
        match address
            .parse()
            .map_err(|error| format!("{error}"))
            .and_then(|address| echo::serve(&name, address).map_err(|error| format!("{error}")))
        {
            Ok(address) => println!("echo {name} on {address}"),
            Err(error) => {
                eprintln!("cannot listen on {address}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    loop {
        std::thread::park();
    }
}
