//! The last step: finds the program as Docker does and becomes it. Knows nothing of what was before.

use std::{
    convert::Infallible,
    ffi::{CStr, CString},
};

use rustix::io::Errno;

use crate::sys;

/// Why the program can't be executed; the text is a shell's.
#[derive(Debug, thiserror::Error)]
#[error("{program}: {errno}")]
pub(crate) struct ExecError {
    program: String,
    errno: Errno,
}

impl ExecError {
    /// Whether there is no such program, in contrast to one that can't be run.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self.errno, Errno::NOENT | Errno::NOTDIR)
    }
}

/// Becomes `command[0]` with all of `command` as its arguments. `command` is not empty.
///
/// Not execvp(3): where PATH is empty or has an empty element it looks into the current directory, and it gives a
/// file of unknown format to /bin/sh. Docker does neither.
pub(crate) fn exec(command: &[&CStr], environment: &[&CStr]) -> Result<Infallible, ExecError> {
    let mut errno = Errno::NOENT;
    for candidate in candidates(command[0], environment) {
        match sys::execve(&candidate, command, environment) {
            Errno::NOENT | Errno::NOTDIR if errno == Errno::ACCESS => {}
            tried @ (Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => errno = tried,
            fatal => {
                errno = fatal;
                break;
            }
        }
    }
    Err(ExecError { program: command[0].to_string_lossy().into_owned(), errno })
}

/// The files that `program` may mean, in the order of PATH.
fn candidates(program: &CStr, environment: &[&CStr]) -> Vec<CString> {
    let name = program.to_bytes();
    if name.is_empty() || name.contains(&b'/') {
        return vec![program.to_owned()];
    }
    let path = environment.iter().find_map(|variable| variable.to_bytes().strip_prefix(b"PATH="));
    let folders = path.unwrap_or_default().split(|byte| *byte == b':').filter(|folder| !folder.is_empty());
    // No byte of a C string is zero.
    folders.filter_map(|folder| CString::new([folder, b"/", name].concat()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_in_path() {
        let check = |program, environment: &[&CStr], expected: &[&CStr]| {
            assert_eq!(candidates(program, environment), expected, "{program:?} {environment:?}");
        };
        check(c"app", &[c"A=1", c"PATH=/usr/bin:/bin", c"PATH=/x"], &[c"/usr/bin/app", c"/bin/app"]);
        check(c"app", &[c"PATH=bin:.:/\xff"], &[c"bin/app", c"./app", c"/\xff/app"]);
        check(c"/app", &[c"PATH=/bin"], &[c"/app"]);
        check(c"./app", &[c"PATH=/bin"], &[c"./app"]);
        check(c"a/b", &[], &[c"a/b"]);
        // Nowhere, rather than in the current directory.
        check(c"app", &[c"PATH=:/bin::"], &[c"/bin/app"]);
        check(c"app", &[c"PATH="], &[]);
        check(c"app", &[c"XPATH=/bin", c"PATHS=/bin"], &[]);
        check(c"", &[c"PATH=/bin"], &[c""]);
    }
}
