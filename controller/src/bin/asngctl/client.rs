//! The client of controllers, and its errors in a person's words.

use std::time::SystemTime;

use asng_client::{Connection, Options};
use asng_controller::pictures::{
    StudySnapshot,
    notes::{Note, notes},
};
use asng_proto::v1::{
    GetDistributionRequest, GetStudyRequest, GetTraceRequest, ListReportsRequest,
    ListTrainersRequest, Study, Trainer, study_service_client::StudyServiceClient,
};
use tonic::{Code, Status};

pub(crate) type Controller = StudyServiceClient<Connection>;

pub(crate) fn connect(connection: Connection) -> Controller {
    // A page of studies with thousands of variables each is larger than gRPC's customary 4 MB.
    StudyServiceClient::new(connection).max_decoding_message_size(usize::MAX)
}

/// The same options for what serves at `address`. Where that is in plain text, as a trainer on this machine, the options of TLS
/// are meant for the controller.
pub(crate) fn options_at(
    options: &Options,
    address: &str,
    default_port: u16,
) -> anyhow::Result<Options> {
    let url = asng_client::url(address, default_port, options.has_tls())?;
    let plain = url.starts_with("http://");
    let options = Options { controller: vec![url], ..options.clone() };
    Ok(match plain {
        true => Options { tls_ca: None, tls_cert: None, tls_key: None, ..options },
        false => options,
    })
}

pub(crate) async fn study(controller: &mut Controller, name: &str) -> Result<Study, Status> {
    let reply = controller.get_study(GetStudyRequest { name: name.to_owned() }).await?;
    received(reply.into_inner().study)
}

/// Returns all trainers that the controller has heard of.
pub(crate) async fn trainers(controller: &mut Controller) -> Result<Vec<Trainer>, Status> {
    let reply = controller.list_trainers(ListTrainersRequest::default()).await?;
    Ok(reply.into_inner().trainers)
}

/// Returns the notes about a study of the controller at `url`. Without an answer about its trainers there are fewer of them.
pub(crate) async fn notes_about(
    controller: &mut Controller,
    url: &str,
    study: &Study,
) -> Vec<Note> {
    let trainers = trainers(controller).await.ok();
    let serve = format!("`asng-trainer serve --controller {url}`");
    notes(study, trainers.as_deref(), &serve, SystemTime::now())
}

/// Reports of the latest history that are shown.
const REPORTS: u32 = 100;

/// All that is shown of a study that was just received from `url`, which moves at `rate`. What a controller does not know of, being
/// older, is left empty.
pub(crate) async fn snapshot(
    controller: &Controller,
    url: &str,
    study: Study,
    rate: Option<f64>,
) -> Result<StudySnapshot, Status> {
    let name = || study.name.clone();
    let [mut a, mut b, mut c, mut d, mut e] = [(); 5].map(|()| controller.clone());
    let reports = ListReportsRequest {
        study: name(),
        page_size: REPORTS,
        newest_first: true,
        ..Default::default()
    };
    let (distribution, trace, trainers, reports, notes) = tokio::join!(
        a.get_distribution(GetDistributionRequest { name: name() }),
        b.get_trace(GetTraceRequest { name: name() }),
        c.list_trainers(ListTrainersRequest { name: name() }),
        d.list_reports(reports),
        notes_about(&mut e, url, &study),
    );
    let distribution = match distribution {
        Ok(reply) => Some(reply.into_inner()),
        // Its variables are not known.
        Err(status) if status.code() == Code::FailedPrecondition => None,
        Err(status) => return Err(status),
    };
    let page = reports?.into_inner();
    let mut reports = page.reports;
    if reports.is_sorted_by(|a, b| a.step_id < b.step_id) {
        // The order of an older controller, whose first page is of no use unless it is the last.
        reports.reverse();
        reports.truncate(if page.next_page_token.is_empty() { reports.len() } else { 0 });
    }
    Ok(StudySnapshot {
        study,
        distribution,
        trace: if_known(trace.map(|reply| reply.into_inner().points))?,
        reports,
        trainers: if_known(trainers.map(|reply| reply.into_inner().trainers))?,
        notes,
        rate,
        now: SystemTime::now(),
    })
}

fn if_known<T: Default>(answer: Result<T, Status>) -> Result<T, Status> {
    match answer {
        Err(status) if status.code() == Code::Unimplemented => Ok(T::default()),
        answer => answer,
    }
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
