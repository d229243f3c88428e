//! Calls until there is an answer.

use std::{cell::RefCell, future::Future, time::Duration};

use backon::{ExponentialBuilder, Retryable};
use tokio::time::timeout;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt;
use tracing::warn;

/// Calls until a controller answers, with growing pauses of random length, or longer ones if the controller asks for
/// them. An answer may be an error, one that another try would not mend.
pub async fn insist<R: Clone, T, F>(request: &R, call: impl FnMut(R) -> F) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    retry(request, call, |status, pause| {
        warn!(reason = status.message(), ?pause, "controller does not answer; trying again");
    })
    .await
}

/// Calls as [`insist`] does, but for `limit` at most, and then returns the last error. `url`, which is
/// [`Connection::url`](crate::Connection::url), is named in the log after the first failure.
pub async fn insist_for<R: Clone, T, F>(
    limit: Duration,
    url: &str,
    request: &R,
    mut call: impl FnMut(R) -> F,
) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let last = RefCell::new(None);
    let call = |request| {
        let answer = call(request);
        let last = &last;
        async move { answer.await.inspect_err(|status| drop(last.replace(Some(status.clone())))) }
    };
    let mut warned = false;
    let answer = retry(request, call, |status, _| {
        if !warned {
            let reason = status.message();
            warn!(reason, "controller {url} does not answer; trying for {limit:?}");
        }
        warned = true;
    });
    match timeout(limit, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(last.take().unwrap_or_else(|| {
            Status::deadline_exceeded(format!("the controller at {url} did not answer"))
        })),
    }
}

async fn retry<R: Clone, T, F>(
    request: &R,
    mut call: impl FnMut(R) -> F,
    notify: impl FnMut(&Status, Duration),
) -> Result<T, Status>
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
        .when(is_transient)
        .adjust(|status, pause| pause.max(asked_pause(status)))
        .notify(notify)
        .await
        .map(Response::into_inner)
}

/// Returns true if the same request may succeed later without a change by the user.
pub fn is_transient(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Internal
            | Code::ResourceExhausted
    )
}

/// How long the controller wants to be left alone.
fn asked_pause(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::Instant;
    use tonic_types::ErrorDetails;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn errors_that_pass_are_waited_for_as_long_as_the_controller_asks() {
        let calls = Cell::new(0);
        let start = Instant::now();
        let answer = insist(&7, |request| {
            calls.set(calls.get() + 1);
            let asked = ErrorDetails::with_retry_info(Some(Duration::from_secs(30)));
            let answer = match calls.get() {
                1 => Err(Status::unavailable("away")),
                2 => Err(Status::with_error_details(Code::ResourceExhausted, "slowly", asked)),
                _ => Ok(Response::new(request)),
            };
            async { answer }
        });
        assert_eq!(answer.await.unwrap(), 7);
        assert_eq!(calls.get(), 3);
        assert!((30..32).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn within_a_limit_the_last_error_comes_back() {
        let limit = Duration::from_secs(30);
        let start = Instant::now();
        let away = || async { Err::<Response<()>, _>(Status::unavailable("away")) };
        let error = insist_for(limit, "http://a", &(), |()| away()).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Unavailable, "away"));
        assert!((30..31).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());

        let call = |()| std::future::pending::<Result<Response<()>, Status>>();
        let error = insist_for(limit, "http://a", &(), call).await.unwrap_err();
        assert_eq!(error.message(), "the controller at http://a did not answer");
        let answer = insist_for(limit, "http://a", &7, |n| async move { Ok(Response::new(n)) });
        assert_eq!(answer.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn an_error_that_stays_is_an_answer() {
        let answer = insist(&(), |()| async { Err::<Response<()>, _>(Status::not_found("no")) });
        assert_eq!(answer.await.unwrap_err().code(), Code::NotFound);
    }
}
