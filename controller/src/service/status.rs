//! From errors to gRPC statuses: the one place that chooses codes and details.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};
use tracing::error;

use crate::{
    access::Denied,
    limits::Client,
    studies::Error,
    study::{self, Violation},
};

/// Whose reasons those in google.rpc.ErrorInfo are.
const DOMAIN: &str = "asng";
/// Bytes of a text in a status.
const MAX_TEXT: usize = 250;
/// Violations that a status lists.
const MAX_VIOLATIONS: usize = 16;

/// The status that tells a caller of `error`, with what it can act on.
pub(super) fn status(error: &Error) -> Status {
    let message = short(&error.to_string());
    match error {
        Error::UnknownStudy(name) => {
            let name = short(name);
            let details = ErrorDetails::with_resource_info("study", name, "", &message);
            Status::with_error_details(Code::NotFound, message, details)
        }
        Error::Exists(name) => {
            let details = ErrorDetails::with_resource_info("study", name, "", &message);
            Status::with_error_details(Code::AlreadyExists, message, details)
        }
        Error::NotOwner { address, .. } => {
            let metadata = HashMap::from([("address".to_owned(), address.clone())]);
            let mut details = ErrorDetails::with_error_info("NOT_OWNER", DOMAIN, metadata);
            if address.is_empty() {
                details.set_retry_info(Some(Duration::from_secs(1)));
            }
            Status::with_error_details(Code::Unavailable, message, details)
        }
        Error::TooManyStudies(_) => quota("studies", message),
        Error::OverBudget(_) => quota("disk", message),
        Error::OutOfScope(_) => denial(Code::PermissionDenied, "SCOPE", message),
        Error::Invalid(violations) => invalid(violations),
        Error::Refused { name, source } => match &**source {
            study::Error::Invalid(violations) => invalid(violations),
            study::Error::UnknownStep(step) => {
                let resource = format!("{name}/{step}");
                let details = ErrorDetails::with_resource_info("step", resource, "", &message);
                Status::with_error_details(Code::NotFound, message, details)
            }
            study::Error::UnknownLease { lease, .. } => {
                let resource = lease.to_string();
                let details = ErrorDetails::with_resource_info("lease", resource, "", &message);
                Status::with_error_details(Code::NotFound, message, details)
            }
            study::Error::LeaseNotHeld(_) => precondition("LEASE_NOT_HELD", name, message),
            study::Error::WrongState { .. } | study::Error::GoesOn(_) => {
                precondition("STUDY_STATE", name, message)
            }
            study::Error::DescribedDifferently => precondition("DESCRIPTION", name, message),
            study::Error::NotDescribed => precondition("NOT_DESCRIBED", name, message),
            study::Error::OtherSpace { .. } => precondition("SPACE", name, message),
        },
        Error::Storage(_) | Error::Thread(_) | Error::Died => {
            error!(%error, "request failed");
            let retry = ErrorDetails::with_retry_info(Some(Duration::from_secs(5)));
            let message = "the controller cannot store this now; its log says why";
            Status::with_error_details(Code::Unavailable, message, retry)
        }
        Error::ShuttingDown => {
            let retry = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
            Status::with_error_details(Code::Unavailable, message, retry)
        }
    }
}

/// INVALID_ARGUMENT that lists the violations, unless they are too many for a client to read.
pub(super) fn invalid(violations: &[Violation]) -> Status {
    let message = match violations {
        [] => "invalid request".into(),
        [only] => short(&only.to_string()),
        [first, rest @ ..] => format!("{} (and {} more)", short(&first.to_string()), rest.len()),
    };
    let violations: Vec<_> = violations
        .iter()
        .take(MAX_VIOLATIONS)
        .map(|fault| FieldViolation::new(short(&fault.field), short(&fault.description)))
        .collect();
    let details = ErrorDetails::with_bad_request(violations);
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// The beginning of a text that may quote what a client sent: a status travels in headers, which must stay small.
fn short(text: &str) -> String {
    if text.len() <= MAX_TEXT {
        return text.into();
    }
    format!("{}…", &text[..text.floor_char_boundary(MAX_TEXT)])
}

/// UNAUTHENTICATED or PERMISSION_DENIED.
pub(super) fn denied(denied: &Denied) -> Status {
    let (code, reason) = match denied {
        Denied::NoToken => (Code::Unauthenticated, "TOKEN_MISSING"),
        Denied::Malformed => (Code::Unauthenticated, "TOKEN_MALFORMED"),
        Denied::Unknown => (Code::Unauthenticated, "TOKEN_UNKNOWN"),
        Denied::Role { .. } => (Code::PermissionDenied, "ROLE"),
    };
    denial(code, reason, denied.to_string())
}

fn denial(code: Code, reason: &str, message: String) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, message, details)
}

/// RESOURCE_EXHAUSTED for a client that asks too often, and may again after `wait`.
pub(super) fn too_many_requests(client: &Client, wait: Duration) -> Status {
    let message = format!("too many requests of {client}: send this one again in {wait:.1?}");
    let mut details = ErrorDetails::with_retry_info(Some(wait));
    details.add_quota_failure_violation(client.to_string(), "requests a second");
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// DEADLINE_EXCEEDED, by the controller's own limit.
pub(super) fn took_too_long(limit: Duration) -> Status {
    let message = format!("not answered within the controller's limit of {limit:?}");
    let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
    Status::with_error_details(Code::DeadlineExceeded, message, details)
}

fn quota(subject: &str, message: String) -> Status {
    let details = ErrorDetails::with_quota_failure_violation(subject, &message);
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

fn precondition(kind: &str, study: &str, message: String) -> Status {
    let details = ErrorDetails::with_precondition_failure_violation(kind, study, &message);
    Status::with_error_details(Code::FailedPrecondition, message, details)
}
