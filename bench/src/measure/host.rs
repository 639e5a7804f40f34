//! What a report says of the host, and how much of its CPU time went where.

use std::{collections::BTreeMap, fs, io, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de::Error};

/// What a reader needs to know to judge the figures.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct HostFacts {
    /// Its name.
    pub name: String,
    /// `uname -sr`.
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// CPUs this process may use.
    pub cpus: Vec<usize>,
    /// How many CPUs the host has online, whoever may use them.
    pub online: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Each CPU's frequency governor, where the kernel tells.
    #[serde(deserialize_with = "numbered")]
    pub governors: BTreeMap<usize, String>,
    /// Whether cores run several threads (`on`, `off`, `notsupported`).
    pub smt: Option<String>,
}

impl HostFacts {
    /// Reads them.
    pub fn read() -> io::Result<Self> {
        let uname = nix::sys::utsname::uname()?;
        let text = |os: &std::ffi::OsStr| os.to_string_lossy().into_owned();
        let cpus = super::allowed_cpus()?;
        let governor = |cpu: &usize| {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor");
            fs::read_to_string(path).ok().map(|governor| (*cpu, governor.trim().to_owned()))
        };
        let smt = fs::read_to_string("/sys/devices/system/cpu/smt/control").ok();
        Ok(Self {
            name: text(uname.nodename()),
            kernel: format!("{} {}", text(uname.sysname()), text(uname.release())),
            cpu: field(&fs::read_to_string("/proc/cpuinfo")?, "model name").unwrap_or_else(|| text(uname.machine())),
            governors: cpus.iter().filter_map(governor).collect(),
            online: fs::read_to_string("/proc/stat")?.lines().filter(|line| is_one_cpu(line)).count(),
            memory_bytes: meminfo_bytes("MemTotal")?,
            smt: smt.map(|smt| smt.trim().to_owned()),
            cpus,
        })
    }
}

/// JSON's keys are text, and serde takes them for numbers only where nothing around is flattened.
fn numbered<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<usize, String>, D::Error> {
    let named = BTreeMap::<String, String>::deserialize(from)?;
    named.into_iter().map(|(cpu, word)| Ok((cpu.parse().map_err(Error::custom)?, word))).collect()
}

/// The kernel's slab memory, in bytes: sockets are in it.
pub fn slab_bytes() -> io::Result<u64> {
    meminfo_bytes("Slab")
}

/// CPU time of the whole host since it started, in steps of 10 ms per CPU (/proc/stat).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostTime {
    /// Spent on anything.
    pub busy: Duration,
    /// Wanted, and given to somebody else by the hypervisor.
    pub stolen: Duration,
}

impl HostTime {
    /// Reads it.
    pub fn read() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        Self::of_stat(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/stat without a cpu line"))
    }

    /// What was spent since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self { busy: self.busy.saturating_sub(earlier.busy), stolen: self.stolen.saturating_sub(earlier.stolen) }
    }

    /// proc(5): user nice system idle iowait irq softirq steal, in USER_HZ, which is 100 on every architecture we run on.
    fn of_stat(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
        let [user, nice, system, _idle, _iowait, irq, softirq, steal] = *ticks.first_chunk()?;
        let time = |ticks: u64| Duration::from_millis(ticks * 10);
        Some(Self { busy: time(user + nice + system + irq + softirq), stolen: time(steal) })
    }
}

fn is_one_cpu(line: &str) -> bool {
    line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

fn meminfo_bytes(name: &str) -> io::Result<u64> {
    let kibibytes = field(&fs::read_to_string("/proc/meminfo")?, name)
        .and_then(|value| value.strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kibibytes
        .map(|kibibytes| kibibytes << 10)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/meminfo without {name}")))
}

fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_line() {
        let read = HostTime::of_stat("cpu  100 1 50 9000 7 2 3 40 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n");
        let expected = HostTime { busy: Duration::from_millis(1560), stolen: Duration::from_millis(400) };
        assert_eq!(read, Some(expected));
        assert_eq!(HostTime::of_stat("cpu  1 2 3\n"), None);
    }

    #[test]
    fn this_host_has_facts() {
        let facts = HostFacts::read().expect("readable");
        assert!(facts.online >= facts.cpus.len() && slab_bytes().expect("readable") > 0);
        assert!(facts.kernel.starts_with("Linux ") && !facts.cpus.is_empty() && facts.memory_bytes > 0);
    }
}
