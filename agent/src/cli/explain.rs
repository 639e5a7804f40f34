//! `sherd explain`: which slot a connection goes to, and why.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use sherd_topology::plan::GroupName;

use super::{Failure, print};
use crate::client::Client;
use crate::control::ExplainQuestion;
use crate::spec::HostPort;
use crate::status::{Destination, Explanation, Level, Outcome, Path, Steering};

/// Show which slot a connection goes to, and why.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
It tells what holds now, of a new connection: one that is established stays where it is.

Examples:
  sherd explain 192.0.2.1:51234 web
  sherd explain '[2001:db8::1]:51234' web -p 8443 --to 2001:db8::9
  sherd explain 192.0.2.1:51234 web --json | jq .goes.slot")]
pub(super) struct Args {
    /// Where the connection comes from; an IPv6 address in brackets.
    #[arg(value_name = "CLIENT:PORT")]
    client: SocketAddr,
    /// The group.
    group: GroupName,
    /// The published port, where the group has several.
    #[arg(short, long, value_name = "PORT")]
    port: Option<u16>,
    /// The address of this host that the client connects to; guessed by default.
    #[arg(long, value_name = "IP")]
    to: Option<IpAddr>,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, client: Client) -> Result<ExitCode, Failure> {
    let question =
        ExplainQuestion { group: args.group, client: args.client, port: args.port.map(HostPort), to: args.to };
    let explanation = client.explain(&question).await?;
    if args.json {
        let json = serde_json::to_string_pretty(&explanation).map_err(|error| Failure::new(error.to_string()))?;
        print(&format!("{json}\n"))?;
    } else {
        print(&text(&explanation))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(it: &Explanation) -> String {
    let mut text = format!("{}: a connection from {} to {} ", it.group, it.client, it.server);
    text.push_str(&match &it.goes {
        Some(goes) => outcome(goes),
        None => "goes to a slot by the CPU that receives its first packet".to_owned(),
    });
    let mut line = |name: &str, what: String| text.push_str(&format!("\n  {name:<11} {what}"));
    if it.server_guessed {
        line("to", format!("{} is a guess: --to says at which address it connects", it.server.ip()));
    }
    let steering = match it.steering {
        Steering::Ebpf => "eBPF",
        Steering::Classic => "classic BPF, which tells no more",
        Steering::None => "nobody",
    };
    line("published", format!("{}, policy {}, steered by {steering}", it.published, it.policy));
    if let (Some(hash), Some(entry), Some(first)) = (&it.hash, it.entry, it.first_choice) {
        let state = if it.in_service.contains(&first) { "in service" } else { "out of service" };
        line("hash", format!("{hash}, entry {entry} of {}: slot {first}, which is {state}", it.table_len));
    }
    let slots: Vec<String> = it.in_service.iter().map(ToString::to_string).collect();
    line("in service", if slots.is_empty() { "no slot".to_owned() } else { format!("slots {}", slots.join(", ")) });
    if let Some((slot, otherwise)) = it.goes.as_ref().and_then(|goes| goes.slot).zip(it.otherwise.as_ref()) {
        line("otherwise", format!("were slot {slot} out, it {}", outcome(otherwise).replacen("goes", "would go", 1)));
    }
    for by_cpu in &it.by_cpu {
        line(&format!("CPU {}", by_cpu.cpu), outcome(&by_cpu.goes));
    }
    text.push('\n');
    text
}

fn outcome(destination: &Destination) -> String {
    let Some(slot) = destination.slot else {
        return match destination.outcome {
            Outcome::Refused => "is refused: no slot is in service".to_owned(),
            Outcome::Waits | Outcome::Slot => "waits: no slot is in service".to_owned(),
        };
    };
    let path = match destination.path {
        Some(Path::Direct) => ", directly",
        Some(Path::Relay) => ", by relay",
        None => "",
    };
    let level = match destination.level {
        None | Some(Level::First) => "",
        Some(Level::Lighter) => ", whose first choice is out or has more to do",
        Some(Level::L3) => ", the fail-over in the same L3",
        Some(Level::Node) => ", the fail-over on the same NUMA node",
        Some(Level::Package) => ", the fail-over in the same package",
        Some(Level::Any) => ", the fail-over over all slots",
    };
    format!("goes to slot {slot}{path}{level}")
}
