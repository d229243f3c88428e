//! The connection to the controller, and how to insist on an answer.

use std::{future::Future, time::Duration};

use anyhow::{Context, bail};
use asng_proto::v1::{self, study_service_client::StudyServiceClient};
use backon::{ExponentialBuilder, Retryable};
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};
use tracing::warn;

/// Peers that do not answer a ping in this time are gone.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// A connection to the controller at `url` that is made when it is first used, and again when it broke.
pub fn connect(url: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .ok()
        .filter(|endpoint| endpoint.uri().scheme().is_some())
        .with_context(|| format!("{url:?} is not a URL such as http://127.0.0.1:50051"))?;
    Ok(endpoint
        .connect_timeout(Duration::from_secs(10))
        .timeout(Duration::from_secs(30))
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .connect_lazy())
}

/// Calls until the controller answers, with growing pauses of random length. An answer may be an error, one that another
/// try would not mend.
pub async fn insist<R: Clone, T, F>(request: &R, mut call: impl FnMut(R) -> F) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let pauses = ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(10))
        .without_max_times();
    (|| call(request.clone()))
        .retry(pauses)
        .when(|status| {
            matches!(
                status.code(),
                Code::Unavailable
                    | Code::Unknown
                    | Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::Internal
                    | Code::ResourceExhausted
            )
        })
        .notify(|status, pause| {
            warn!(message = status.message(), ?pause, "controller does not answer; trying again");
        })
        .await
        .map(Response::into_inner)
}

/// Asks for the study `name`, until the controller answers.
pub async fn study(channel: &Channel, name: &str) -> anyhow::Result<v1::Study> {
    let studies = StudyServiceClient::new(channel.clone());
    let request = v1::GetStudyRequest { name: name.into() };
    let answer = insist(&request, |request| {
        let mut studies = studies.clone();
        async move { studies.get_study(request).await }
    });
    match answer.await {
        Ok(answer) => answer.study.context("the controller sent no study"),
        Err(status) => bail!("{}", status.message()),
    }
}
