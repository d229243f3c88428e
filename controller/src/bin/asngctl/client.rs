//! The client of controllers, and its errors in a person's words.

use asng_client::Connection;
use asng_proto::v1::{GetStudyRequest, Study, study_service_client::StudyServiceClient};
use tonic::Status;

pub(crate) type Controller = StudyServiceClient<Connection>;

pub(crate) fn connect(connection: Connection) -> Controller {
    // A page of studies with thousands of variables each is larger than gRPC's customary 4 MB.
    StudyServiceClient::new(connection).max_decoding_message_size(usize::MAX)
}

pub(crate) async fn study(controller: &mut Controller, name: &str) -> Result<Study, Status> {
    let reply = controller.get_study(GetStudyRequest { name: name.to_owned() }).await?;
    received(reply.into_inner().study)
}

/// The study of a reply that must have one.
pub(crate) fn received(study: Option<Study>) -> Result<Study, Status> {
    study.ok_or_else(|| Status::data_loss("the controller's reply has no study"))
}

/// The same error, in a person's words if a call has failed.
pub(crate) fn explained(error: anyhow::Error, url: &str) -> anyhow::Error {
    match error.downcast::<Status>() {
        Ok(status) => anyhow::Error::msg(asng_client::explain(&status, url)),
        Err(other) => other,
    }
}
