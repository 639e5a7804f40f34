//! The handler of `/v1/usage`.

use axum::Json;
use axum::extract::State;

use super::ask::Served;
use super::error::ApiError;
use super::wire::ErrorBody;
use crate::control::Request;
use crate::status::UsageReport;

/// CPU time, memory and connections of every slot, and whose CPU time the rest was.
#[utoipa::path(get, path = "/v1/usage", responses(
    (status = 200, body = UsageReport), (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
pub(super) async fn usage(State(Served { reconcile, sampler }): State<Served>) -> Result<Json<UsageReport>, ApiError> {
    let snapshot = reconcile.ask(|reply| Request::Metrics { reply }).await?;
    let report = tokio::task::spawn_blocking(move || UsageReport::new(&snapshot, &sampler.sample(&snapshot)));
    report.await.map(Json).map_err(|_| ApiError::no_answer())
}
