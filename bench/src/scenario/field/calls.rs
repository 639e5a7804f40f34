//! How many system calls a request and a connection cost: a short run under strace, apart from all timing; owns the tracer.
//!
//! Shards are traced, and what stands before them in a connection's way. sherd's agent doesn't on the direct path, so it is
//! left out there. Behind a balancer, what it does of its own accord (timers, health) is in the figure.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io,
    net::SocketAddr,
    path::Path,
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use self::rest::Rest;
use super::{super::ComparisonError, Entrant, Field};
use crate::{
    contestant::{STAGE_COMMAND, Server},
    interrupt::Interrupt,
    load::{FetchError, Moment, repeat_connections, repeat_requests},
    report::{Progress, Settings},
    sample::SystemCalls,
};

mod rest;

/// How long the tracer may take to come and to go.
const DEADLINE: Duration = Duration::from_secs(10);

/// A load of single requests, one after the other.
type Series = fn(SocketAddr, usize, u64, &mut dyn FnMut(Moment) -> io::Result<()>) -> Result<(), FetchError>;

/// Whose calls are counted, and over what.
#[derive(Clone, Copy)]
pub(in crate::scenario) struct Count<'a> {
    /// Those of them that take part.
    pub(in crate::scenario) of: &'a [Entrant],
    /// Who answers.
    pub(in crate::scenario) server: Server,
    pub(in crate::scenario) settings: &'a Settings,
    /// Requests, and as many connections; 0 leaves it out.
    pub(in crate::scenario) times: u64,
    pub(in crate::scenario) interrupt: &'a Interrupt,
}

/// Counts; where that cannot be, a remark says why.
pub(in crate::scenario) fn count_if_possible(
    field: &Field,
    count: Count<'_>,
    scratch: &Path,
    progress: &mut Progress,
    remarks: &mut Vec<String>,
) -> Result<Vec<SystemCalls>, ComparisonError> {
    if count.times == 0 {
        return Ok(Vec::new());
    }
    if let Some(obstacle) = obstacle(count.server) {
        remarks.push(format!("system calls are not counted: {obstacle}"));
        return Ok(Vec::new());
    }
    progress.say("counting system calls");
    counted(field, count, scratch)
}

/// Why system calls are not counted, if so.
fn obstacle(server: Server) -> Option<&'static str> {
    if server != Server::Shard {
        return Some("the server has several threads, and what they call depends on timing");
    }
    let found = Command::new("strace").arg("--version").stdout(Stdio::null()).status();
    found.is_err().then_some("strace is missing; to install it: apt-get install strace")
}

fn counted(field: &Field, count: Count<'_>, scratch: &Path) -> Result<Vec<SystemCalls>, ComparisonError> {
    let Count { settings, times, .. } = count;
    let mut found = Vec::new();
    for (index, contestant) in field.contestants.iter().enumerate() {
        if count.interrupt.is_raised() {
            return Err(ComparisonError::Interrupted);
        }
        let name = &contestant.facts().name;
        if !count.of.contains(&field.entrants[index]) {
            continue;
        }
        let mut traced_processes = field.shards[index].clone();
        if field.entrants[index] != Entrant::SherdDirect {
            traced_processes.extend(contestant.balancer());
        }
        let address = contestant.addresses()[0];
        let under = |series: Series| {
            let calls = traced(&traced_processes, scratch, |rest| {
                series(address, settings.answer_bytes, times, &mut |moment| rest.wait(moment))
            });
            calls.map_err(|source| ComparisonError::Calls { contestant: name.clone(), source })
        };
        found.push(SystemCalls {
            contestant: name.clone(),
            repetitions: times,
            of_requests: under(repeat_requests)?,
            of_connections: under(repeat_connections)?,
        });
    }
    Ok(found)
}

/// What `processes` call, by name, while `load` runs.
fn traced(
    processes: &[Pid],
    scratch: &Path,
    load: impl FnOnce(&Rest) -> Result<(), FetchError>,
) -> io::Result<BTreeMap<String, u64>> {
    let rest = Rest::of(processes)?;
    let (table, words) = (scratch.join("strace.table"), scratch.join("strace.words"));
    // Through the stage, because the signals that this process has blocked are to reach it.
    let mut strace = Command::new(env::current_exe()?);
    strace.args([STAGE_COMMAND, "--parent", &process::id().to_string(), "--cpus", "", "--"]);
    strace.args(["strace", "-f", "-c", "-o"]).arg(&table);
    for process in processes {
        strace.args(["-p", &process.to_string()]);
    }
    let mut tracer = Tracer(strace.stdin(Stdio::null()).stderr(File::create(&words)?).spawn()?);
    tracer.wait_until_attached(processes.len(), &words)?;
    load(&rest).map_err(io::Error::other)?;
    tracer.detach()?;
    Ok(read_table(&fs::read_to_string(&table)?))
}

/// A running strace; dropping it ends it, and what it traced goes on.
struct Tracer(Child);

impl Tracer {
    /// It says `strace: Process 12 attached` for each, and for each of their threads more on the same line.
    fn wait_until_attached(&mut self, processes: usize, words: &Path) -> io::Result<()> {
        let start = Instant::now();
        loop {
            let said = fs::read_to_string(words)?;
            if said.matches(" attached").count() >= processes {
                return Ok(());
            }
            if self.0.try_wait()?.is_some() || start.elapsed() > DEADLINE {
                return Err(io::Error::other(format!("strace does not attach: {}", said.trim())));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// It writes its table when it is interrupted.
    fn detach(&mut self) -> io::Result<()> {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGINT)?;
        let start = Instant::now();
        while self.0.try_wait()?.is_none() {
            if start.elapsed() > DEADLINE {
                return Err(io::Error::other("strace does not detach"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Where it has ended, there is nothing to do.
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Lines of `% time, seconds, usecs/call, calls, errors, syscall`; errors are left out where there are none.
fn read_table(text: &str) -> BTreeMap<String, u64> {
    let lines = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let name = *words.last()?;
        (name != "total").then_some((name.to_owned(), words.get(3)?.parse().ok()?))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_strace_writes() {
        let text = "% time     seconds  usecs/call     calls    errors syscall\n\
                    ------ ----------- ----------- --------- --------- ----------------\n\
                    51.05    0.000583           1       401       200 read\n\
                    48.95    0.000559           2       201           write\n\
                    ------ ----------- ----------- --------- --------- ----------------\n\
                    100.00    0.001142           1       602       200 total\n";
        assert_eq!(read_table(text), [("read".to_owned(), 401), ("write".to_owned(), 201)].into());
        assert_eq!(read_table(""), BTreeMap::new());
    }
}
