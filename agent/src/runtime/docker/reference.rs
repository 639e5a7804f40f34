//! Image references, `[REGISTRY/]NAME[:TAG][@DIGEST]`, by the grammar of github.com/distribution/reference. PURE.

use crate::runtime::RuntimeError;

/// Docker's name of the registry that needs none.
pub(super) const DOCKER_HUB: &str = "docker.io";
/// Longest name; the grammar's own bound.
const NAME_MAX: usize = 255;

/// A checked reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    /// Host and port of the registry; Docker Hub when not named.
    pub(super) registry: String,
    /// Everything before tag and digest, as written.
    pub(super) name: String,
    /// `latest` when neither tag nor digest is given.
    pub(super) tag: Option<String>,
    pub(super) digest: Option<String>,
}

impl Reference {
    pub(super) fn parse(image: &str) -> Result<Self, RuntimeError> {
        parse(image).map_err(|reason| RuntimeError::BadReference { image: image.to_owned(), reason })
    }

    /// What a pull asks for beside the name: the digest where there is one, else the tag.
    pub(super) fn version(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

fn parse(image: &str) -> Result<Reference, String> {
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(checked(digest, is_digest, "digest")?)),
        None => (image, None),
    };
    // A colon after the last slash begins the tag; one before it belongs to the registry's port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(checked(tag, is_tag, "tag")?)),
        _ => (rest, None),
    };
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(format!("its name has {} characters, and 1 to {NAME_MAX} are possible", name.len()));
    }
    let (registry, path) = match name.split_once('/') {
        Some((host, path)) if host == "localhost" || host.contains(['.', ':']) || host != host.to_lowercase() => {
            (checked(host, is_host, "registry")?, path)
        }
        _ => (DOCKER_HUB.to_owned(), name),
    };
    for component in path.split('/') {
        checked(component, is_component, "part of the name")?;
    }
    let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
    Ok(Reference { registry, name: name.to_owned(), tag, digest })
}

fn checked(text: &str, is: fn(&str) -> bool, what: &str) -> Result<String, String> {
    if is(text) { Ok(text.to_owned()) } else { Err(format!("`{text}` is no {what}")) }
}

fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, hex)| {
        let lower_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        !algorithm.is_empty()
            && algorithm.bytes().all(|byte| lower_alphanumeric(byte) || b"+._-".contains(&byte))
            && hex.len() >= 32
            && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&text.len())
        && text.bytes().enumerate().all(|(at, byte)| word(byte) || (at > 0 && b".-".contains(&byte)))
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_ok = match bracketed {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            let edges = !label.starts_with('-') && !label.ends_with('-');
            !label.is_empty() && edges && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        }),
    };
    host_ok && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Lower-case letters and digits, separated by one `.`, one or two `_`, or any number of `-`.
fn is_component(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let edges = bytes.first().zip(bytes.last()).is_some_and(|(a, z)| alphanumeric(*a) && alphanumeric(*z));
    edges
        && bytes.split(|byte| alphanumeric(*byte)).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(image: &str, expected: Option<(&str, &str, &str)>) {
        let found = parse(image);
        let parts = found.as_ref().ok().map(|found| (found.registry.as_str(), found.name.as_str(), found.version()));
        assert_eq!(parts, expected, "{image}: {found:?}");
    }

    #[test]
    fn references_are_docker_s() {
        const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        check("nginx", Some(("docker.io", "nginx", "latest")));
        check("nginx:1.25", Some(("docker.io", "nginx", "1.25")));
        check("library/nginx", Some(("docker.io", "library/nginx", "latest")));
        check("localhost/app:dev", Some(("localhost", "localhost/app", "dev")));
        check("registry.example:5000/a/b_c:v1", Some(("registry.example:5000", "registry.example:5000/a/b_c", "v1")));
        check("[::1]:5000/a", Some(("[::1]:5000", "[::1]:5000/a", "latest")));
        check(&format!("ghcr.io/a/b@{DIGEST}"), Some(("ghcr.io", "ghcr.io/a/b", DIGEST)));
        check(&format!("a:1@{DIGEST}"), Some(("docker.io", "a", DIGEST)));
    }

    #[test]
    fn bad_references_are_refused_before_the_engine_sees_them() {
        for image in ["", "Nginx", "a//b", "a:", ":a", "a b", "a:t/b", "-a", "a-", "a..b", "a@sha256:12", "../a", "a?b"]
        {
            check(image, None);
        }
        check(&"a".repeat(256), None);
        check(&format!("a:{}", "t".repeat(129)), None);
        check("a:b:c", None);
    }
}
