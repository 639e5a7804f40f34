//! `sherd-bench render` and `figure` through the real binary, on the committed reports: whole pages, well-formed, nothing from elsewhere,
//! and every number of the table in them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn committed() -> Vec<PathBuf> {
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    let files = fs::read_dir(results).expect("there are results").flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect()
}

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sherd-bench")).args(arguments).output().expect("it starts")
}

fn says(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Words with a digit in them, without the punctuation around.
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split_whitespace().map(|word| word.trim_matches(|at: char| !at.is_alphanumeric()));
    words.filter(|word| word.contains(|at: char| at.is_ascii_digit()))
}

#[test]
fn committed_reports_are_whole_pages() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let reports = committed();
    assert!(!reports.is_empty(), "there are committed reports");
    for report in &reports {
        fs::copy(report, directory.path().join(report.file_name().expect("a file"))).expect("it can be copied");
    }
    let output = bench(&["render", directory.path().to_str().expect("UTF-8")]);
    assert!(output.status.success(), "{}", says(&output));
    for report in &reports {
        let name = directory.path().join(report.file_name().expect("a file"));
        let read = |form: &str| fs::read_to_string(name.with_extension(form)).expect("it was written");
        let (text, html, markdown) = (read("txt"), read("html"), read("md"));
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..roxmltree::ParsingOptions::default() };
        let page = roxmltree::Document::parse_with_options(&html, options).expect("well-formed");
        for node in page.descendants() {
            for name in ["src", "srcset", "action", "data", "background"] {
                assert!(node.attribute(name).is_none(), "{name} in {node:?}");
            }
            assert!(!node.has_tag_name("script") && !node.has_tag_name("link"), "{node:?}");
        }
        assert!(!html.contains("url(") && !html.contains("@import"), "styles from elsewhere");
        let shown: String = page.descendants().filter_map(|node| node.text()).collect::<Vec<_>>().join(" ");
        let markdown = markdown.replace(['\\', '*'], "");
        // The first two lines are the command and the date; the table's intervals are further down.
        for number in text.lines().skip(2).flat_map(numbers) {
            assert!(shown.contains(number), "{number} of {} is not in its page", report.display());
        }
        let table =
            text.lines().skip_while(|line| !line.starts_with("medians")).take_while(|line| !line.contains("noise:"));
        for number in table.flat_map(numbers) {
            assert!(markdown.contains(number), "{number} of {} is not in its Markdown", report.display());
        }
        let figure = bench(&["figure", report.to_str().expect("UTF-8")]);
        let figure = String::from_utf8(figure.stdout).expect("UTF-8");
        roxmltree::Document::parse(&figure)
            .unwrap_or_else(|error| panic!("{error} in the figure of {}", report.display()));
    }
}

#[test]
fn what_is_no_report_is_named() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let torn = directory.path().join("torn.json");
    fs::write(&torn, "{\"format\": 1, ").expect("writable");
    let output = bench(&["render", torn.to_str().expect("UTF-8")]);
    assert!(!output.status.success() && says(&output).contains("torn.json is torn"), "{}", says(&output));
    let output = bench(&["render", directory.path().to_str().expect("UTF-8")]);
    assert!(!output.status.success() && says(&output).contains("left out: "), "{}", says(&output));
    assert!(says(&output).contains("there is no report"), "{}", says(&output));
}

#[test]
fn reports_are_compared_and_a_regression_is_an_exit_code() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let report = committed().into_iter().next().expect("there are committed reports");
    let old = directory.path().join("old.json");
    let new = directory.path().join("new.json");
    let mut whole: serde_json::Value = serde_json::from_slice(&fs::read(&report).expect("readable")).expect("JSON");
    // Two are enough, and intervals of all would take a while in a build for tests.
    let is_one_of_two =
        |sample: &serde_json::Value| sample["contestant"] == "sherd" || sample["contestant"] == "haproxy";
    whole["samples"].as_array_mut().expect("a list").retain(is_one_of_two);
    fs::write(&old, whole.to_string()).expect("writable");
    let compare = |change: &dyn Fn(&mut serde_json::Value), arguments: &[&str]| {
        let mut value = whole.clone();
        change(&mut value);
        fs::write(&new, value.to_string()).expect("writable");
        let paths = [old.to_str().expect("UTF-8"), new.to_str().expect("UTF-8")];
        let output = bench(&[&["compare"], arguments, &paths].concat());
        (output.status.code(), says(&output))
    };
    let (code, text) = compare(&|_| {}, &[]);
    assert!(code == Some(0) && text.contains("no difference") && !text.contains("REGRESSED"), "{text}");
    let slower = |report: &mut serde_json::Value| {
        for sample in report["samples"].as_array_mut().expect("a list") {
            if sample["contestant"] == "sherd" {
                sample["requests"] = (sample["requests"].as_u64().expect("a count") * 7 / 10).into();
            }
        }
    };
    let (code, text) = compare(&slower, &[]);
    assert!(code == Some(1) && text.contains("REGRESSED"), "{text}");
    let elsewhere = |report: &mut serde_json::Value| report["host"]["kernel"] = "Linux 99".into();
    let (code, text) = compare(&elsewhere, &[]);
    assert!(code == Some(2) && text.contains("Linux 99 now") && text.contains("--force"), "{text}");
    let output = directory.path().join("out");
    let (code, text) = compare(&elsewhere, &["--force", "--output", output.to_str().expect("UTF-8")]);
    assert!(code == Some(0) && text.contains("DIFFERENT kernel"), "{text}");
    for name in ["compare.txt", "compare.md", "compare.html"] {
        assert!(output.join(name).is_file(), "{name}");
    }
}

#[test]
fn all_targets_are_listed_and_lead_to_their_reports() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    for report in committed() {
        fs::copy(&report, directory.path().join(report.file_name().expect("a file"))).expect("it can be copied");
    }
    let path = directory.path().to_str().expect("UTF-8");
    let output = bench(&["targets", path, "--output", path]);
    assert!(output.status.success(), "{}", says(&output));
    let text = says(&output);
    for wanted in
        ["CPU µs/request ≤ 0.9 × the best of", "not measured", "no shard is found hung in 600 s at the maximum"]
    {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    let index = fs::read_to_string(directory.path().join("index.html")).expect("it was written");
    assert!(index.contains("<a href=\"relay-"), "{index}");
    let markdown = fs::read_to_string(directory.path().join("targets.md")).expect("it was written");
    assert!(markdown.contains("| scenario | target |"), "{markdown}");
}
