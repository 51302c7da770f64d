//! adit in a process of its own.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::Result;

pub struct Process {
    child: Child,
    /// Its first line of output.
    pub first: String,
}

impl Process {
    /// Starts adit, pinned to the first `cores` cores (`None`: not pinned), and waits for its first line.
    pub fn start(cores: Option<usize>, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let program = env!("CARGO_BIN_EXE_adit");
        let mut command = match cores {
            Some(cores) => {
                let mut command = Command::new("taskset");
                command.args(["-c", &format!("0-{}", cores - 1), program]);
                command
            }
            None => Command::new(program),
        };
        command.args(arguments).envs(environment.iter().copied());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("a pipe")?).lines();
        let first = lines.next().ok_or("it ended at once")??;
        // Keep reading: adit prints more, and a closed pipe would end it.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { child, first })
    }

    /// Returns its resident memory in MiB.
    pub fn memory(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }

    /// Returns its CPU time.
    pub fn cpu(&self) -> Result<Duration> {
        let mut total = Duration::ZERO;
        // In nanoseconds, per thread.
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            total += Duration::from_nanos(text.split(' ').next().ok_or("a number")?.parse()?);
        }
        Ok(total)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
