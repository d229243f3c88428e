//! Errors in a person's words.

use std::{error::Error, io};

use tokio_rustls::rustls::{AlertDescription, CertificateError, Error as TlsError};
use tonic::{Code, ConnectError, Status, TimeoutExpired};
use tonic_types::StatusExt;

use crate::{
    connection::{NotGrpc, REQUEST_TIMEOUT, caused_by, owner},
    options::{CONTROLLER_PORT, TRAINER_PORT},
};

const TOKEN: &str = "--token-file FILE, ASNG_TOKEN_FILE or ASNG_TOKEN";
const CLIENT_CERTIFICATE: &str = "if it asks for a client certificate: --tls-cert FILE and --tls-key FILE, signed by an \
                                  authority that it knows";

/// The kind of server that was called, in words.
struct Peer {
    noun: &'static str,
    program: &'static str,
    option: &'static str,
    variable: &'static str,
    port: u16,
}

const CONTROLLER: Peer = Peer {
    noun: "controller",
    program: "asng-controller",
    option: "--controller",
    variable: "ASNG_CONTROLLER",
    port: CONTROLLER_PORT,
};
const TRAINER: Peer = Peer {
    noun: "trainer",
    program: "asng-trainer serve",
    option: "--trainer",
    variable: "ASNG_TRAINER",
    port: TRAINER_PORT,
};

/// A call's failure as a sentence, and below it a line for each detail and what to do. `url` is
/// [`Connection::url`](crate::Connection::url).
pub fn explain(status: &Status, url: &str) -> String {
    explain_peer(status, url, &CONTROLLER)
}

/// As [`explain`], of a call to a trainer.
pub fn explain_trainer(status: &Status, url: &str) -> String {
    explain_peer(status, url, &TRAINER)
}

fn explain_peer(status: &Status, url: &str, peer: &Peer) -> String {
    let Peer { noun, program, option, variable, port } = peer;
    if let Some(error) = tls_error(status) {
        return format!("no TLS connection to {url}: {error}\n  {}", tls_advice(error));
    }
    if let Some(error) = innermost(status).downcast_ref::<NotGrpc>() {
        let advice = error.with_port(*port);
        let advice = advice.map(|other| format!("\n  try {option} {other}, or {variable}={other}"));
        return format!("{error}{}", advice.unwrap_or_default());
    }
    if caused_by::<ConnectError>(status) {
        return format!(
            "no {noun} answers at {url}: {}\n  start one with `{program}`, or name another with \
             {option} ADDRESS or {variable}",
            innermost(status)
        );
    }
    if caused_by::<TimeoutExpired>(status) {
        return format!("the {noun} at {url} did not answer within {REQUEST_TIMEOUT:?}");
    }
    // What a controller sends has no source; what happened to the connection has.
    if status.source().is_some() {
        // Of a refused client certificate often no more is seen than that the connection ended.
        let advice = if url.contains("http://") {
            format!(
                "if it serves TLS, write https://; if it is no {noun}, its port is by default {port}"
            )
        } else {
            CLIENT_CERTIFICATE.into()
        };
        return format!("the connection to {url} failed: {}\n  {advice}", innermost(status));
    }
    if status.code() == Code::Unimplemented && status.message().is_empty() {
        return format!(
            "{url} serves gRPC, but is no {noun} that knows this call: it may be another program, or an older release\n  \
             a {noun} is by default on port {port}; name its address with {option} ADDRESS or {variable}"
        );
    }
    let mut text = match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    };
    for line in field_lines(status).into_iter().chain(advice(status, noun)) {
        // The message often says what the first of them says.
        if !text.contains(&line) {
            text += &format!("\n  {line}");
        }
    }
    text
}

/// A handshake's failure, with what to do.
pub(crate) fn tls_explained(error: io::Error) -> anyhow::Error {
    match tls_error(&error) {
        Some(error) => anyhow::anyhow!("{error}\n  {}", tls_advice(error)),
        None => error.into(),
    }
}

/// Returns a line for each violation in the details of a status.
fn field_lines(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let line = |subject: &str, description: &str| format!("{subject}: {description}");
    let fields = details.bad_request().map(|all| &all.field_violations[..]).unwrap_or_default();
    let mut lines: Vec<_> = fields.iter().map(|v| line(&v.field, &v.description)).collect();
    let mut others = Vec::new();
    if let Some(failure) = details.precondition_failure() {
        others.extend(failure.violations.iter().map(|v| (v.subject.clone(), &v.description)));
    }
    if let Some(failure) = details.quota_failure() {
        others.extend(failure.violations.iter().map(|v| (v.subject.clone(), &v.description)));
    }
    if let Some(info) = details.resource_info() {
        let resource = format!("{} {}", info.resource_type, info.resource_name);
        others.push((resource, &info.description));
    }
    // Here the message does without the subject.
    others.retain(|(_, description)| !status.message().contains(&**description));
    lines.extend(others.iter().map(|(subject, description)| line(subject, description)));
    lines
}

/// Returns the remedy for an error, if one is known.
fn advice(status: &Status, noun: &str) -> Option<String> {
    if let Some(owner) = owner(status) {
        return Some(format!("its owner is {owner}: try again, or give --controller that address"));
    }
    match status.code() {
        Code::Unauthenticated => Some(format!("give a token that the {noun} accepts: {TOKEN}")),
        Code::PermissionDenied => Some(format!("give a token with a sufficient role: {TOKEN}")),
        _ => {
            let pause = status.get_details_retry_info()?.retry_delay?;
            Some(format!("try again in {pause:?}"))
        }
    }
}

/// Returns the TLS error that made the connection fail, if there is one.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a TlsError> {
    // An I/O error's own source leaves out the error that it holds.
    let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let found = held.and_then(|held| held.downcast_ref().or_else(|| tls_error(held)));
    found.or_else(|| error.downcast_ref()).or_else(|| error.source().and_then(tls_error))
}

fn tls_advice(error: &TlsError) -> &'static str {
    match error {
        // The latter when two authorities have the same name.
        TlsError::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "give the authority that signed its certificate: --tls-ca FILE",
        TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            "its certificate is for another host name: use that name, or create a certificate for this one"
        }
        TlsError::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "give the controller a new certificate",
        TlsError::InvalidMessage(_) => "if the server does not use TLS, write http://",
        TlsError::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            "it serves HTTPS but not gRPC, as the port of the live page does: gRPC is on another port, by default 50051"
        }
        TlsError::AlertReceived(_) => CLIENT_CERTIFICATE,
        _ => "check --tls-ca, --tls-cert and --tls-key against its certificates",
    }
}

fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    error.source().map_or(error, innermost)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use tonic_types::ErrorDetails;

    use super::*;

    fn explained(code: Code, message: &str, details: ErrorDetails) -> String {
        explain(&Status::with_error_details(code, message, details), "http://a")
    }

    #[test]
    fn a_bad_request_lists_its_fields_once() {
        let explained = |message| {
            let mut details = ErrorDetails::with_bad_request_violation("name", "is odd");
            details.add_bad_request_violation("spec.stop.max_steps", "is 0");
            explained(Code::InvalidArgument, message, details)
        };
        let text = "bad spec\n  name: is odd\n  spec.stop.max_steps: is 0";
        assert_eq!(explained("bad spec"), text);
        let text = "name: is odd (and 1 more)\n  spec.stop.max_steps: is 0";
        assert_eq!(explained("name: is odd (and 1 more)"), text);
    }

    #[test]
    fn a_status_without_a_message_is_named_by_its_code() {
        let text = explain(&Status::new(Code::NotFound, ""), "http://a");
        assert_eq!(text, Code::NotFound.to_string());
    }

    #[test]
    fn a_server_that_does_not_know_the_call_is_taken_for_another_program() {
        let status = Status::new(Code::Unimplemented, "");
        let text = explain_trainer(&status, "http://a:50051");
        assert!(text.starts_with("http://a:50051 serves gRPC, but is no trainer"), "{text}");
        assert!(
            text.ends_with("port 50053; name its address with --trainer ADDRESS or ASNG_TRAINER")
        );
        let said = explain(&Status::new(Code::Unimplemented, "no forks"), "http://a");
        assert_eq!(said, "no forks");
    }

    #[test]
    fn details_are_told_unless_the_message_says_the_same() {
        let state = |description: &str| {
            ErrorDetails::with_precondition_failure_violation("STUDY_STATE", "a", description)
        };
        let code = Code::FailedPrecondition;
        assert_eq!(
            explained(code, "study \"a\" has ended", state("has ended")),
            "study \"a\" has ended"
        );
        assert_eq!(explained(code, "no", state("has ended")), "no\n  a: has ended");
        let missing = ErrorDetails::with_resource_info("study", "a", "", "not here");
        assert_eq!(explained(Code::NotFound, "unknown", missing), "unknown\n  study a: not here");
        let mut full = ErrorDetails::with_quota_failure_violation("studies", "10000 at most");
        full.set_retry_info(Some(std::time::Duration::from_secs(5)));
        let text = "full\n  studies: 10000 at most\n  try again in 5s";
        assert_eq!(explained(Code::ResourceExhausted, "full", full), text);
    }

    #[test]
    fn who_is_not_let_in_learns_which_option_to_set() {
        for code in [Code::Unauthenticated, Code::PermissionDenied] {
            let text = explain(&Status::new(code, "no"), "http://a");
            assert!(text.starts_with("no\n  give a token"), "{text}");
            assert!(text.contains("--token-file FILE"), "{text}");
        }
    }

    #[test]
    fn an_answer_in_http_names_the_usual_port() {
        let explained =
            |url, status| explain(&Status::from_error(NotGrpc::new(url, status).into()), url);
        let page = explained("http://a:50052", Some(StatusCode::NOT_FOUND));
        assert!(page.starts_with("a:50052 answers HTTP, not gRPC"), "{page}");
        assert!(
            page.ends_with("\n  try --controller a:50051, or ASNG_CONTROLLER=a:50051"),
            "{page}"
        );
        assert!(explained("http://[::1]", None).contains("try --controller [::1]:50051"));
        assert!(!explained("http://a:50051", None).contains("try"));
        let proxy = explained("http://a:1", Some(StatusCode::BAD_GATEWAY));
        assert!(proxy.contains("HTTP status 502 Bad Gateway") && !proxy.contains("try"), "{proxy}");
    }

    #[test]
    fn another_owner_is_named() {
        let address = [("address".to_string(), "http://b:1".to_string())];
        let details = ErrorDetails::with_error_info("NOT_OWNER", "asng", address);
        let text = explained(Code::Unavailable, "not mine", details);
        assert!(text.starts_with("not mine\n  its owner is http://b:1"), "{text}");
    }
}
