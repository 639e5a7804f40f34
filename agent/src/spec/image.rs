//! The grammar of image references, as the distribution project defines it; asks no registry.

/// Checks `[REGISTRY/]NAME[:TAG][@DIGEST]` or an image id.
pub(super) fn check(reference: &str) -> Result<(), String> {
    let example = "write NAME[:TAG], for example `nginx:1.27` or `registry.example:5000/team/web@sha256:…`";
    let wrong = |what: &str| Err(format!("`{reference}` is not an image reference: {what}; {example}"));
    if let Some(id) = reference.strip_prefix("sha256:")
        && is_hex(id, 64)
    {
        return Ok(());
    }
    let (rest, digest) = match reference.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (reference, None),
    };
    if !digest.is_none_or(is_digest) {
        return wrong("the part after `@` is not a digest such as sha256 and 64 hex digits");
    }
    // A colon before the last slash belongs to the registry's port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if !tag.is_none_or(is_tag) {
        return wrong("a tag has letters, digits, `_`, `.` and `-`, at most 128");
    }
    if name.len() > 255 {
        return wrong("the name is longer than 255 characters");
    }
    let path = match name.split_once('/') {
        Some((first, path)) if is_registry(first) => path,
        _ => name,
    };
    if path.split('/').all(is_component) {
        return Ok(());
    }
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return wrong("the name must be lower case");
    }
    wrong("a name has lower-case letters and digits, with `.`, `_`, `-` and `/` between them")
}

fn is_registry(first: &str) -> bool {
    let (host, port) = first.rsplit_once(':').map_or((first, None), |(host, port)| (host, Some(port)));
    let named = first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase());
    let host_chars = |c: char| c.is_ascii_alphanumeric() || "-.[]:".contains(c);
    named && !host.is_empty() && host.chars().all(host_chars) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn is_component(component: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    let separators = ["..", "___", "._", "_.", "-.", ".-", "_-", "-_"];
    edge(component.chars().next())
        && edge(component.chars().last())
        && component.chars().all(inside)
        && !separators.iter().any(|wrong| component.contains(wrong))
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= 128 && tag.starts_with(word) && tag.chars().all(|c| word(c) || ".-".contains(c))
}

fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| match algorithm {
        "sha256" => is_hex(hex, 64),
        "sha512" => is_hex(hex, 128),
        _ => false,
    })
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let hex = "0123456789abcdef".repeat(4);
        let digest = format!("web@sha256:{hex}");
        let id = format!("sha256:{hex}");
        let good = [
            "nginx",
            "nginx:1.27-alpine",
            "library/nginx",
            "a__b/c-d/e.f",
            "localhost/x",
            "registry.example:5000/team/web:v1",
            "[::1]:5000/x",
            &digest,
            &id,
        ];
        for reference in good {
            assert_eq!(check(reference), Ok(()), "{reference}");
        }
        let long = "a".repeat(256);
        let bad = [
            "Nginx",
            "nginx:",
            "nginx:a b",
            "-x",
            "x-",
            "a..b",
            "a//b",
            "/a",
            "a/",
            "nginx@sha256:12",
            ":tag",
            "a b",
            "é",
            "http://x/y",
            &long,
        ];
        for reference in bad {
            assert!(check(reference).is_err(), "{reference}");
        }
    }
}
