//! The agent's own settings: defaults, faults, reserved PUs.

use sherd::config::{AgentConfig, ConfigError, DockerHost, LogFormat, ReservedCpus};
use sherd_topology::discover;

#[test]
fn an_empty_file_means_the_defaults() {
    assert_eq!(AgentConfig::parse("f", ""), Ok(AgentConfig::default()));
}

#[test]
fn every_key_is_read() {
    let text = "instance = \"a-1\"\nrun_dir = \"/r\"\nstate_dir = \"/s\"\nreserved_cpus = \"0,2-3\"\nmetrics = \"off\"\n\
                docker = \"unix:///run/podman/podman.sock\"\nrelay_handover = \"90s\"\n[log]\nformat = \"json\"\nfilter = \"info,sherd::api=debug\"\n";
    let config = AgentConfig::parse("f", text).unwrap();
    assert_eq!(config.instance, "a-1");
    assert_eq!(config.api_socket().to_str(), Some("/r/sherd.sock"));
    assert_eq!(config.holder_socket().to_str(), Some("/r/holder.sock"));
    assert_eq!(config.reserved_cpus, ReservedCpus::These("0,2-3".parse().unwrap()));
    assert_eq!(config.metrics_address, None);
    assert_eq!(config.docker, DockerHost::Socket("/run/podman/podman.sock".into()));
    assert_eq!(config.relay_handover, std::time::Duration::from_secs(90));
    assert_eq!((config.log.format, config.log.filter.as_str()), (LogFormat::Json, "info,sherd::api=debug"));
}

#[test]
fn all_faults_come_together() {
    let text = "instance = \"A\"\nrun_dir = \"r\"\nreserved_cpus = \"0-\"\nmetrics = \"9478\"\ndocker = \"tcp://x\"\n\
                format = \"json\"\nreserved = 1\nrelay_handover = \"25h\"\n[log]\nfilter = \"info,=\"\nformat = \"xml\"\n";
    let faults = AgentConfig::parse("sherd.toml", text).unwrap_err().faults;
    let lines: Vec<usize> = faults.iter().map(|fault| fault.line).collect();
    assert_eq!(lines, [1, 2, 3, 4, 5, 6, 7, 8, 10, 11], "{faults:#?}");
    assert!(faults[5].message.contains("belongs in [log]"), "{}", faults[5]);
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let missing = std::path::Path::new("/nonexistent/sherd.toml");
    assert!(matches!(AgentConfig::load(Some(missing)), Err(ConfigError::Read { .. })));
}

#[test]
fn auto_reserves_a_core_where_cores_are_many() {
    let check = |machine: &str, expected: &str| {
        let host = discover::synthetic(machine).unwrap();
        assert_eq!(ReservedCpus::Auto.on(&host).to_string(), expected, "{machine}");
    };
    check("package:1 core:2 pu:2", "");
    check("package:1 core:7 pu:1", "");
    check("package:1 core:8 pu:2", "0-1");
    check("package:2 core:32 pu:1", "0");
    check("package:2 core:33 pu:2", "0-3");
}
