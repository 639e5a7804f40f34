//! Why a comparison ended without a report.

use std::{io, time::Duration};

use nix::unistd::Pid;

use super::chaos::ScheduleError;
use crate::{
    contestant::{ApiError, MetricsError, StartError},
    load::{FetchError, IdleError, LoadError},
    measure::ProcessError,
    report::Missing,
};

/// A comparison ended without a report.
#[derive(Debug, thiserror::Error)]
pub enum ComparisonError {
    /// A contestant that has to be there isn't.
    #[error("a contestant cannot take part")]
    Start(#[from] StartError),
    /// None of those that were chosen takes part.
    #[error("nobody takes part: {}", missing.iter().map(|missing| &*missing.why).collect::<Vec<_>>().join("; "))]
    Nobody {
        /// Why.
        missing: Vec<Missing>,
    },
    /// A contestant doesn't do its work.
    #[error("{contestant} does not answer as it should")]
    Wrong {
        /// Who.
        contestant: String,
        /// What it did.
        source: FetchError,
    },
    /// Its shards run otherwise than the subject's.
    #[error(
        "the shards of {contestant} don't run under the same conditions as those of {subject}: {conditions}, not {of_subject}"
    )]
    Unequal {
        /// Whose.
        contestant: String,
        /// What theirs are.
        conditions: String,
        /// Compared with whose.
        subject: String,
        /// What those are.
        of_subject: String,
    },
    /// System calls could not be counted.
    #[error("the system calls of {contestant} cannot be counted")]
    Calls {
        /// Whose.
        contestant: String,
        /// Why.
        source: io::Error,
    },
    /// A load could not be put on.
    #[error("{contestant} cannot be put under load")]
    Load {
        /// Who.
        contestant: String,
        /// Why.
        source: LoadError,
    },
    /// Nothing was answered.
    #[error("{contestant} answered nothing; of {failed} requests the first failed with: {cause}")]
    Silent {
        /// Who.
        contestant: String,
        /// How many failed.
        failed: u64,
        /// The first cause.
        cause: String,
    },
    /// Idle connections could not be opened.
    #[error("{contestant} cannot hold idle connections")]
    Idle {
        /// Who.
        contestant: String,
        /// Why.
        source: IdleError,
    },
    /// Another load generator doesn't do its work.
    #[error("{name} cannot be run")]
    Generator {
        /// Which.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A process that is measured is gone.
    #[error("{contestant} cannot be measured")]
    Process {
        /// Who.
        contestant: String,
        /// Why.
        source: ProcessError,
    },
    /// A metric that a trial stands on is not there.
    #[error("the agent cannot be asked")]
    Metrics(#[from] MetricsError),
    /// An agent doesn't answer.
    #[error("the agent cannot be asked")]
    Api(#[from] ApiError),
    /// A group of somebody's can't be tried.
    #[error("group {group} cannot be tried: {why}")]
    Group {
        /// Which.
        group: String,
        /// Why, and what to do.
        why: String,
    },
    /// A schedule of faults isn't one.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The scratch directory can't be written.
    #[error("the scratch directory cannot be written")]
    Scratch(#[source] io::Error),
    /// A process could not be stopped, continued or killed.
    #[error("process {pid} cannot {action}")]
    Signal {
        /// Which.
        pid: Pid,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Something did not come about.
    #[error("{what} was waited for in vain, for {deadline:?}")]
    InVain {
        /// What.
        what: &'static str,
        /// How long.
        deadline: Duration,
    },
    /// The host doesn't tell what it should.
    #[error("the host cannot be read")]
    Host(#[source] io::Error),
    /// Somebody wants the run to end.
    #[error("interrupted")]
    Interrupted,
}
