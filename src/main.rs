use std::process::ExitCode;

/// With the allocator of musl, a request through the HTTP front takes more than twice the CPU. That of glibc is as fast as this.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    adit::cli::main()
}
