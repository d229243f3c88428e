//! The drawing of a study, or of the list: its data are requested from the services and drawn by `pictures`.

use std::time::{Duration, Instant, SystemTime};

use asng_proto::v1::{
    self, GetDistributionRequest, GetStudyRequest, GetTraceRequest, ListReportsRequest,
    ListStudiesRequest, ListTrainersRequest, Study, StudyState, TracePoint,
    study_service_server::StudyService,
};
use asng_serving::access::Identity;
use prost_types::Timestamp;
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

use super::{Prefix, html};
use crate::{
    pictures::{self, StudySnapshot, notes::notes},
    service::{Api, asked},
};

/// Studies on a page of the list.
const STUDIES: u32 = 50;
/// The latest reports that are looked at.
const REPORTS: u32 = 50;
/// Speed is measured over this time: long enough for steps that take seconds, short enough to see a change.
const RATE_WINDOW: Duration = Duration::from_secs(60);
/// Least time that a speed is measured over.
const RATE_LEAST: Duration = Duration::from_secs(1);

/// The content of a page.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// A page of the list of studies, and all trainers.
    Studies(Listing),
    /// The study of this name.
    Study(String),
}

impl Subject {
    /// Where what changes of it is told.
    pub(super) fn events(&self, prefix: &Prefix) -> String {
        match self {
            Subject::Studies(listing) => format!("{prefix}/events{}", listing.query()),
            Subject::Study(name) => format!("{prefix}/studies/{name}/events"),
        }
    }
}

/// The studies that a page of the list shows, newest first, as its address has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Listing {
    /// Token of the page before.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) after: String,
    /// Text that their names contain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) name: String,
    /// Their state as in the contract, without its prefix; empty: any.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) state: String,
}

impl Listing {
    /// Returns the query of an address that shows it, with its question mark; empty when there is nothing to say.
    pub(super) fn query(&self) -> String {
        // Unwrap safety: three strings can be encoded.
        match serde_urlencoded::to_string(self).unwrap() {
            query if query.is_empty() => query,
            query => format!("?{query}"),
        }
    }

    /// Returns the page after, which begins where `token` says.
    pub(super) fn next(&self, token: String) -> Listing {
        Listing { after: token, ..self.clone() }
    }

    /// Returns true if some studies are left out.
    pub(super) fn is_filtered(&self) -> bool {
        !self.name.is_empty() || !self.state.is_empty()
    }

    fn request(&self) -> Result<ListStudiesRequest, Status> {
        let state = match self.state.as_str() {
            "" => None,
            name => Some(StudyState::from_str_name(&format!("STUDY_STATE_{name}")).ok_or_else(
                || Status::invalid_argument(format!("there is no state {name:?} of studies")),
            )?),
        };
        Ok(ListStudiesRequest {
            page_size: STUDIES,
            page_token: self.after.clone(),
            newest_first: true,
            states: state.into_iter().map(Into::into).collect(),
            name_contains: self.name.clone(),
            ..Default::default()
        })
    }
}

/// A part of a page, as HTML.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) body: String,
}

/// A subject, drawn.
#[derive(Clone, Debug)]
pub(super) struct Drawing {
    /// The time of the requests: earlier changes are in it.
    pub(super) asked: Instant,
    /// In a word, to be read aloud when it changes.
    pub(super) state: String,
    /// The buttons, for visitors who may use them.
    pub(super) controls: String,
    /// In the order of reading.
    pub(super) parts: Vec<Part>,
    /// True if it will never change again.
    pub(super) ended: bool,
}

impl Drawing {
    /// Returns the changes for a page that shows `before`: pairs of an id and HTML. Controls are for those who may use them.
    pub(super) fn changes(
        &self,
        before: Option<&Drawing>,
        may_change: bool,
    ) -> Vec<(&'static str, String)> {
        let ids = |drawing: &Drawing| drawing.parts.iter().map(|part| part.id).collect::<Vec<_>>();
        let mut changes = Vec::new();
        if before.is_none_or(|before| before.state != self.state) {
            changes.push(("state", self.state.clone()));
        }
        if may_change && before.is_none_or(|before| before.controls != self.controls) {
            changes.push(("controls", self.controls.clone()));
        }
        match before.filter(|before| ids(before) == ids(self)) {
            Some(before) => {
                let pairs = before.parts.iter().zip(&self.parts);
                let changed = pairs.filter(|(before, part)| before.body != part.body);
                changes.extend(changed.map(|(_, part)| (part.id, part.body.clone())));
            }
            // The page has not a place for each.
            None => changes.push(("parts", html::parts(&self.parts).into_string())),
        }
        changes
    }
}

/// Asks and draws, as somebody may see it.
pub(super) async fn draw(
    api: &Api,
    identity: &Identity,
    subject: &Subject,
    prefix: &Prefix,
) -> Result<Drawing, Status> {
    match subject {
        Subject::Studies(listing) => studies(api, identity, listing, prefix).await,
        Subject::Study(name) => study(api, identity, name, prefix).await,
    }
}

async fn studies(
    api: &Api,
    identity: &Identity,
    listing: &Listing,
    prefix: &Prefix,
) -> Result<Drawing, Status> {
    let (asked_at, now) = (Instant::now(), SystemTime::now());
    let answer = api.list_studies(asked(identity, listing.request()?)).await?.into_inner();
    let mut rows = Vec::with_capacity(answer.studies.len());
    for study in answer.studies {
        // Only the speed of a study that moves is worth its history.
        let rate = match study.state() {
            StudyState::Running => rate(&study, &trace(api, identity, &study.name).await, now),
            _ => None,
        };
        rows.push((study, rate));
    }
    let next = Some(answer.next_page_token).filter(|token| !token.is_empty());
    let next = next.map(|token| listing.next(token));
    let studies =
        html::studies(prefix, listing, &rows, answer.total_size, next.as_ref(), now).into_string();
    let part = |id, title, body| Part { id, title, body };
    let mut parts = vec![part("studies", "", studies)];
    if let Some(trainers) = trainers(api, identity).await {
        let trainers = html::trainers(prefix, &trainers, now).into_string();
        parts.push(part("trainers", "Trainers", trainers));
    }
    Ok(Drawing {
        asked: asked_at,
        state: String::new(),
        controls: String::new(),
        parts,
        ended: false,
    })
}

/// All trainers that this controller has heard of, if it says so.
async fn trainers(api: &Api, identity: &Identity) -> Option<Vec<v1::Trainer>> {
    let answer = api.list_trainers(asked(identity, ListTrainersRequest::default())).await;
    Some(answer.ok()?.into_inner().trainers)
}

async fn study(
    api: &Api,
    identity: &Identity,
    name: &str,
    prefix: &Prefix,
) -> Result<Drawing, Status> {
    let (asked_at, now) = (Instant::now(), SystemTime::now());
    let name = || name.to_owned();
    let answer = api.get_study(asked(identity, GetStudyRequest { name: name() })).await?;
    let study = answer.into_inner().study.unwrap_or_default();
    let request = GetDistributionRequest { name: name() };
    let distribution = match api.get_distribution(asked(identity, request)).await {
        Ok(answer) => Some(answer.into_inner()),
        Err(status) if status.code() == Code::FailedPrecondition => None,
        Err(status) => return Err(status),
    };
    let trace = trace(api, identity, &study.name).await;
    let request = ListReportsRequest {
        study: name(),
        page_size: REPORTS,
        newest_first: true,
        ..Default::default()
    };
    let reports = api.list_reports(asked(identity, request)).await?.into_inner().reports;
    let request = ListTrainersRequest { name: name() };
    // Another controller's trainers are known to that one alone.
    let own = api.list_trainers(asked(identity, request)).await;
    let own = own.map_or_else(|_| Vec::new(), |answer| answer.into_inner().trainers);
    let elsewhere = api.elsewhere(asked(identity, GetStudyRequest { name: name() })).await?;
    let ended = has_ended(&study);
    let rate = rate(&study, &trace, now);
    let all = match elsewhere {
        None => trainers(api, identity).await,
        Some(_) => None,
    };
    let notes = notes(&study, all.as_deref(), "asng-trainer serve", now);
    let (trainers, prefix) = (own, prefix.clone());
    let draw = move || {
        let snapshot =
            StudySnapshot { study, distribution, trace, reports, trainers, notes, rate, now };
        let part = |section: pictures::Section| Part {
            id: section.id,
            title: section.title,
            body: section.body.into_string(),
        };
        Drawing {
            asked: asked_at,
            state: html::state(&snapshot.study).into_string(),
            controls: html::controls(&prefix, &snapshot.study, elsewhere.as_deref()).into_string(),
            parts: pictures::sections(&snapshot).into_iter().map(part).collect(),
            ended,
        }
    };
    // It takes milliseconds.
    let drawing = tokio::task::spawn_blocking(draw).await;
    drawing.map_err(|_| Status::internal("this study cannot be drawn; the log says why"))
}

/// How a study went; without, the rest is shown.
async fn trace(api: &Api, identity: &Identity, name: &str) -> Vec<TracePoint> {
    let request = asked(identity, GetTraceRequest { name: name.into() });
    let answer = api.get_trace(request).await;
    answer.map_or_else(|_| Vec::new(), |answer| answer.into_inner().points)
}

/// Returns true if the study will not change any more.
fn has_ended(study: &Study) -> bool {
    matches!(study.state(), StudyState::Finished | StudyState::Stopped | StudyState::Failed)
}

/// Steps per second of late, while the study is RUNNING: since a point of its trace a minute ago, or since it runs.
fn rate(study: &Study, trace: &[TracePoint], now: SystemTime) -> Option<f64> {
    let time = |time: Option<Timestamp>| SystemTime::try_from(time?).ok();
    let running = time(study.state_time).filter(|_| study.state() == StudyState::Running)?;
    let begin = running.max(now.checked_sub(RATE_WINDOW)?);
    let timed = trace.iter().filter_map(|point| Some((time(point.time)?, point.applied)));
    let (since, before) = match timed.take_while(|(at, _)| *at <= begin).last() {
        Some((at, applied)) => (at.max(running), applied),
        None => (running, 0),
    };
    let elapsed = now.duration_since(since).ok().filter(|elapsed| *elapsed >= RATE_LEAST)?;
    let v1::Progress { applied, .. } = study.progress.unwrap_or_default();
    Some(applied.saturating_sub(before) as f64 / elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_that_of_the_last_minute_and_of_no_pause() {
        let at = |secs: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let study = |state: StudyState, since, applied| Study {
            state: state.into(),
            state_time: Some(Timestamp::from(at(since))),
            progress: Some(v1::Progress { applied, ..Default::default() }),
            ..Default::default()
        };
        let point = |secs, applied| TracePoint {
            time: Some(Timestamp::from(at(secs))),
            applied,
            ..Default::default()
        };
        let running = |since, applied| study(StudyState::Running, since, applied);
        assert_eq!(rate(&running(1000, 50), &[], at(1010)), Some(5.0), "from its start");
        assert_eq!(rate(&running(1000, 1), &[], at(1000)), None, "too early to say");
        assert_eq!(rate(&running(1000, 1), &[], at(999)), None, "a clock that went back");
        let trace = [point(1100, 100), point(1200, 200), point(1290, 1000)];
        assert_eq!(rate(&running(1000, 1100), &trace, at(1300)), Some(9.0), "since 1200");
        // It was paused after 200 steps.
        assert_eq!(rate(&running(1280, 300), &trace[..2], at(1300)), Some(5.0));
        assert_eq!(rate(&study(StudyState::Paused, 1000, 50), &trace, at(1010)), None);
    }

    #[test]
    fn only_what_differs_is_told_and_controls_to_those_who_may() {
        let drawing = |state: &str, body: &str| Drawing {
            asked: Instant::now(),
            state: state.into(),
            controls: format!("controls of {state}"),
            parts: vec![Part { id: "loss", title: "Loss", body: body.into() }],
            ended: false,
        };
        let told = |changes: Vec<(&'static str, String)>| {
            changes.into_iter().map(|(id, _)| id).collect::<Vec<_>>()
        };
        let (first, second) = (drawing("RUNNING", "a"), drawing("PAUSED", "a"));
        assert_eq!(told(first.changes(None, false)), ["state", "parts"]);
        assert_eq!(told(second.changes(Some(&first), false)), ["state"]);
        assert_eq!(told(second.changes(Some(&first), true)), ["state", "controls"]);
        assert!(second.changes(Some(&second), true).is_empty());
        let third = drawing("PAUSED", "b");
        assert_eq!(third.changes(Some(&second), true), [("loss", "b".to_string())]);
        let fewer = Drawing { parts: Vec::new(), ..third };
        assert_eq!(told(fewer.changes(Some(&second), true)), ["parts"]);
    }
}
