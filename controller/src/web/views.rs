//! Pages that are open are drawn once a second, once for all visitors with the same access, and each visitor is sent the changes.
//! A slow reader skips the versions in between, and nobody waits for it.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use asng_proto::v1::{self, study_service_server::StudyService};
use asng_serving::access::{Identity, Scope};
use axum::response::{
    IntoResponse, Response,
    sse::{Event, KeepAlive, Sse},
};
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tracing::debug;

use super::{
    Prefix, Site, Visitor,
    drawing::{self, Drawing, Subject},
};
use crate::service::{Api, asked};

/// Time between two drawings.
const ROUND: Duration = Duration::from_secs(1);
/// How often a reader hears something, so that a connection which broke is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Readers at a time.
const MAX_READERS: usize = 256;

type Shown = Option<Arc<Drawing>>;

/// The drawings that somebody follows.
pub(super) struct Views {
    api: Api,
    prefix: Prefix,
    followed: Mutex<HashMap<(Subject, Scope), watch::Receiver<Shown>>>,
    places: Arc<Semaphore>,
}

impl Views {
    pub(super) fn new(api: Api, prefix: Prefix) -> Views {
        let places = Arc::new(Semaphore::new(MAX_READERS));
        Views { api, prefix, followed: Mutex::default(), places }
    }

    /// The drawings of `subject`, as `identity` and all of the same scope see it.
    fn see(self: &Arc<Views>, subject: Subject, identity: Identity) -> watch::Receiver<Shown> {
        let key = (subject, identity.scope());
        let mut followed = self.followed.lock();
        if let Some(view) = followed.get(&key) {
            return view.clone();
        }
        let (sender, view) = watch::channel(None);
        followed.insert(key.clone(), view.clone());
        let views = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = views.draw(&key, &identity, &sender) => {}
                () = views.api.closed() => {}
            }
        });
        view
    }

    /// Draws round after round, until nobody follows or there is nothing more to draw.
    async fn draw(
        &self,
        key: &(Subject, Scope),
        identity: &Identity,
        sender: &watch::Sender<Shown>,
    ) {
        loop {
            let over = match drawing::draw(&self.api, identity, &key.0, &self.prefix).await {
                Ok(drawing) => {
                    let ended = drawing.ended;
                    sender.send_replace(Some(Arc::new(drawing)));
                    ended
                }
                Err(status) if status.code() == Code::NotFound => true,
                // It may be there again in the next round.
                Err(status) => {
                    debug!(%status, subject = ?key.0, "cannot be drawn");
                    false
                }
            };
            if !over {
                sleep(ROUND).await;
            }
            let mut followed = self.followed.lock();
            // One receiver is that of the map.
            if over || sender.receiver_count() <= 1 {
                followed.remove(key);
                return;
            }
        }
    }
}

/// Answers with what changes of `subject`, until it ends or the visitor may no longer look.
pub(super) async fn follow(
    site: Site,
    visitor: Visitor,
    identity: Identity,
    subject: Subject,
) -> Result<Response, Status> {
    let place = site.views.places.clone().try_acquire_owned().map_err(|_| {
        Status::unavailable("too many pages are open; reload this one to update it")
    })?;
    if let Subject::Study(name) = &subject {
        let request = v1::GetStudyRequest { name: name.clone() };
        site.api.get_study(asked(&identity, request)).await?;
    }
    let (sender, events) = mpsc::channel(1);
    tokio::spawn(async move {
        let closing = site.api.clone();
        tokio::select! {
            () = tell(&site, &visitor, identity, subject, &sender) => {}
            () = sender.closed() => {}
            () = closing.closed() => {}
        }
        drop(place);
    });
    let events = Sse::new(ReceiverStream::new(events));
    Ok(events.keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

async fn tell(
    site: &Site,
    visitor: &Visitor,
    identity: Identity,
    subject: Subject,
    sender: &mpsc::Sender<Result<Event, Infallible>>,
) {
    let (opened, scope) = (Instant::now(), identity.scope());
    let mut view = site.views.see(subject, identity);
    let mut told: Option<Arc<Drawing>> = None;
    loop {
        let Some(drawing) = next(&mut view, opened).await else {
            let gone = Event::default().event("end").data("This study does not exist any more.");
            let _ = sender.send(Ok(gone)).await;
            return;
        };
        // Whoever has logged out, or whose token was withdrawn or bound to other studies, is told no more.
        let Some(identity) = site.auth.holder(visitor).filter(|who| who.scope() == scope) else {
            return;
        };
        let changes = drawing.changes(told.as_deref(), site.auth.may_change(&identity));
        if !changes.is_empty() {
            // Unwrap safety: strings are always JSON.
            let data = serde_json::to_string(&changes).unwrap();
            if sender.send(Ok(Event::default().event("parts").data(data))).await.is_err() {
                return;
            }
        }
        if drawing.ended {
            // Without a word the browser would come again.
            let _ = sender.send(Ok(Event::default().event("end").data(""))).await;
            return;
        }
        told = Some(drawing);
    }
}

/// The next drawing; none when there will be no more.
async fn next(view: &mut watch::Receiver<Shown>, opened: Instant) -> Option<Arc<Drawing>> {
    loop {
        view.changed().await.ok()?;
        let shown = view.borrow_and_update().clone();
        // What was asked for before somebody looked may be older than their page.
        if let Some(drawing) = shown.filter(|shown| shown.ended || shown.asked >= opened) {
            return Some(drawing);
        }
    }
}
