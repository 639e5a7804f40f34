//! What a run of faults leaves: every fault with what it cost, and every lost connection with what it is owed to; owns their form and
//! concludes only what follows from them.

use std::{
    fmt::Write as _,
    io,
    time::{Duration, Instant, SystemTime},
};

use serde::Serialize;

use super::{
    Done, Options,
    losses::{Explanation, Incident, Loss, LossKind, Whose},
    schedule::Fault,
};
use crate::{
    analysis::{Verdict, VerdictWord},
    contestant::{Event, Facts},
    load::{Reached, Visit},
    measure::HostFacts,
    report::{Bins, Document, Findings, Page, Series, Timeline, utc},
};

/// In its text; the JSON has all.
const MOST_TOLD: usize = 300;
/// Events of the agent that are told for each fault.
const MOST_EVENTS: usize = 12;
/// Of time lines.
const BIN_SECONDS: f64 = 0.1;

/// What is left.
#[derive(Debug, Clone, Serialize)]
pub struct ChaosReport {
    #[serde(flatten)]
    findings: Findings,
    episodes: Vec<EpisodeTold>,
}

/// One schedule against one group, as reports have it.
#[derive(Debug, Clone, Serialize)]
struct EpisodeTold {
    name: String,
    faults: Vec<FaultTold>,
    losses: Vec<LossTold>,
}

/// One schedule against one group.
pub(super) struct Episode {
    pub(super) name: String,
    pub(super) facts: Facts,
    pub(super) start: Instant,
    pub(super) ran: Duration,
    pub(super) faults: Vec<FaultTold>,
    pub(super) losses: Vec<LossTold>,
    pub(super) visits: Vec<Visit>,
    /// When requests on kept connections were sent, and how long they took.
    pub(super) kept: Vec<(Instant, Duration)>,
    pub(super) is_whole: bool,
}

/// One fault.
#[derive(Debug, Clone, Serialize)]
pub(super) struct FaultTold {
    fault: Fault,
    what: String,
    began_seconds: f64,
    /// None: not within the run, or it was not done.
    whole_again_seconds: Option<f64>,
    skipped: bool,
    /// What the agent said of it.
    events: Vec<String>,
}

/// One lost connection.
#[derive(Debug, Clone, Serialize)]
pub(super) struct LossTold {
    pub(super) loss: Loss,
    pub(super) explanation: Explanation,
}

impl FaultTold {
    pub(super) fn of(
        fault: &Fault,
        done: &Done,
        incident: &Incident,
        events: &[(Instant, Event)],
        start: Instant,
        group: &str,
    ) -> Self {
        let over = incident.over.unwrap_or(Duration::MAX);
        let is_its = |(at, event): &&(Instant, Event)| {
            let at = at.saturating_duration_since(start);
            let concerns = event.group.as_deref().is_none_or(|of| of == group)
                && (incident.slot.is_none() || event.slot.is_none() || event.slot == incident.slot);
            concerns && at >= incident.began && at <= over && event.kind != "progress"
        };
        let told = |(at, event): &(Instant, Event)| {
            let after = at.saturating_duration_since(start).saturating_sub(incident.began);
            let words = [Some(event.kind.as_str()), event.state.as_deref(), Some(&event.message)];
            let words: Vec<&str> = words.into_iter().flatten().filter(|word| !word.is_empty()).collect();
            format!("{:+.3} s {}", after.as_secs_f64(), words.join(": "))
        };
        Self {
            fault: *fault,
            what: done.what.clone(),
            began_seconds: incident.began.as_secs_f64(),
            whole_again_seconds: incident.over.filter(|_| !done.skipped).map(|over| over.as_secs_f64()),
            skipped: done.skipped,
            events: events.iter().filter(is_its).take(MOST_EVENTS).map(told).collect(),
        }
    }

    /// From its begin until the group was whole again.
    fn seconds(&self) -> Option<f64> {
        Some(self.whole_again_seconds? - self.began_seconds)
    }
}

impl ChaosReport {
    /// Of all of a run's episodes.
    pub(super) fn of(options: &Options, started: SystemTime, episodes: Vec<Episode>) -> io::Result<Self> {
        let (mut series, mut timelines, mut verdicts) = (Vec::new(), Vec::new(), Vec::new());
        let mut remarks = vec![format!(
            "the load: {} visits/s of one request each, {} kept connections",
            options.visits_per_second, options.kept
        )];
        for episode in &episodes {
            series.extend(episode.series());
            timelines.extend(episode.timelines());
            verdicts.extend(episode.verdicts());
            remarks.extend(episode.remarks());
        }
        let findings = Findings {
            scenario: "chaos".into(),
            origin: options.trial.origin.clone(),
            started: utc(started),
            took_seconds: started.elapsed().map_or(0.0, |took| took.as_secs_f64()),
            host: HostFacts::read()?,
            contestants: episodes.iter().map(|episode| episode.facts.clone()).collect(),
            series,
            timelines,
            remarks,
            verdicts,
        };
        let told =
            |episode: Episode| EpisodeTold { name: episode.name, faults: episode.faults, losses: episode.losses };
        Ok(Self { findings, episodes: episodes.into_iter().map(told).collect() })
    }
}

impl Episode {
    fn series(&self) -> Vec<Series> {
        let mut series = Vec::new();
        for kind in super::Kind::ALL {
            let of_kind: Vec<(usize, &FaultTold)> =
                self.faults.iter().enumerate().filter(|(_, told)| told.fault.kind == kind && !told.skipped).collect();
            if of_kind.is_empty() {
                continue;
            }
            let name = format!("{}, {}", kind.name(), self.name);
            let lost =
                |number: usize| self.losses.iter().filter(|told| told.explanation.fault == Some(number)).count() as f64;
            let lost = of_kind.iter().map(|(number, _)| lost(*number)).collect();
            let seconds = of_kind.iter().filter_map(|(_, told)| told.seconds()).collect();
            series.push(Series::new(format!("connections lost by one {name}"), lost));
            series.push(Series::new(format!("  s until the group is whole again, {name}"), seconds));
        }
        series
    }

    /// What failed when, and what waited how long.
    fn timelines(&self) -> [Timeline; 2] {
        let bins =
            Bins { from: 0.0, width: BIN_SECONDS, count: (self.ran.as_secs_f64() / BIN_SECONDS).ceil() as usize };
        let lost = self.losses.iter().map(|told| told.loss.ended.as_secs_f64());
        let since = |moment: Instant| moment.saturating_duration_since(self.start).as_secs_f64();
        let millis = |took: Duration| took.as_secs_f64() * 1e3;
        let visits = self.visits.iter().filter(|visit| visit.failure.is_none());
        let waited = visits.map(|visit| (since(visit.began), millis(visit.took())));
        let waited = waited.chain(self.kept.iter().map(|(asked, took)| (since(*asked), millis(*took))));
        let name = &self.name;
        let lost = Timeline::counts(format!("connections lost, since the begin ({name})"), "per 100 ms", bins, lost);
        let longest = format!("the longest that was answered, by when it was asked, since the begin ({name})");
        let marked = |timeline: Timeline| {
            self.faults.iter().filter(|told| !told.skipped).fold(timeline, |timeline, told| {
                let slot = told.fault.slot.map(|slot| format!(" {slot}")).unwrap_or_default();
                timeline.mark(told.began_seconds, format!("{}{slot}", told.fault.kind.name()))
            })
        };
        [lost, Timeline::largest(longest, "ms", bins, waited)].map(marked)
    }

    fn unexplained(&self) -> usize {
        self.losses.iter().filter(|told| !told.explanation.cause.is_explained()).count()
    }

    fn verdicts(&self) -> [Verdict; 3] {
        let word = |holds: bool| if holds { VerdictWord::Held } else { VerdictWord::NotHeld };
        let verdict = |target: &str, found: String, holds: bool| Verdict {
            target: format!("{target} ({})", self.name),
            found,
            word: word(holds),
            because: None,
        };
        let found = format!("{} of {} lost", self.unexplained(), self.losses.len());
        let whole = if self.is_whole { "whole" } else { "not whole" };
        let (unrepaired, failed) = (self.faults_that_say("NOT repaired"), self.faults_that_say("FAILED"));
        [
            verdict("no connection is lost that no fault explains", found, self.unexplained() == 0),
            verdict("the group is whole again after all", whole.into(), self.is_whole),
            verdict(
                "what drifted is repaired, and everything was undone",
                format!("{unrepaired} not repaired, {failed} failed"),
                unrepaired + failed == 0,
            ),
        ]
    }

    fn faults_that_say(&self, words: &str) -> usize {
        self.faults.iter().filter(|told| told.what.contains(words)).count()
    }

    /// The group's faults and losses, one by one; shown by every form of report.
    fn remarks(&self) -> Vec<String> {
        let answered = self.visits.iter().filter(|visit| visit.failure.is_none()).count();
        let mut lines = vec![format!(
            "{}: {answered} visits and {} requests on kept connections were answered, {} connections were lost",
            self.name,
            self.kept.len(),
            self.losses.len()
        )];
        for (number, told) in self.faults.iter().enumerate() {
            lines.push(self.fault_line(number, told));
        }
        lines
    }

    fn fault_line(&self, number: usize, told: &FaultTold) -> String {
        let mut line = format!("fault {number} at {:.3} s: {}", told.began_seconds, told.what);
        if told.skipped {
            return line;
        }
        match told.seconds() {
            Some(seconds) => write!(line, "; the group was whole again after {seconds:.2} s"),
            None => write!(line, "; the group was NOT whole again before the end"),
        }
        .expect("a String takes all");
        let of_it = |kind| {
            let lost = self.losses.iter().filter(|told| told.explanation.fault == Some(number));
            lost.filter(|told| told.loss.kind == kind).count()
        };
        let (visits, kept) = (of_it(LossKind::Visit), of_it(LossKind::Kept));
        write!(line, "; lost {visits} visits and {kept} kept connections").expect("a String takes all");
        line
    }
}

impl Document for ChaosReport {
    /// It is one of a trial, and more.
    const KIND: &'static str = Findings::KIND;

    fn text(&self) -> String {
        let mut text = self.findings.to_string();
        for episode in &self.episodes {
            let name = &episode.name;
            let (losses, events) = (episode.losses_text(), episode.events_text());
            let _ =
                write!(text, "\nlost connections ({name})\n{losses}\nwhat the agent said of faults ({name})\n{events}");
        }
        text
    }

    fn page(&self) -> Page {
        self.episodes.iter().fold(self.findings.page(), |page, episode| {
            let title = format!("Lost connections ({})", episode.name);
            let says = "Each with the fault that it is owed to and why nobody could save it, in the order in which they were lost.";
            page.with_text(&title, says, episode.losses_text())
        })
    }
}

impl EpisodeTold {
    /// Those of one fault and cause have one heading, where they come together.
    fn losses_text(&self) -> String {
        let (mut text, mut before) = (String::new(), None);
        for told in self.losses.iter().take(MOST_TOLD) {
            if before.replace(&told.explanation) != Some(&told.explanation) {
                text.push_str(&heading(&told.explanation));
            }
            text.push_str(&loss_line(&told.loss));
        }
        match self.losses.len() {
            0 => text.push_str("  none\n"),
            count if count > MOST_TOLD => text.push_str(&format!("  and {} more: see the JSON\n", count - MOST_TOLD)),
            _ => {}
        }
        text
    }

    fn events_text(&self) -> String {
        let mut text = String::new();
        for (number, told) in self.faults.iter().enumerate() {
            text.push_str(&format!("  fault {number}, {}\n", told.fault));
            told.events.iter().for_each(|event| text.push_str(&format!("    {event}\n")));
        }
        text
    }
}

fn heading(explanation: &Explanation) -> String {
    let fault = explanation.fault.map_or_else(|| "no fault".to_owned(), |fault| format!("fault {fault}"));
    format!("  {fault}: {}\n", explanation.cause.words())
}

fn loss_line(loss: &Loss) -> String {
    let Loss { kind, began, ended, client, slot, reached, error, .. } = loss;
    let kind = match kind {
        LossKind::Visit => "visit",
        LossKind::Kept => "kept connection",
    };
    let client = client.map_or_else(|| "nowhere".to_owned(), |client| client.to_string());
    let slot = match slot {
        Whose::Told(slot) => format!("slot {slot} by its answers"),
        Whose::ByTable(slot) => format!("slot {slot} by the steering table"),
        Whose::Unknown => "slot unknown".to_owned(),
    };
    let reached = match reached {
        Reached::Connecting => "connecting",
        Reached::Asked => "asked, no byte of an answer",
        Reached::PartlyAnswered => "partly answered",
        Reached::Answered => "answered, and idle",
    };
    let (at, age) = (ended.as_secs_f64(), ended.saturating_sub(*began).as_secs_f64() * 1e3);
    format!("    {at:.3} s {kind} from {client}, {slot}, {age:.1} ms old, {reached}: {error}\n")
}
