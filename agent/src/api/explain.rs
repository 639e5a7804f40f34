//! The handler of `/v1/groups/{group}/explain`.

use axum::Json;
use axum::extract::{Path, RawQuery, State};

use super::ask::Loop;
use super::error::ApiError;
use super::groups::group;
use super::routes::Query;
use super::wire::ErrorBody;
use crate::control::{ExplainQuestion, Request};
use crate::spec::HostPort;
use crate::status::Explanation;

/// Which slot a connection from an address goes to, and why.
#[utoipa::path(get, path = "/v1/groups/{group}/explain", params(("group" = String, Path, description = "Name of the group"),
        ("client" = String, Query, description = "Address and port that the connection comes from"),
        ("port" = Option<u16>, Query, description = "The published port, where the group has several"),
        ("to" = Option<String>, Query, description = "The host's address that the client connects to")),
    responses((status = 200, body = Explanation), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn explain(
    State(state): State<Loop>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Explanation>, ApiError> {
    let query = Query::read(query.as_deref(), &["client", "port", "to"])?;
    let client = query.parsed("client", "an address and a port, as 192.0.2.1:51234 or [2001:db8::1]:51234")?;
    let client = client.ok_or_else(|| ApiError::bad_request("client is missing: the address of a connection"))?;
    let (port, to) = (query.number("port")?.map(HostPort), query.parsed("to", "an IP address")?);
    let question = ExplainQuestion { group: group(&name)?, client, port, to };
    Ok(Json(state.ask(|reply| Request::Explain { question, reply }).await??))
}
