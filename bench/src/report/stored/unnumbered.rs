//! Reports from before files had a format's number: brings them into the first numbered form; pure.

use serde_json::{Value, json};

use super::AnyReport;

/// Comparisons alone have samples.
pub(super) fn read(text: &[u8]) -> Result<AnyReport, serde_json::Error> {
    let mut report: Value = serde_json::from_slice(text)?;
    if report.get("samples").is_none() {
        return serde_json::from_value(report).map(|findings| AnyReport::Trial(Box::new(findings)));
    }
    gather_bulk(&mut report["settings"]);
    list_measures(&mut report["analysis"]);
    serde_json::from_value(report).map(|report| AnyReport::Comparison(Box::new(report)))
}

/// The bulk load was two settings, which every comparison had.
fn gather_bulk(settings: &mut Value) {
    let Some(settings) = settings.as_object_mut() else { return };
    let (connections, bytes) = (settings.remove("bulk_connections"), settings.remove("bulk_bytes"));
    if let (Some(connections), Some(bytes)) = (connections, bytes) {
        settings.insert("bulk".into(), json!({ "connections": connections, "answer_bytes": bytes }));
    }
}

/// The order of tables was the order of medians.
fn list_measures(analysis: &mut Value) {
    let Some(analysis) = analysis.as_object_mut() else { return };
    if analysis.contains_key("measures") {
        return;
    }
    let mut measures: Vec<Value> = Vec::new();
    for median in analysis.get("medians").and_then(Value::as_array).into_iter().flatten() {
        if let Some(measure) = median.get("measure").filter(|measure| !measures.contains(measure)) {
            measures.push(measure.clone());
        }
    }
    analysis.insert("measures".into(), measures.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{report::testing, sample::Measure};

    #[test]
    fn the_bulk_load_and_the_measures_are_found() {
        let report = testing::report();
        let mut old = serde_json::to_value(&report).expect("values");
        old["analysis"].as_object_mut().expect("an object").remove("measures");
        let settings = old["settings"].as_object_mut().expect("an object");
        settings.remove("bulk");
        settings.insert("bulk_connections".into(), 16.into());
        settings.insert("bulk_bytes".into(), 1024.into());
        let Ok(AnyReport::Comparison(read)) = read(old.to_string().as_bytes()) else { panic!("a comparison") };
        assert_eq!(read.analysis.measures, [Measure::CpuPerRequest, Measure::RequestsPerSecond, Measure::LatencyP99]);
        assert_eq!(read.header.settings.bulk.map(|bulk| (bulk.connections, bulk.answer_bytes)), Some((16, 1024)));
    }

    #[test]
    fn those_that_had_measures_keep_theirs() {
        let (report, findings) = (testing::report(), testing::findings());
        let text = serde_json::to_vec(&report).expect("values");
        let Ok(AnyReport::Comparison(read_back)) = read(&text) else { panic!("a comparison") };
        assert_eq!(read_back.analysis.measures, report.analysis.measures);
        assert!(matches!(read(&serde_json::to_vec(&findings).expect("values")), Ok(AnyReport::Trial(_))));
    }
}
