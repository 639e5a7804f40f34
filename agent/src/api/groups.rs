//! Handlers of `/v1/groups` and of everything else that answers with one document.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use sherd_topology::model::Host;
use sherd_topology::plan::GroupName;

use super::ask::{Loop, text};
use super::error::ApiError;
use super::routes::Query;
use super::wire::{ErrorBody, PlanBody, Stopped};
use crate::control::Request;
use crate::spec::{GroupSpec, SpecFault, SpecFaults};
use crate::status::{AgentStatus, GroupStatus, PlanReport};

/// Specifications in one plan request.
const MAX_PLAN_SPECS: usize = 256;

/// The agent and everything it runs.
#[utoipa::path(get, path = "/v1/status", responses(
    (status = 200, body = AgentStatus), (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
pub(super) async fn status(State(state): State<Loop>) -> Result<Json<AgentStatus>, ApiError> {
    Ok(Json(state.ask(|reply| Request::Status { reply }).await?))
}

/// Every group.
#[utoipa::path(get, path = "/v1/groups", responses((status = 200, body = [GroupStatus]), (status = 503, body = ErrorBody)))]
pub(super) async fn list(State(state): State<Loop>) -> Result<Json<Vec<GroupStatus>>, ApiError> {
    Ok(Json(state.ask(|reply| Request::Status { reply }).await?.groups))
}

/// One group.
#[utoipa::path(get, path = "/v1/groups/{group}", params(("group" = String, Path, description = "Name of the group")),
    responses((status = 200, body = GroupStatus), (status = 404, body = ErrorBody)))]
pub(super) async fn get(State(state): State<Loop>, Path(name): Path<String>) -> Result<Json<GroupStatus>, ApiError> {
    let group = group(&name)?;
    let groups = state.ask(|reply| Request::Status { reply }).await?.groups;
    let found = groups.into_iter().find(|status| status.name == group);
    found.map(Json).ok_or_else(|| ApiError::unknown_group(&name))
}

/// The text of a group's specification, as it was applied.
#[utoipa::path(get, path = "/v1/groups/{group}/specification",
    params(("group" = String, Path, description = "Name of the group")),
    responses((status = 200, body = String, content_type = "application/toml"), (status = 404, body = ErrorBody)))]
pub(super) async fn specification(
    State(state): State<Loop>,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let group = group(&name)?;
    let text = state.ask(|reply| Request::Specification { group, reply }).await?;
    let text = text.ok_or_else(|| ApiError::unknown_group(&name))?;
    Ok(([(CONTENT_TYPE, "application/toml")], text))
}

/// Makes the host run a specification. Answers when it is planned, published and stored; shards start after that.
#[utoipa::path(put, path = "/v1/groups/{group}", request_body(content = String, content_type = "application/toml",
        description = "The specification; its name must be the group's"),
    params(("group" = String, Path, description = "Name of the group"),
        ("dry-run" = Option<bool>, Query, description = "Only say what would change"),
        ("file" = Option<String>, Query, description = "Names the text in faults")),
    responses((status = 200, body = PlanReport), (status = 409, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 422, body = ErrorBody, description = "The specification has faults")))]
pub(super) async fn put(
    State(state): State<Loop>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Json<PlanReport>, ApiError> {
    let query = Query::read(query.as_deref(), &["dry-run", "file"])?;
    let (group, dry_run) = (group(&name)?, query.flag("dry-run")?);
    let file = query.text("file").unwrap_or_else(|| format!("{name}.toml"));
    let text = text(body).await?;
    let spec = Box::new(GroupSpec::parse(&file, &text)?);
    if spec.name != group {
        let message = format!("is {} and not {group}, the group of the request: make them the same", spec.name);
        let fault = SpecFault { file, line: 1, key: "name".to_owned(), message };
        return Err(SpecFaults { faults: vec![fault] }.into());
    }
    Ok(Json(state.demand(|reply| Request::Apply { spec, text, dry_run, reply }).await??))
}

/// Drains a group and stops its shards. Answers when nothing of it runs.
#[utoipa::path(delete, path = "/v1/groups/{group}", params(("group" = String, Path, description = "Name of the group"),
        ("purge" = Option<bool>, Query, description = "Also remove its shards and its specification")),
    responses((status = 200, body = Stopped), (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn delete(
    State(state): State<Loop>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Stopped>, ApiError> {
    let (group, purge) = (group(&name)?, Query::read(query.as_deref(), &["purge"])?.flag("purge")?);
    state.demand(|reply| Request::Stop { group, purge, reply }).await??;
    Ok(Json(Stopped { group: name, purged: purge }))
}

/// Plans the host as if these specifications were applied too; changes nothing.
#[utoipa::path(post, path = "/v1/plan", request_body = PlanBody,
    responses((status = 200, body = PlanReport), (status = 400, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub(super) async fn plan(State(state): State<Loop>, body: Body) -> Result<Json<PlanReport>, ApiError> {
    let body: PlanBody = serde_json::from_str(&text(body).await?).map_err(|error| {
        ApiError::bad_request(format!("the body is not {{\"specs\": [{{\"file\", \"text\"}}]}}: {error}"))
    })?;
    if body.specs.len() > MAX_PLAN_SPECS {
        return Err(ApiError::bad_request(format!("at most {MAX_PLAN_SPECS} specifications are planned at once")));
    }
    let (mut specs, mut faults) = (Vec::new(), Vec::new());
    for given in &body.specs {
        match GroupSpec::parse(&given.file, &given.text) {
            Ok(spec) => specs.push(spec),
            Err(found) => faults.extend(found.faults),
        }
    }
    if !faults.is_empty() {
        return Err(SpecFaults { faults }.into());
    }
    Ok(Json(state.ask(|reply| Request::Plan { specs, reply }).await?))
}

/// The machine, as planning sees it.
#[utoipa::path(get, path = "/v1/topology", responses((status = 200, body = serde_json::Value,
    description = "Packages, dies, NUMA nodes, caches, cores, PUs and devices")))]
pub(super) async fn topology(State(state): State<Loop>) -> Result<Json<Host>, ApiError> {
    Ok(Json(*state.ask(|reply| Request::Topology { reply }).await?))
}

/// A name that can't be a group's is nobody's.
pub(super) fn group(name: &str) -> Result<GroupName, ApiError> {
    name.parse().map_err(|_| ApiError::unknown_group(name))
}
