//! Every route of the API, as a table that the router is made from and that tests compare with the OpenAPI document.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{self, MethodRouter};

use super::ask::Served;
use super::error::ApiError;
use super::{explain, groups, openapi, rollout, stream, usage};

type Route = (&'static str, &'static str, MethodRouter<Served>);

fn routes() -> [Route; 15] {
    [
        ("get", "/v1/status", routing::get(groups::status)),
        ("get", "/v1/groups", routing::get(groups::list)),
        ("get", "/v1/groups/{group}", routing::get(groups::get)),
        ("put", "/v1/groups/{group}", routing::put(groups::put)),
        ("delete", "/v1/groups/{group}", routing::delete(groups::delete)),
        ("get", "/v1/groups/{group}/specification", routing::get(groups::specification)),
        ("get", "/v1/groups/{group}/logs", routing::get(stream::logs)),
        ("get", "/v1/groups/{group}/explain", routing::get(explain::explain)),
        ("get", "/v1/groups/{group}/rollout", routing::get(rollout::status)),
        ("post", "/v1/groups/{group}/rollout/{action}", routing::post(rollout::act)),
        ("post", "/v1/plan", routing::post(groups::plan)),
        ("get", "/v1/usage", routing::get(usage::usage)),
        ("get", "/v1/events", routing::get(stream::events)),
        ("get", "/v1/topology", routing::get(groups::topology)),
        ("get", "/openapi.json", routing::get(openapi::get)),
    ]
}

pub(super) fn router(served: Served) -> Router {
    let router = routes().into_iter().fold(Router::new(), |router, (_, path, handler)| router.route(path, handler));
    router.fallback(no_such_path).method_not_allowed_fallback(no_such_method).with_state(served)
}

async fn no_such_path() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "unknown-path", "no such path: /openapi.json lists them")
}

async fn no_such_method() -> ApiError {
    let message = "the path has no such method: /openapi.json lists them";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "unknown-method", message)
}

/// A query string of known keys.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query string; a key that isn't known is an error, as in a specification.
    pub(super) fn read(query: Option<&str>, known: &[&str]) -> Result<Self, ApiError> {
        let uri = format!("/?{}", query.unwrap_or_default()).parse().map_err(|_| ApiError::bad_request("bad query"))?;
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri);
        let pairs = pairs.map_err(|error| ApiError::bad_request(error.body_text()))?.0;
        match pairs.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            Some((key, _)) => {
                Err(ApiError::bad_request(format!("unknown query `{key}`: known are {}", known.join(", "))))
            }
            None => Ok(Self(pairs)),
        }
    }

    pub(super) fn text(&self, key: &str) -> Option<String> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value.clone())
    }

    /// `?key`, `?key=true` or `?key=false`.
    pub(super) fn flag(&self, key: &str) -> Result<bool, ApiError> {
        match self.text(key).as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(other) => Err(ApiError::bad_request(format!("{key} is true or false, not `{other}`"))),
        }
    }

    pub(super) fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, ApiError> {
        self.parsed(key, "a whole number")
    }

    /// A value that is written as `what`.
    pub(super) fn parsed<T: std::str::FromStr>(&self, key: &str, what: &str) -> Result<Option<T>, ApiError> {
        let parse =
            |text: String| text.parse().map_err(|_| ApiError::bad_request(format!("{key} is {what}, not `{text}`")));
        self.text(key).map(parse).transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let document = serde_json::to_value(openapi::document()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let documented: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, item)| item.as_object().unwrap().keys().map(|method| (method.clone(), path.clone())))
            .collect();
        let routed = routes().into_iter().map(|(method, path, _)| (method.to_owned(), path.to_owned())).collect();
        assert_eq!(documented, routed);
    }
}
