//! Names that the command line needs: of a group that wasn't given one, and of the flag behind a specification's key.

/// The group's name for an image or a program: its last part, in the letters that a name may have.
pub(super) fn group_of(image_or_program: &str) -> String {
    let digestless = image_or_program.split('@').next().unwrap_or_default();
    let last = digestless.rsplit('/').next().unwrap_or_default();
    let name = last.split([':', '.']).next().unwrap_or_default().to_lowercase();
    let letters = name.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' });
    let name: String = letters.take(63).collect();
    match name.trim_matches('-') {
        "" => "service".to_owned(),
        name => name.to_owned(),
    }
}

/// The flag that a specification's key was written for.
pub(super) fn flag_of(key: &str, publish: &[String]) -> String {
    if let Some(rest) = key.strip_prefix("ports[") {
        let index = rest.split(']').next().and_then(|index| index.parse::<usize>().ok());
        let given = index.and_then(|index| publish.get(index)).map_or("", String::as_str);
        return if rest.ends_with(".policy") { "--policy".to_owned() } else { format!("-p {given}") };
    }
    if let Some(name) = key.strip_prefix("environment.") {
        return format!("-e {name}");
    }
    let prefixes = [
        ("name", "-g"),
        ("drain", "--drain"),
        ("readiness.path", "--ready-path"),
        ("readiness.check", "--health-check"),
        ("readiness.command", "--health-cmd"),
        ("readiness.interval", "--health-interval"),
        ("readiness.timeout", "--health-timeout"),
        ("readiness.fall", "--health-retries"),
        ("readiness.start_period", "--health-start-period"),
        ("layout.unit", "-u"),
        ("layout.shards", "-n"),
        ("layout.memory_limit", "--group-memory"),
        ("layout.memory", "--memory-binding"),
        ("container.image", "IMAGE"),
        ("container.command", "ARG"),
        ("container.extra", "-c"),
        ("container.volumes", "-v"),
        ("container.memory", "-m"),
        ("container.working_dir", "-w"),
        ("container.labels", "--label"),
        ("container.ulimits", "--ulimit"),
        ("process.command", "PROGRAM"),
        ("process.working_dir", "-w"),
    ];
    if let Some((_, flag)) = prefixes.iter().find(|(prefix, _)| key.starts_with(prefix)) {
        return (*flag).to_owned();
    }
    let last = key.rsplit('.').next().unwrap_or(key);
    format!("--{}", last.split('[').next().unwrap_or(last).replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_named_after_what_they_run() {
        let check = |given, expected: &str| assert_eq!(group_of(given), expected, "{given}");
        check("nginx", "nginx");
        check("registry.example:5000/team/Web_App:1.2@sha256:00", "web-app");
        check("./server.py", "server");
        check("/usr/bin/redis-server", "redis-server");
        check("../..", "service");
    }

    #[test]
    fn keys_are_known_by_their_flags() {
        let publish = ["80:80".to_owned(), "x".to_owned()];
        let check = |key, expected: &str| assert_eq!(flag_of(key, &publish), expected, "{key}");
        check("ports[1].publish", "-p x");
        check("ports[0].policy", "--policy");
        check("layout.core_kind", "--core-kind");
        check("layout.unit", "-u");
        check("readiness.fall", "--health-retries");
        check("health.slow_start", "--slow-start");
        check("environment.A", "-e A");
        check("container.cap_add[0]", "--cap-add");
        check("container.extra.HostConfig", "-c");
    }
}
