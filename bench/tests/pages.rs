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
