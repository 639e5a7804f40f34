//! Whether all shards run under the same conditions: same CPUs, memory, seccomp filters and privileges; reads /proc and
//! changes nothing. A server that isn't sharded has all CPUs, and the rest is the same.

use std::{collections::BTreeMap, fs, io};

use nix::unistd::Pid;

use super::{super::ComparisonError, Field};

/// Lines of /proc/PID/status that say under which conditions a process runs: where, and how confined.
const PLACES: [&str; 2] = ["Cpus_allowed_list", "Mems_allowed_list"];
const CONFINEMENT: [&str; 4] = ["CapEff", "NoNewPrivs", "Seccomp", "Seccomp_filters"];

/// Compares everybody's shards, CPU by CPU, with the subject's; gives what they have in common, in words.
pub(in crate::scenario) fn check(field: &Field) -> Result<String, ComparisonError> {
    let all: Vec<Vec<Conditions>> = field
        .shards
        .iter()
        .map(|shards| of_all(shards).map_err(ComparisonError::Host))
        .collect::<Result<_, ComparisonError>>()?;
    // The first that is sharded is what the others must be like; without any, the first.
    let like = field.entrants.iter().position(|entrant| entrant.is_sharded()).unwrap_or(0);
    for (index, conditions) in all.iter().enumerate() {
        let same = if field.entrants[index].is_sharded() {
            *conditions == all[like]
        } else {
            conditions.iter().all(|one| all[like].iter().all(|other| confinement(one) == confinement(other)))
        };
        if !same {
            return Err(ComparisonError::Unequal {
                contestant: field.contestants[index].facts().name.clone(),
                conditions: format!("{conditions:?}"),
                subject: field.contestants[like].facts().name.clone(),
                of_subject: format!("{:?}", all[like]),
            });
        }
    }
    let words = ["CapEff", "NoNewPrivs", "Seccomp_filters"].map(|name| {
        format!("{name} {}", all[like].first().and_then(|one| one.get(name)).map_or("unknown", |word| word))
    });
    Ok(format!("every shard has its own CPU and {}", words.join(", ")))
}

fn confinement(conditions: &Conditions) -> Vec<&String> {
    CONFINEMENT.iter().filter_map(|name| conditions.get(name)).collect()
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
            let name = PLACES.into_iter().chain(CONFINEMENT).find(|condition| *condition == name)?;
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
        assert_eq!(of_all(&[Pid::this()]).expect("we are here")[0].len(), PLACES.len() + CONFINEMENT.len());
    }
}
