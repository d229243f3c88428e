//! `StudyService`: studies are created, listed, controlled, read and copied.

use std::collections::BTreeSet;

use asng_proto::v1::{self, study_service_server::StudyService};
use prost::Message as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    Api, archive, convert, foreign_token,
    status::{invalid, status},
    streams,
};
use crate::{
    store::PageStart,
    studies::Error,
    study::{self, StepId, Study, Violation},
};

const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
/// Bytes of studies after which a page of them ends. The reply then stays below the 4 MiB that gRPC's libraries take by default,
/// unless a single study is larger.
const PAGE_BYTES: usize = 2 << 20;
/// Longest part of a name that studies are listed by, in characters.
const MAX_NAME_PART: usize = 100;

#[tonic::async_trait]
impl StudyService for Api {
    async fn create_study(
        &self,
        request: Request<v1::CreateStudyRequest>,
    ) -> Result<Response<v1::CreateStudyResponse>, Status> {
        let (caller, v1::CreateStudyRequest { name, spec, replace_failed }) = self.open(request)?;
        let spec = convert::spec(spec.unwrap_or_default()).map_err(|found| invalid(&found))?;
        let creator = caller.identity.owner().to_owned();
        let study = caller
            .run(move |registry, now| {
                let study = registry.create(&name, spec, &creator, replace_failed, now)?;
                Ok(Some(convert::study(study)))
            })
            .await?;
        Ok(Response::new(v1::CreateStudyResponse { study }))
    }

    async fn get_study(
        &self,
        request: Request<v1::GetStudyRequest>,
    ) -> Result<Response<v1::GetStudyResponse>, Status> {
        let (caller, v1::GetStudyRequest { name }) = self.open(request)?;
        let study = caller.read(name, |study| Ok(Some(convert::study(study)))).await?;
        Ok(Response::new(v1::GetStudyResponse { study }))
    }

    async fn list_studies(
        &self,
        request: Request<v1::ListStudiesRequest>,
    ) -> Result<Response<v1::ListStudiesResponse>, Status> {
        let (
            caller,
            v1::ListStudiesRequest {
                page_size,
                page_token,
                owner,
                labels,
                newest_first,
                states,
                name_contains,
            },
        ) = self.open(request)?;
        let mut violations = Vec::new();
        let states = convert::states(&states, &mut violations);
        if name_contains.chars().count() > MAX_NAME_PART {
            let description = format!("must have at most {MAX_NAME_PART} characters");
            violations.push(Violation::new("name_contains", description));
        }
        if !violations.is_empty() {
            return Err(invalid(&violations));
        }
        let size = page_length(page_size);
        let after = match page_token.as_str() {
            "" => None,
            token => Some(convert::age(token).ok_or_else(|| foreign_token("ListStudies"))?),
        };
        let scope = caller.identity.scope();
        let name_part = name_contains.to_lowercase();
        let listed = move |study: &Study| {
            (states.is_empty() || states.contains(&convert::state(study.state())))
                && (name_part.is_empty() || study.name().to_lowercase().contains(&name_part))
                && scope.holds(study.owner(), &study.spec().labels)
                && (owner.is_empty() || owner == study.owner())
                && labels.iter().all(|(key, value)| study.spec().labels.get(key) == Some(value))
        };
        let on_page = move |study: &Study| {
            after.is_none_or(|after| (study.age() < after) == newest_first && study.age() != after)
        };
        let found = self.reader.studies(None).await;
        let foreign = found.map_err(|error| status(&Error::Storage(error.into())))?;
        let (studies, last, total_size) = caller
            .run(move |registry, _| {
                let own: BTreeSet<_> = registry.all().map(Study::id).collect();
                let foreign = foreign.iter().filter(|study| !own.contains(&study.id()));
                let mut all: Vec<_> = registry.all().chain(foreign).filter(|s| listed(s)).collect();
                all.sort_by_key(|study| study.age());
                if newest_first {
                    all.reverse();
                }
                let total = all.len() as u32;
                let mut rest = all.into_iter().filter(|study| on_page(study)).peekable();
                let (mut page, mut bytes, mut last) = (Vec::new(), 0, None);
                while let Some(study) = rest.next_if(|_| page.len() < size && bytes < PAGE_BYTES) {
                    let summary = convert::summary(study);
                    bytes += summary.encoded_len();
                    page.push(summary);
                    last = Some(study.age());
                }
                Ok((page, last.filter(|_| rest.peek().is_some()), total))
            })
            .await?;
        let next_page_token = last.map_or_else(String::new, convert::page_token);
        Ok(Response::new(v1::ListStudiesResponse { studies, next_page_token, total_size }))
    }

    async fn pause_study(
        &self,
        request: Request<v1::PauseStudyRequest>,
    ) -> Result<Response<v1::PauseStudyResponse>, Status> {
        let (caller, request) = self.open(request)?;
        let study = caller.change(request.name, Study::pause).await?;
        Ok(Response::new(v1::PauseStudyResponse { study }))
    }

    async fn resume_study(
        &self,
        request: Request<v1::ResumeStudyRequest>,
    ) -> Result<Response<v1::ResumeStudyResponse>, Status> {
        let (caller, request) = self.open(request)?;
        let study = caller.change(request.name, Study::resume).await?;
        Ok(Response::new(v1::ResumeStudyResponse { study }))
    }

    async fn stop_study(
        &self,
        request: Request<v1::StopStudyRequest>,
    ) -> Result<Response<v1::StopStudyResponse>, Status> {
        let (caller, request) = self.open(request)?;
        let stop = |study: &mut Study, now| {
            study.stop(now);
            Ok(())
        };
        let study = caller.change(request.name, stop).await?;
        Ok(Response::new(v1::StopStudyResponse { study }))
    }

    async fn delete_study(
        &self,
        request: Request<v1::DeleteStudyRequest>,
    ) -> Result<Response<v1::DeleteStudyResponse>, Status> {
        let (caller, v1::DeleteStudyRequest { name }) = self.open(request)?;
        caller.run(move |registry, _| registry.delete(&name)).await?;
        Ok(Response::new(v1::DeleteStudyResponse {}))
    }

    async fn get_distribution(
        &self,
        request: Request<v1::GetDistributionRequest>,
    ) -> Result<Response<v1::GetDistributionResponse>, Status> {
        let (caller, v1::GetDistributionRequest { name }) = self.open(request)?;
        let response = caller
            .read(name, |study| convert::distribution(study).ok_or(study::Error::NotDescribed))
            .await?;
        Ok(Response::new(response))
    }

    type WatchStudyStream = ReceiverStream<Result<v1::WatchStudyResponse, Status>>;

    async fn watch_study(
        &self,
        request: Request<v1::WatchStudyRequest>,
    ) -> Result<Response<Self::WatchStudyStream>, Status> {
        let (caller, v1::WatchStudyRequest { name }) = self.open(request)?;
        Ok(Response::new(streams::watch(caller, name).await?))
    }

    async fn list_reports(
        &self,
        request: Request<v1::ListReportsRequest>,
    ) -> Result<Response<v1::ListReportsResponse>, Status> {
        let (caller, v1::ListReportsRequest { study, page_size, page_token, newest_first }) =
            self.open(request)?;
        let last = match page_token.as_str() {
            "" => None,
            token => Some(StepId(token.parse().map_err(|_| foreign_token("ListReports"))?)),
        };
        let start = if newest_first {
            PageStart::Before(last.unwrap_or(StepId::LAST))
        } else {
            PageStart::After(last.unwrap_or(StepId(0)))
        };
        let id = caller.read(study, |study| Ok(study.id())).await?;
        let page = caller.history(id, start, page_length(page_size)).await?;
        let last = page.steps.last().filter(|_| page.more);
        Ok(Response::new(v1::ListReportsResponse {
            next_page_token: last.map_or_else(String::new, |past| past.step.id.to_string()),
            reports: page.steps.iter().map(archive::report).collect(),
        }))
    }

    async fn get_trace(
        &self,
        request: Request<v1::GetTraceRequest>,
    ) -> Result<Response<v1::GetTraceResponse>, Status> {
        let (caller, v1::GetTraceRequest { name }) = self.open(request)?;
        let read = |study: &Study| Ok((study.id(), study.current_window()));
        let (id, now) = caller.read(name, read).await?;
        let points = caller.trace(id, now).await?;
        let points = points.into_iter().map(archive::trace_point).collect();
        Ok(Response::new(v1::GetTraceResponse { points }))
    }

    async fn list_trainers(
        &self,
        request: Request<v1::ListTrainersRequest>,
    ) -> Result<Response<v1::ListTrainersResponse>, Status> {
        let (caller, v1::ListTrainersRequest { name }) = self.open(request)?;
        if name.is_empty() {
            let trainers = caller.run(|registry, now| Ok(convert::fleet(registry, now))).await?;
            return Ok(Response::new(v1::ListTrainersResponse { trainers }));
        }
        let mut trainers = caller.read(name, |study| Ok(convert::trainers(study))).await?;
        let trainers = caller
            .run(|registry, now| {
                convert::add_fleet(registry, &mut trainers, now);
                Ok(trainers)
            })
            .await?;
        Ok(Response::new(v1::ListTrainersResponse { trainers }))
    }

    type ExportStudyStream = ReceiverStream<Result<v1::ExportStudyResponse, Status>>;

    async fn export_study(
        &self,
        request: Request<v1::ExportStudyRequest>,
    ) -> Result<Response<Self::ExportStudyStream>, Status> {
        let (caller, v1::ExportStudyRequest { name, fork }) = self.open(request)?;
        Ok(Response::new(streams::export(caller, name, fork).await?))
    }

    async fn import_study(
        &self,
        request: Request<Streaming<v1::ImportStudyRequest>>,
    ) -> Result<Response<v1::ImportStudyResponse>, Status> {
        // In a task of its own, which cleans up also when the caller is gone.
        let (caller, parts) = self.open(request)?;
        let import = tokio::spawn(streams::import(caller, parts));
        let study = import.await.map_err(|_| Status::internal("the import has failed"))??;
        Ok(Response::new(v1::ImportStudyResponse { study: Some(study) }))
    }
}

fn page_length(page_size: u32) -> usize {
    match page_size as usize {
        0 => DEFAULT_PAGE,
        size => size.min(MAX_PAGE),
    }
}
