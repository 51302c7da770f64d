//! Runs programs with limits on time and output, so that a program that waits for input or prints forever blocks nothing.

use std::{
    io::{self, Read},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

/// Maximum bytes on each of stdout and stderr. certutil lists 10,000 certificates in 1 MiB.
const MOST: usize = 4 * 1024 * 1024;

/// Interval of the checks whether a program has exited: the standard library has no wait with a deadline.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long to wait for output after the exit. A process that the program left running may hold the pipe open.
const REST: Duration = Duration::from_secs(1);

/// Runs a program without input to its end, and returns its output. Keeps it in adit's process group, so that Ctrl-C
/// ends both, and a program that opens the terminal can ask for a password there.
///
/// # Errors
/// The program cannot be started, or was killed because it took longer than `patience` or printed more than 4 MiB.
pub fn output(command: &mut Command, patience: Duration) -> io::Result<Output> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let streams = (Collected::of(child.stdout.take()), Collected::of(child.stderr.take()));
    let is_too_much = || streams.0.length() > MOST || streams.1.length() > MOST;
    let waited = wait_while(&mut child, patience, || !is_too_much());
    if !matches!(waited, Ok(Some(_))) {
        // It may have exited by itself meanwhile.
        let _ = child.kill();
        let _ = child.wait();
    }
    let status = waited?;
    let until = Instant::now() + REST;
    while status.is_some() && !(streams.0.has_ended() && streams.1.has_ended()) && Instant::now() < until {
        thread::sleep(LOOK_EVERY);
    }
    if is_too_much() {
        return Err(io::Error::other(format!("it printed more than {} MiB", MOST / 1024 / 1024)));
    }
    let late = || {
        let what = format!("it did not end within {} s, and was killed", patience.as_secs());
        io::Error::new(io::ErrorKind::TimedOut, what)
    };
    Ok(Output { status: status.ok_or_else(late)?, stdout: streams.0.take(), stderr: streams.1.take() })
}

/// Waits for a child. `None`: it still runs after `patience`.
///
/// # Errors
/// The system reports an error.
pub fn wait(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    wait_while(child, patience, || true)
}

fn wait_while(
    child: &mut Child,
    patience: Duration,
    mut goes_on: impl FnMut() -> bool,
) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    loop {
        let ended = child.try_wait()?;
        if ended.is_some() || !goes_on() || Instant::now() >= deadline {
            return Ok(ended);
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Output of a stream so far. A thread reads the stream to its end or to the limit.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: thread::JoinHandle<()>,
}

impl Collected {
    fn of(stream: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::<Mutex<Vec<u8>>>::default();
        let read = bytes.clone();
        let reader = thread::spawn(move || {
            let mut chunk = [0; 8192];
            let Some(mut stream) = stream else { return };
            // An error ends the stream, too: the exit code tells whether the program succeeded.
            while let Ok(length @ 1..) = stream.read(&mut chunk) {
                let mut read = read.lock().expect("no panic while the lock is held");
                read.extend(&chunk[..length]);
                if read.len() > MOST {
                    return;
                }
            }
        });
        Self { bytes, reader }
    }

    fn length(&self) -> usize {
        self.bytes.lock().expect("no panic while the lock is held").len()
    }

    fn has_ended(&self) -> bool {
        self.reader.is_finished()
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.bytes.lock().expect("no panic while the lock is held"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, patience: Duration) -> io::Result<Output> {
        output(Command::new("sh").args(["-c", script]), patience)
    }

    const PLENTY: Duration = Duration::from_secs(60);

    #[test]
    fn a_program_has_no_input_and_its_output_is_read_to_the_end() {
        let ran = sh("cat; echo out; echo err >&2; exit 3", PLENTY).unwrap();
        assert_eq!((ran.status.code(), &ran.stdout[..], &ran.stderr[..]), (Some(3), &b"out\n"[..], &b"err\n"[..]));
        // More than a pipe's buffer holds.
        let ran = sh("head -c 1000000 /dev/zero", PLENTY).unwrap();
        assert_eq!((ran.status.success(), ran.stdout.len()), (true, 1_000_000));
        let missing = output(&mut Command::new("/no/such/program"), PLENTY).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_program_that_does_not_end_or_prints_for_ever_is_killed() {
        let slow = sh("exec sleep 600", Duration::from_millis(50)).unwrap_err();
        assert_eq!(slow.kind(), io::ErrorKind::TimedOut);
        // Ignores SIGPIPE, as certutil does.
        let loud = sh("trap '' PIPE; while :; do echo again; done 2>/dev/null", PLENTY).unwrap_err();
        assert!(loud.to_string().contains("more than 4 MiB"), "{loud}");
    }

    #[test]
    fn a_process_that_is_left_running_holds_nobody_up() {
        let ran = sh("sleep 20 & echo out", PLENTY).unwrap();
        assert_eq!((ran.status.success(), &ran.stdout[..]), (true, &b"out\n"[..]));
    }
}
