//! The daemon. The same program as `svctl`: the name it is called by decides.
fn main() -> std::process::ExitCode {
    airdock::main(airdock::Program::Svd)
}
