//! Handlers of `/v1/groups/{group}/rollout`.

use axum::Json;
use axum::extract::{Path, State};

use super::ask::Loop;
use super::error::ApiError;
use super::groups::group;
use super::wire::ErrorBody;
use crate::control::{Request, RolloutAction};
use crate::status::RolloutStatus;

/// How far a group's last change is.
#[utoipa::path(get, path = "/v1/groups/{group}/rollout", params(("group" = String, Path, description = "Name of the group")),
    responses((status = 200, body = RolloutStatus), (status = 404, body = ErrorBody)))]
pub(super) async fn status(
    State(state): State<Loop>,
    Path(name): Path<String>,
) -> Result<Json<RolloutStatus>, ApiError> {
    let (group, action) = (group(&name)?, RolloutAction::Status);
    Ok(Json(state.ask(|reply| Request::Rollout { group, action, reply }).await??))
}

/// Replaces nothing more when what is under way has come to its end; or goes on; or brings back what ran before.
#[utoipa::path(post, path = "/v1/groups/{group}/rollout/{action}",
    params(("group" = String, Path, description = "Name of the group"),
        ("action" = String, Path, description = "`pause`, `resume` or `undo`")),
    responses((status = 200, body = RolloutStatus), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn act(
    State(state): State<Loop>,
    Path((name, action)): Path<(String, String)>,
) -> Result<Json<RolloutStatus>, ApiError> {
    let action = match action.as_str() {
        "pause" => RolloutAction::Pause,
        "resume" => RolloutAction::Resume,
        "undo" => RolloutAction::Undo,
        other => {
            return Err(ApiError::bad_request(format!("a rollout is told to pause, resume or undo, not `{other}`")));
        }
    };
    let group = group(&name)?;
    Ok(Json(state.demand(|reply| Request::Rollout { group, action, reply }).await??))
}
