//! The OpenAPI document, generated from the handlers and the types they speak.

use axum::Json;
use utoipa::OpenApi;

use super::{explain, groups, rollout, stream, usage};

#[derive(OpenApi)]
#[openapi(
    info(title = "sherd", description = "One pinned shard of a service per core, one port in front."),
    paths(
        groups::status,
        groups::list,
        groups::get,
        groups::specification,
        groups::put,
        groups::delete,
        groups::plan,
        groups::topology,
        stream::logs,
        explain::explain,
        rollout::status,
        rollout::act,
        usage::usage,
        stream::events,
        get
    )
)]
struct Document;

/// The API as an OpenAPI document.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, body = serde_json::Value)))]
pub(super) async fn get() -> Json<serde_json::Value> {
    Json(serde_json::to_value(document()).unwrap_or_default())
}
