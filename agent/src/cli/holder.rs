//! `sherd holder`: the process that keeps descriptors while the agent is away. Has no thread but its own.

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use nix::unistd::setsid;
use sherd_lb::holder::{self, Idle};

use super::Failure;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where it listens.
    #[arg(long, value_name = "SOCKET")]
    socket: PathBuf,
    /// Go on in the background, in a session of its own.
    #[arg(long)]
    detach: bool,
    /// End when nothing is held and nobody is connected.
    #[arg(long)]
    exit_when_idle: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    if args.detach {
        return detach(args);
    }
    // Fails for a session's leader, which is one already.
    let _ = setsid();
    let listener = bind(&args.socket)?;
    let idle = if args.exit_when_idle { Idle::Exit } else { Idle::Stay };
    let served = holder::serve(listener, idle);
    // Whoever comes next binds anew; a file that is gone already is as good.
    let _ = fs::remove_file(&args.socket);
    served.map_err(|source| file_failure(&args.socket, "served", source))?;
    Ok(ExitCode::SUCCESS)
}

/// Starts the holder as a child, which becomes nobody's when this process ends.
fn detach(args: &Args) -> Result<ExitCode, Failure> {
    let program = std::env::current_exe().map_err(Failure::system)?;
    let mut command = Command::new(program);
    command.arg("holder").arg("--socket").arg(&args.socket);
    if args.exit_when_idle {
        command.arg("--exit-when-idle");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    command.spawn().map(|_| ExitCode::SUCCESS).map_err(Failure::system)
}

/// A socket for root alone. One that nobody serves is replaced; two holders on one path would each have half.
fn bind(path: &Path) -> Result<UnixListener, Failure> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let alive = io::Error::new(io::ErrorKind::AddrInUse, "another holder serves it");
        return Err(file_failure(path, "bound", alive));
    }
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(file_failure(path, "replaced", error));
    }
    let listener = UnixListener::bind(path).map_err(|source| file_failure(path, "bound", source))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(|source| file_failure(path, "protected", source))?;
    Ok(listener)
}

fn file_failure(path: &Path, action: &'static str, source: io::Error) -> Failure {
    Failure::File { path: path.display().to_string(), action, source }
}
