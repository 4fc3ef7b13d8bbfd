//! Runs seeds of the simulator and says what came of them; `scripts/simulate` builds and starts
//! it.

use std::process::ExitCode;

fn main() -> ExitCode {
    etched::sim::command::main(std::env::args().skip(1))
}
