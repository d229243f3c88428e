//! Errors that more than one service answers with, and what all of them keep to.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{access::Denied, limits::Client};

/// Whose reasons those in google.rpc.ErrorInfo are.
pub const DOMAIN: &str = "asng";
/// Bytes of a text in a status.
const MAX_TEXT: usize = 250;

/// The beginning of a text that may quote what a client sent: a status travels in headers, which must stay small.
pub fn short(text: &str) -> String {
    if text.len() <= MAX_TEXT {
        return text.into();
    }
    format!("{}…", &text[..text.floor_char_boundary(MAX_TEXT)])
}

/// Somebody may not do something, for a `reason` that programs can read.
pub fn denial(code: Code, reason: &str, message: String) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, message, details)
}

/// FAILED_PRECONDITION: the `subject` is in no state for what was asked.
pub fn precondition(kind: &str, subject: &str, message: String) -> Status {
    let details = ErrorDetails::with_precondition_failure_violation(kind, subject, &message);
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

/// UNAUTHENTICATED or PERMISSION_DENIED, said by `server`.
pub(crate) fn denied(denied: &Denied, server: &str) -> Status {
    let (reason, message) = match denied {
        Denied::NoToken => (
            "TOKEN_MISSING",
            format!("the {server} needs a token: send it as `authorization: Bearer TOKEN`"),
        ),
        Denied::Malformed => (
            "TOKEN_MALFORMED",
            "the header `authorization` is not of the form `Bearer TOKEN`".into(),
        ),
        Denied::Unknown => {
            ("TOKEN_UNKNOWN", format!("unknown or revoked token: the {server} does not accept it"))
        }
        Denied::Role { method, needed, name, role } => {
            let message =
                format!("{method} needs a token of role {needed}; {name:?} has role {role}");
            return denial(Code::PermissionDenied, "ROLE", message);
        }
    };
    denial(Code::Unauthenticated, reason, message)
}

/// RESOURCE_EXHAUSTED for a client that asks too often, and may again after `wait`.
pub(crate) fn too_many_requests(client: &Client, wait: Duration) -> Status {
    let message = format!("too many requests from {client}: retry in {wait:.1?}");
    let mut details = ErrorDetails::with_retry_info(Some(wait));
    details.add_quota_failure_violation(client.to_string(), "requests a second");
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// DEADLINE_EXCEEDED, by the server's own limit.
pub(crate) fn took_too_long(server: &str, limit: Duration) -> Status {
    let message = format!("no response within the {server}'s time limit of {limit:?}");
    let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
    Status::with_error_details(Code::DeadlineExceeded, message, details)
}
