//! `sherd-bench verify` through the real binary: that it finds what is planted is for a quiet host, that it looks and tells is
//! for any.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

fn verify(directory: &Path, arguments: &[&str]) -> Output {
    let scratch = directory.join("tmp");
    fs::create_dir_all(&scratch).expect("writable");
    Command::new(env!("CARGO_BIN_EXE_sherd-bench"))
        .args(["verify", "--quick", "--output"])
        .arg(directory.join("results"))
        .args(arguments)
        .env("TMPDIR", scratch)
        .stdin(Stdio::null())
        .output()
        .expect("it starts")
}

#[test]
fn a_small_run_tells_what_it_planted_and_what_it_found() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let small = ["--rounds", "1", "--seconds", "3", "--runs", "1", "--pairs", "2", "--duration", "0.05"];
    let large_and_missing = ["--slowdown", "100", "--oha", "/nowhere/oha"];
    // Latencies have a test of their own in `load`.
    let parts = [
        "--parts",
        if std::env::var_os("SHERD_PROVE").is_some() { "latencies,maxima,differences" } else { "maxima,differences" },
    ];
    let output = verify(directory.path(), &[&small[..], &large_and_missing, &parts].concat());
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{errors}");
    let json = text.lines().find_map(|line| line.strip_prefix("every sample: ")).expect("it names its report");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(json).expect("there")).expect("JSON");
    let samples = |title: &str| -> Vec<f64> {
        let series = report["series"].as_array().expect("a list");
        let found = series.iter().find(|series| series["title"].as_str().is_some_and(|found| found.contains(title)));
        let samples = found.unwrap_or_else(|| panic!("{title} in {text}"))["samples"].as_array().expect("a list");
        samples.iter().map(|sample| sample.as_f64().expect("a number")).collect()
    };
    if parts[1].contains("latencies") {
        // How much more a busy host adds is its own business.
        assert!(
            samples("delays: ms at p99, where 30.00")[0] >= 29.9 && samples("a stall: ms at max")[0] > 900.0,
            "{text}"
        );
    }
    let planted = samples("% of a request's CPU time that were planted");
    assert!((95.0..105.0).contains(&planted[0]), "{text}");
    assert!(samples("  found")[0] > 20.0, "twice the CPU time for each request: {text}");
    assert!(text.contains("oha is missing: /nowhere/oha does not run"), "{text}");
    assert!(text.contains("cargo install oha"), "{text}");
    let left: Vec<_> = fs::read_dir(directory.path().join("tmp")).expect("readable").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn bad_options_are_refused_before_anything_starts() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    for (arguments, says) in [
        (["--parts", "all"], "there is no part \"all\""),
        (["--runs", "0"], "--runs must be"),
        (["--slowdown", "0"], "--slowdown must be"),
        (["--seconds", "1"], "--seconds must be"),
    ] {
        let output = verify(directory.path(), &arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(says), "{arguments:?}: {errors}");
    }
}
