//! The command line. The same program as `svd`: the name it is called by decides.
fn main() -> std::process::ExitCode {
    airdock::main(airdock::Program::Svctl)
}
