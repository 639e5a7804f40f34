//! The specification that is tuned: what it says of its layout, the same for a trial, and as it is written in the end, with
//! all else of it as it was; knows the words of a specification, and leaves it to `sherd` to check them.

use std::{fmt, io, net::TcpListener};

use toml_edit::{DocumentMut, Item, Table, TableLike, Value};

use crate::{contestant::GROUP, measure::cpus};

/// What a specification means that doesn't say.
const DEFAULT_UNIT: &str = "core";
const DEFAULT_SMT: &str = "share";
const DEFAULT_POLICY: &str = "connection";

/// What is tuned: words of a specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// `layout.unit`.
    pub unit: String,
    /// `layout.smt`.
    pub smt: String,
    /// `policy` of the port that is under load.
    pub policy: String,
}

/// A specification, as far as is known.
#[derive(Debug, Clone)]
pub struct Draft {
    document: DocumentMut,
    /// Which of its ports is under load.
    port: usize,
}

/// What a trial has of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stand<'a> {
    /// Where it publishes, for each port of the specification.
    pub(super) published: &'a [u16],
    /// CPUs of its shards.
    pub(super) cpus: &'a [usize],
    /// Whether somebody chose them for this run; else those that the specification names, if any, are its own.
    pub(super) cpus_are_given: bool,
    /// A label for its containers.
    pub(super) label: Option<(&'a str, &'a str)>,
}

/// A specification can't be tuned.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// It is not TOML.
    #[error("not TOML: {0}")]
    Syntax(#[from] toml_edit::TomlError),
    /// It publishes nothing, or not what is to be under load.
    #[error("it publishes no {}: add [[ports]] with publish = \"8080:80\", or name one that it has by --port", port.map_or("port".into(), |port| format!("container port {port}")))]
    Port {
        /// The container port that was asked for.
        port: Option<u16>,
    },
    /// Not a port.
    #[error("publish = {publish:?} names no container port: write it as \"8080:80\"")]
    Publish {
        /// As written.
        publish: String,
    },
    /// It would be run as something else than it is.
    #[error("it says neither [container] nor [process]")]
    Runtime,
}

impl Draft {
    /// Reads it. `port` is the container port that is under load; the first one, if none is named.
    pub fn parse(text: &str, port: Option<u16>) -> Result<Self, DraftError> {
        let mut draft = Self { document: text.parse()?, port: 0 };
        if !draft.document.contains_key("container") && !draft.document.contains_key("process") {
            return Err(DraftError::Runtime);
        }
        let ports = draft.container_ports()?;
        let found = match port {
            None => (!ports.is_empty()).then_some(0),
            Some(port) => ports.iter().position(|other| *other == port),
        };
        draft.port = found.ok_or(DraftError::Port { port })?;
        Ok(draft)
    }

    /// Whether it runs containers.
    pub(super) fn is_of_containers(&self) -> bool {
        self.document.contains_key("container")
    }

    /// How many ports it publishes.
    pub(super) fn ports(&self) -> usize {
        self.tables().count()
    }

    /// Which of them is under load.
    pub(super) fn port(&self) -> usize {
        self.port
    }

    /// What it says, or means by not saying.
    pub fn choice(&self) -> Choice {
        let layout = self.document.get("layout");
        let word = |key, default: &str| {
            let item = layout.and_then(|layout| layout.get(key)).and_then(Item::as_str);
            item.unwrap_or(default).to_owned()
        };
        let port = self.tables().nth(self.port);
        let policy = port.and_then(|port| port.get("policy")?.as_str()).unwrap_or(DEFAULT_POLICY);
        Choice { unit: word("unit", DEFAULT_UNIT), smt: word("smt", DEFAULT_SMT), policy: policy.to_owned() }
    }

    /// As the group of a trial.
    pub(super) fn trial(&self, choice: &Choice, stand: Stand<'_>) -> String {
        let mut tried = self.clone();
        tried.set(choice);
        put(tried.document.as_table_mut(), "name", GROUP);
        let layout = tried.table("layout");
        if stand.cpus_are_given || !layout.contains_key("cpus") {
            put(layout, "cpus", &cpus::list(stand.cpus));
        }
        if let Some((name, text)) = stand.label.filter(|_| self.is_of_containers()) {
            let container = tried.table("container");
            let labels = container.entry("labels").or_insert_with(|| Item::Table(Table::new()));
            if let Some(labels) = labels.as_table_like_mut() {
                put(labels, name, text);
            }
        }
        // Checked when it was read.
        let ports = self.container_ports().unwrap_or_default();
        for (index, (published, port)) in stand.published.iter().zip(ports).enumerate() {
            tried.set_of_port(index, "publish", &format!("{published}:{port}"));
        }
        tried.document.to_string()
    }

    /// As it is to be, with all else as it was.
    pub fn written(&self, choice: &Choice) -> String {
        let mut written = self.clone();
        written.set(choice);
        written.document.to_string()
    }

    /// Sets what is not so already.
    fn set(&mut self, choice: &Choice) {
        let is = self.choice();
        for (key, is, wanted) in [("unit", &is.unit, &choice.unit), ("smt", &is.smt, &choice.smt)] {
            if is != wanted {
                put(self.table("layout"), key, wanted);
            }
        }
        if is.policy != choice.policy {
            self.set_of_port(self.port, "policy", &choice.policy);
        }
    }

    fn table(&mut self, name: &str) -> &mut dyn TableLike {
        let item = self.document.entry(name).or_insert_with(|| Item::Table(Table::new()));
        if !item.is_table_like() {
            *item = Item::Table(Table::new());
        }
        item.as_table_like_mut().expect("it is a table now")
    }

    fn tables(&self) -> impl Iterator<Item = &dyn TableLike> {
        let ports = self.document.get("ports");
        let tables = ports.and_then(Item::as_array_of_tables).into_iter().flatten();
        let inline = ports.and_then(Item::as_array).into_iter().flatten().filter_map(|port| port.as_inline_table());
        tables.map(|table| table as &dyn TableLike).chain(inline.map(|table| table as _))
    }

    fn set_of_port(&mut self, index: usize, key: &str, text: &str) {
        let Some(ports) = self.document.get_mut("ports") else { return };
        if let Some(table) = ports.as_array_of_tables_mut().and_then(|tables| tables.get_mut(index)) {
            put(table, key, text);
        } else if let Some(table) = ports.as_array_mut().and_then(|ports| ports.get_mut(index)?.as_inline_table_mut()) {
            put(table, key, text);
        }
    }

    fn container_ports(&self) -> Result<Vec<u16>, DraftError> {
        let port = |table: &dyn TableLike| {
            let publish = table.get("publish").and_then(Item::as_str).unwrap_or_default();
            let port = publish.rsplit(':').next().and_then(|port| port.split('/').next()?.parse().ok());
            port.filter(|_| publish.contains(':')).ok_or_else(|| DraftError::Publish { publish: publish.to_owned() })
        };
        self.tables().map(port).collect()
    }
}

impl fmt::Display for Choice {
    /// `core/connection`, `l3+first/balanced`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.layout(), self.policy)
    }
}

impl Choice {
    /// `core`, `l3+first`.
    pub(super) fn layout(&self) -> String {
        if self.smt == DEFAULT_SMT { self.unit.clone() } else { format!("{}+{}", self.unit, self.smt) }
    }
}

/// A text in the place of the value that is there, whose comments stay.
fn put(table: &mut dyn TableLike, key: &str, text: &str) {
    let mut wanted = Value::from(text);
    if let Some(is) = table.get(key).and_then(Item::as_value) {
        wanted.decor_mut().clone_from(is.decor());
    }
    table.insert(key, Item::Value(wanted));
}

/// Ports that nobody has on any address, below those the kernel gives to connecting sockets.
pub(super) fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    const FIRST: u16 = 21_000;
    const PORTS: u16 = 11_000;
    let start = (std::process::id() % u32::from(PORTS)) as u16;
    let candidates = (0..PORTS).map(|step| FIRST + (start + step) % PORTS);
    // Held until all are found, so that none is found twice.
    let held: Vec<TcpListener> =
        candidates.filter_map(|port| TcpListener::bind(("0.0.0.0", port)).ok()).take(count).collect();
    if held.len() < count {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "all ports from 21000 to 31999 are in use"));
    }
    held.iter().map(|listener| listener.local_addr().map(|address| address.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# ours\nname = \"web\"\n\n[layout]\nunit = \"core\" # for now\n\n[container]\nimage = \"a\"\n\n\
                        [[ports]]\npublish = \"192.0.2.1:8080:80\"\n\n[[ports]]\npublish = \"9000:9000\"\npolicy = \"client\"\n";

    fn choice(unit: &str, smt: &str, policy: &str) -> Choice {
        Choice { unit: unit.into(), smt: smt.into(), policy: policy.into() }
    }

    fn draft(port: Option<u16>) -> Draft {
        Draft::parse(TEXT, port).expect("a specification")
    }

    #[test]
    fn what_a_specification_says() {
        assert_eq!(draft(None).choice(), choice("core", "share", "connection"));
        assert_eq!(draft(Some(9000)).choice(), choice("core", "share", "client"));
        let bare = Draft::parse("name = \"a\"\nports = [{ publish = \"1:2\" }]\n[process]\ncommand = [\"x\"]\n", None);
        assert_eq!(bare.expect("a specification").choice().to_string(), "core/connection");
    }

    #[test]
    fn only_what_was_chosen_changes() {
        assert_eq!(draft(None).written(&draft(None).choice()), TEXT);
        let written = draft(None).written(&choice("l3", "first", "balanced"));
        for line in [
            "# ours",
            "unit = \"l3\" # for now",
            "smt = \"first\"",
            "publish = \"192.0.2.1:8080:80\"",
            "name = \"web\"",
        ] {
            assert!(written.lines().any(|found| found == line), "{line} in\n{written}");
        }
        let again = Draft::parse(&written, None).expect("a specification");
        assert_eq!(again.choice(), choice("l3", "first", "balanced"));
        let other = Draft::parse(&written, Some(9000)).expect("a specification");
        assert_eq!(other.choice().policy, "client", "the other port's policy stays");
    }

    #[test]
    fn a_trial_is_a_group_of_its_own() {
        let stand =
            Stand { published: &[21_001, 21_002], cpus: &[0, 1], cpus_are_given: false, label: Some(("a.b", "c")) };
        let text = draft(None).trial(&choice("pu", "share", "balanced"), stand);
        for line in [
            "name = \"bench\"",
            "unit = \"pu\" # for now",
            "cpus = \"0,1\"",
            "publish = \"21001:80\"",
            "publish = \"21002:9000\"",
            "policy = \"balanced\"",
            "\"a.b\" = \"c\"",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        let inline = "name = \"a\"\nports = [{ publish = \"1:2\" }]\n[process]\ncommand = [\"x\"]\n";
        let text =
            Draft::parse(inline, None).expect("a specification").trial(&choice("core", "share", "client"), stand);
        assert!(text.contains("publish = \"21001:2\"") && text.contains("policy = \"client\""), "{text}");
        assert!(!text.contains("labels"), "processes have none:\n{text}");
    }

    #[test]
    fn what_cannot_be_tuned_is_told() {
        let check = |text: &str, port, says: &str| {
            let error = Draft::parse(text, port).expect_err(text).to_string();
            assert!(error.contains(says), "{error}");
        };
        check("name = ", None, "not TOML");
        check("name = \"a\"", None, "neither [container] nor [process]");
        check("[container]\nimage = \"a\"\n", None, "publishes no port");
        check(TEXT, Some(81), "publishes no container port 81");
        check("[container]\n[[ports]]\npublish = \"80\"\n", None, "names no container port");
    }

    #[test]
    fn free_ports_differ() {
        let ports = free_ports(3).expect("there are some");
        assert!(ports.len() == 3 && ports[0] != ports[1] && ports[1] != ports[2], "{ports:?}");
    }
}
