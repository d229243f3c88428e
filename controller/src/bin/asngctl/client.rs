//! The connection to a controller, and its errors in a person's words.

use std::{error::Error, time::Duration};

use asng_proto::v1::{GetStudyRequest, Study, study_service_client::StudyServiceClient};
use tonic::{
    Code, ConnectError, Status, TimeoutExpired,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

pub(crate) type Controller = StudyServiceClient<Channel>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Parses the URL of a controller.
pub(crate) fn endpoint(url: &str) -> Result<Endpoint, String> {
    if !url.starts_with("http://") {
        return Err("expected a URL such as http://127.0.0.1:50051".into());
    }
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| innermost(&e).to_string())?;
    // The pings notice a controller whose machine vanished, which would otherwise look like a slow one.
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(REQUEST_TIMEOUT)
        .http2_keep_alive_interval(CONNECT_TIMEOUT))
}

pub(crate) fn url(endpoint: &Endpoint) -> String {
    endpoint.uri().to_string().trim_end_matches('/').to_owned()
}

/// The client of a controller. Connects with the first request, and again after a connection was lost.
pub(crate) fn connect(endpoint: &Endpoint) -> Controller {
    // A page of studies with thousands of variables each is larger than gRPC's customary 4 MB.
    StudyServiceClient::new(endpoint.connect_lazy()).max_decoding_message_size(usize::MAX)
}

pub(crate) async fn study(controller: &mut Controller, name: &str) -> Result<Study, Status> {
    let reply = controller.get_study(GetStudyRequest { name: name.to_owned() }).await?;
    received(reply.into_inner().study)
}

/// The study of a reply that must have one.
pub(crate) fn received(study: Option<Study>) -> Result<Study, Status> {
    study.ok_or_else(|| Status::data_loss("the controller's reply has no study"))
}

/// Whether the same request may succeed later without anybody having changed it.
pub(crate) fn is_transient(status: &Status) -> bool {
    use Code::*;
    let code = status.code();
    matches!(
        code,
        Cancelled | DeadlineExceeded | Internal | ResourceExhausted | Unavailable | Unknown
    )
}

/// An error as a sentence, followed by a line for each field that is wrong.
pub(crate) fn explain(error: &anyhow::Error, url: &str) -> String {
    let Some(status) = error.downcast_ref::<Status>() else { return format!("{error:#}") };
    if caused_by::<ConnectError>(status) {
        return format!(
            "no controller answers at {url}: {}\n  start one with `asng-controller`, or name \
             another with --controller URL or ASNG_CONTROLLER",
            innermost(status)
        );
    }
    if caused_by::<TimeoutExpired>(status) {
        return format!("the controller at {url} did not answer within {REQUEST_TIMEOUT:?}");
    }
    // What a controller sends has no source; what happened to the connection has.
    if status.source().is_some() {
        return format!("the connection to {url} failed: {}", innermost(status));
    }
    let mut text = match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    };
    for violation in
        status.get_error_details().bad_request().iter().flat_map(|b| &b.field_violations)
    {
        let line = format!("{}: {}", violation.field, violation.description);
        // The message may be the first of them.
        if !text.contains(&line) {
            text += &format!("\n  {line}");
        }
    }
    text
}

fn caused_by<E: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    error.is::<E>() || error.source().is_some_and(caused_by::<E>)
}

fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    error.source().map_or(error, innermost)
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_bad_request_lists_its_fields_once() {
        let explained = |message| {
            let mut details = ErrorDetails::with_bad_request_violation("name", "is odd");
            details.add_bad_request_violation("spec.stop.max_steps", "is 0");
            let status = Status::with_error_details(Code::InvalidArgument, message, details);
            explain(&status.into(), "http://a")
        };
        let text = "bad spec\n  name: is odd\n  spec.stop.max_steps: is 0";
        assert_eq!(explained("bad spec"), text);
        let text = "name: is odd (and 1 more)\n  spec.stop.max_steps: is 0";
        assert_eq!(explained("name: is odd (and 1 more)"), text);
    }

    #[test]
    fn a_status_without_a_message_is_named_by_its_code() {
        let text = explain(&Status::new(Code::NotFound, "").into(), "http://a");
        assert_eq!(text, Code::NotFound.to_string());
    }

    #[test]
    fn an_endpoint_is_an_http_url() {
        assert_eq!(url(&endpoint("http://a:1").unwrap()), "http://a:1");
        for text in ["", "a:1", "https://a:1", "unix:a", "http://", "http://a b"] {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_says_where_and_what_to_do() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("http://127.0.0.1:{port}");
        let status = study(&mut connect(&endpoint(&url).unwrap()), "a").await.unwrap_err();
        assert!(is_transient(&status));
        let text = explain(&status.into(), &url);
        assert!(text.starts_with(&format!("no controller answers at {url}: ")), "{text}");
        assert!(text.contains("asng-controller"), "{text}");
    }
}
