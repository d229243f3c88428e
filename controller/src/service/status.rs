//! From errors to gRPC statuses: the one place that chooses codes and details.

use std::{collections::HashMap, time::Duration};

use asng_serving::status::{DOMAIN, denial, precondition, short};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::{
    studies::Error,
    study::{self, Violation},
};

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
        Error::Differs { name, differences, .. } => {
            // The message is short by itself, and its end names the remedy.
            let message = error.to_string();
            let mut details = ErrorDetails::with_resource_info("study", name, "", &message);
            details.set_bad_request(field_violations(differences));
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
            study::Error::WrongState { .. }
            | study::Error::HasReports(_)
            | study::Error::GoesOn(_) => precondition("STUDY_STATE", name, message),
            study::Error::DescribedDifferently => precondition("DESCRIPTION", name, message),
            study::Error::NotDescribed => precondition("NOT_DESCRIBED", name, message),
            study::Error::OtherSpace { .. } => precondition("SPACE", name, message),
        },
        // The log says why when it begins, not for each request.
        Error::Storage(_) | Error::Thread(_) | Error::Died => {
            let retry = ErrorDetails::with_retry_info(Some(Duration::from_secs(5)));
            let message = "the controller cannot write to its database now; see its log";
            Status::with_error_details(Code::Unavailable, message, retry)
        }
        Error::ShuttingDown => {
            let retry = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
            Status::with_error_details(Code::Unavailable, message, retry)
        }
    }
}

/// UNAVAILABLE: a report came before that of step `after`, which is to count first.
pub(super) fn not_in_turn(after: u64) -> Status {
    let message = format!("the report of step {after}, which `after` names, has not arrived yet");
    let retry = ErrorDetails::with_retry_info(Some(Duration::from_millis(100)));
    Status::with_error_details(Code::Unavailable, message, retry)
}

/// INVALID_ARGUMENT that lists the violations, unless they are too many for a client to read.
pub(super) fn invalid(violations: &[Violation]) -> Status {
    let message = match violations {
        [] => "invalid request".into(),
        [only] => short(&only.to_string()),
        [first, rest @ ..] => format!("{} (and {} more)", short(&first.to_string()), rest.len()),
    };
    let details = ErrorDetails::with_bad_request(field_violations(violations));
    Status::with_error_details(Code::InvalidArgument, message, details)
}

fn field_violations(violations: &[Violation]) -> Vec<FieldViolation> {
    violations
        .iter()
        .take(MAX_VIOLATIONS)
        .map(|fault| FieldViolation::new(short(&fault.field), short(&fault.description)))
        .collect()
}

fn quota(subject: &str, message: String) -> Status {
    let details = ErrorDetails::with_quota_failure_violation(subject, &message);
    Status::with_error_details(Code::ResourceExhausted, message, details)
}
