//! A trainer that is given several controllers finds the one that owns its study by itself.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use asng_proto::v1::StudyState;
use asng_tests::{Controller, Trainer, applied, study_when, tiny_search, trainer_command};
use http::{Request, Response};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Status, body::Body, server::NamedService, transport::Server};
use tonic_types::{ErrorDetails, StatusExt};
use tower::Service;

/// A controller that owns nothing, and knows who does.
#[derive(Clone)]
struct Bystander {
    owner: String,
}

impl NamedService for Bystander {
    const NAME: &'static str = "asng.v1.SearchService";
}

impl Service<Request<Body>> for Bystander {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let address = [("address".to_string(), self.owner.clone())];
        let details = ErrorDetails::with_error_info("NOT_OWNER", "asng", address);
        let status = Status::with_error_details(Code::Unavailable, "not the owner", details);
        ready(Ok(status.into_http()))
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_passes_a_dead_controller_and_follows_another_to_the_owner() {
    let directory = tempfile::tempdir().unwrap();
    let owner = Controller::start(&directory.path().join("state"));
    owner.studies().create_study(tiny_search("tiny", 2)).await.unwrap();
    let (listener, bystander) = listen().await;
    let bystander_of_owner = Bystander { owner: owner.address.to_string() };
    let server = Server::builder().add_service(bystander_of_owner);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    // Nobody listens there any more.
    let (_, dead) = listen().await;

    let mut trainer = trainer_command(&owner, &directory.path().join("work"));
    trainer.args(["serve", "--study", "tiny", "--controller", &format!("{dead},{bystander}")]);
    let mut trainer = Trainer(trainer.spawn().unwrap());
    let study = study_when(&owner, "tiny", |study| study.state() == StudyState::Finished).await;
    assert_eq!(applied(&study), 2);
    assert!(trainer.0.wait().unwrap().success());
}
