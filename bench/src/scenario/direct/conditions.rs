//! Whether all shards run under the same conditions: same CPUs, memory, seccomp filters and privileges; reads /proc and
//! changes nothing.

use std::{collections::BTreeMap, fs, io};

use nix::unistd::Pid;

use super::{super::ComparisonError, field::Field};

/// Lines of /proc/PID/status that say under which conditions a process runs.
const CONDITIONS: [&str; 6] =
    ["Cpus_allowed_list", "Mems_allowed_list", "CapEff", "NoNewPrivs", "Seccomp", "Seccomp_filters"];

/// Compares everybody's shards, CPU by CPU, with the subject's; gives what they have in common, in words.
pub(super) fn check(field: &Field) -> Result<String, ComparisonError> {
    let all: Vec<Vec<Conditions>> = field
        .shards
        .iter()
        .map(|shards| of_all(shards).map_err(ComparisonError::Host))
        .collect::<Result<_, ComparisonError>>()?;
    for (index, conditions) in all.iter().enumerate() {
        if *conditions != all[0] {
            return Err(ComparisonError::Unequal {
                contestant: field.contestants[index].facts().name.clone(),
                conditions: format!("{conditions:?}"),
                subject: field.subject().to_owned(),
                of_subject: format!("{:?}", all[0]),
            });
        }
    }
    let words = ["CapEff", "NoNewPrivs", "Seccomp_filters"]
        .map(|name| format!("{name} {}", all[0].first().and_then(|one| one.get(name)).map_or("unknown", |word| word)));
    Ok(format!("every shard has its own CPU and {}", words.join(", ")))
}

type Conditions = BTreeMap<&'static str, String>;

/// In the order of their CPUs, whoever started them first.
fn of_all(shards: &[Pid]) -> io::Result<Vec<Conditions>> {
    let mut all: Vec<Conditions> = shards
        .iter()
        .map(|shard| Ok(of_status(&fs::read_to_string(format!("/proc/{shard}/status"))?)))
        .collect::<io::Result<_>>()?;
    all.sort();
    Ok(all)
}

fn of_status(text: &str) -> Conditions {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .filter_map(|(name, value)| {
            let name = CONDITIONS.into_iter().find(|condition| *condition == name)?;
            Some((name, value.trim().to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_the_kernels_words() {
        let found = of_status("Name:\ta\nNoNewPrivs:\t1\nSeccomp_filters:\t2\nCpus_allowed_list:\t0-1\n");
        let expected = [("NoNewPrivs", "1"), ("Seccomp_filters", "2"), ("Cpus_allowed_list", "0-1")];
        assert_eq!(found, expected.map(|(name, value)| (name, value.to_owned())).into());
        assert_eq!(of_all(&[Pid::this()]).expect("we are here")[0].len(), CONDITIONS.len());
    }
}
