//! The server to compare with: it answers every report with the same bytes, and knows nothing else.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::Context;
use asng_proto::v1::{
    self,
    search_service_server::{SearchService, SearchServiceServer},
};
use prost::Message;
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

/// An echo service with its answer.
struct Echo(v1::ReportStepResponse);

/// Serves until killed, on a free port that it prints.
pub(crate) async fn serve(reply: &Path) -> anyhow::Result<()> {
    let reply = v1::ReportStepResponse::decode(std::fs::read(reply)?.as_slice())?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    println!("{}", listener.local_addr()?);
    // As the controller does.
    let keepalive = Some(Duration::from_secs(20));
    Server::builder()
        .http2_keepalive_interval(keepalive)
        .http2_keepalive_timeout(keepalive)
        .add_service(SearchServiceServer::new(Echo(reply)))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await
        .context("the echo server")
}

#[tonic::async_trait]
impl SearchService for Echo {
    async fn report_step(
        &self,
        _request: Request<v1::ReportStepRequest>,
    ) -> Result<Response<v1::ReportStepResponse>, Status> {
        Ok(Response::new(self.0.clone()))
    }

    async fn lease_step(
        &self,
        _request: Request<v1::LeaseStepRequest>,
    ) -> Result<Response<v1::LeaseStepResponse>, Status> {
        Ok(Response::new(self.0.next.clone().unwrap_or_default()))
    }

    async fn describe_space(
        &self,
        _request: Request<v1::DescribeSpaceRequest>,
    ) -> Result<Response<v1::DescribeSpaceResponse>, Status> {
        Err(Status::unimplemented("this only echoes"))
    }

    async fn extend_lease(
        &self,
        _request: Request<v1::ExtendLeaseRequest>,
    ) -> Result<Response<v1::ExtendLeaseResponse>, Status> {
        Err(Status::unimplemented("this only echoes"))
    }

    async fn release_step(
        &self,
        _request: Request<v1::ReleaseStepRequest>,
    ) -> Result<Response<v1::ReleaseStepResponse>, Status> {
        Err(Status::unimplemented("this only echoes"))
    }
}
