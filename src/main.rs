use std::process::ExitCode;

/// The allocator of musl takes one lock for all threads, which more than doubles the time of a request.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    adit::cli::main()
}
