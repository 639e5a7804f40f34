//! A registry with one image, for tests: speaks as much of the distribution API as a pull needs, and wants a password.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
};

use serde_json::json;
use sha2::{Digest, Sha256};

/// `user:secret`, base64.
pub(crate) const AUTH: &str = "dXNlcjpzZWNyZXQ=";
const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// The address of a registry that has `app:1`; its thread ends with the test's process.
pub(crate) fn serve(layer: Vec<u8>) -> String {
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}, "history": [{"created_by": "test"}],
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "size": config.len(), "digest": digest(&config)},
        "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar", "size": layer.len(), "digest": digest(&layer)}],
    });
    let blobs = Arc::new([manifest.to_string().into_bytes(), config, layer]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let blobs = blobs.clone();
            std::thread::spawn(move || answer(stream, &blobs[..]));
        }
    });
    address
}

fn answer(mut stream: TcpStream, blobs: &[Vec<u8>]) -> Option<()> {
    let lines: Vec<String> = BufReader::new(stream.try_clone().ok()?)
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let (method, rest) = lines.first()?.split_once(' ')?;
    let path = rest.split(' ').next()?;
    let allowed = lines.iter().any(|line| line.to_lowercase().starts_with("authorization:") && line.ends_with(AUTH));
    let wanted = path.rsplit('/').next()?;
    let blob =
        if path == "/v2/app/manifests/1" { blobs.first() } else { blobs.iter().find(|blob| digest(blob) == wanted) };
    let (status, kind, body) = match blob {
        _ if !allowed => ("401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"test\"", "application/json", &b"{}"[..]),
        Some(blob) if path.contains("/manifests/") => ("200 OK", MANIFEST, &blob[..]),
        Some(blob) => ("200 OK", "application/octet-stream", &blob[..]),
        None if path == "/v2/" => ("200 OK", "application/json", &b"{}"[..]),
        None => (
            "404 Not Found",
            "application/json",
            &br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#[..],
        ),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\n\
         Docker-Distribution-Api-Version: registry/2.0\r\nConnection: close\r\n\r\n",
        body.len(),
        digest(body)
    );
    stream.write_all(head.as_bytes()).ok()?;
    if method == "GET" { stream.write_all(body).ok() } else { Some(()) }
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
