//! Leasing: which step a trainer gets, how long it keeps it, and when the step goes back.

use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{ClosedStep, Error, Event, Lease, LeaseId, Now, Origin, State, Step, StepId, Study};

/// Bounds the memory of a study, whatever `steps_per_update` and `max_staleness` allow.
const MAX_LIVE_STEPS: usize = 4096;
/// The time after which a trainer asks again if other trainers hold every step that is allowed.
const RETRY_WHEN_BUSY: Duration = Duration::from_millis(200);
/// The time after which a trainer asks again if a person has to act first.
pub const RETRY_WHEN_IDLE: Duration = Duration::from_secs(2);
/// How much of the time that counts towards a limit may be lost when the controller is killed.
const TIME_NOTED_EVERY: Duration = Duration::from_secs(10);

/// The answer to a trainer that asks for a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// The step with this number; see [`Study::step`].
    Step(StepId),
    /// Nothing now: ask again after this time.
    NoWork(Duration),
    /// A description of the space is wanted first.
    Describe,
    /// The study has ended.
    Finished,
}

impl Study {
    /// Hands out a step to `trainer`, which serves `spaces`, or says why there is none. A study whose variables came
    /// with its spec may name no space, and then goes to whoever asks.
    pub fn lease(
        &mut self,
        trainer: &str,
        spaces: &[String],
        origin: &Origin,
        now: Now,
    ) -> Result<Next, Error> {
        let space = &self.spec.space;
        if self.spec.variables.is_empty() && !spaces.contains(space) {
            return Err(Error::OtherSpace { space: space.clone(), served: spaces.join(", ") });
        }
        self.trainers.hear(trainer, now);
        self.tick(now);
        let until = now.monotonic + self.spec.lease();
        match self.state {
            State::Waiting => return Ok(Next::Describe),
            State::Finished(_) | State::Stopped | State::Failed(_) => return Ok(Next::Finished),
            State::Running | State::Paused => {}
        }
        // The same request again gets the same step (rule 3).
        for step in self.live.values_mut() {
            if let Some(lease) = &mut step.lease
                && lease.trainer == trainer
                && lease.origin == *origin
            {
                lease.until = until;
                return Ok(Next::Step(step.id));
            }
        }
        if self.state == State::Paused {
            return Ok(Next::NoWork(RETRY_WHEN_IDLE));
        }
        let lease = Lease { trainer: trainer.into(), origin: origin.clone(), until };
        // A step that came back goes first, as it was sampled (rule 4).
        if let Some(step) = self.live.values_mut().find(|step| step.lease.is_none()) {
            step.attempt += 1;
            step.lease = Some(lease);
            self.events.push(Event::LeasedAgain(step.id));
            return Ok(Next::Step(step.id));
        }
        if !self.may_sample() {
            return Ok(Next::NoWork(RETRY_WHEN_BUSY));
        }
        Ok(self.sample(lease))
    }

    /// Rules 6 and 7: how many steps may be under way.
    fn may_sample(&self) -> bool {
        let under_way = self.live.len() + self.pending.len();
        let gathered = self.spec.steps_per_update() as u64 * (1 + self.spec.max_staleness());
        (under_way as u64) < gathered
            && self.live.len() < MAX_LIVE_STEPS
            && self.progress.applied + (under_way as u64) < self.spec.max_steps
    }

    fn sample(&mut self, lease: Lease) -> Next {
        let Some(search) = &self.search else { return Next::Describe };
        self.progress.sampled += 1;
        let id = StepId(self.progress.sampled);
        // Rule 1: a named generator, seeded by (study seed, step id).
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(id.0);
        let step = Step {
            id,
            generation: self.progress.generation,
            applied: self.progress.applied,
            train: search.asng.ask(self.spec.lambda_x(), &mut rng).into(),
            rank: search.asng.ask(self.spec.rank_count(self.progress.applied), &mut rng).into(),
            attempt: 1,
            lease: Some(lease),
        };
        self.live.insert(id, step);
        self.events.push(Event::Sampled(id));
        Next::Step(id)
    }

    /// Does what time asks for: puts back the steps whose lease has run out, closes those that came back and are no longer
    /// fresh (rule 5), and ends the study when its time is over.
    pub fn tick(&mut self, now: Now) {
        for step in self.live.values_mut() {
            if let Some(lease) = step.lease.take_if(|lease| lease.until <= now.monotonic) {
                // This is no sign of life.
                if let Some(trainer) = self.trainers.get_mut(&lease.trainer) {
                    trainer.expired += 1;
                }
                self.progress.expired += 1;
                self.events.push(Event::Expired(step.id));
            }
        }
        let oldest = self.progress.generation.saturating_sub(self.spec.max_staleness());
        self.close(|step| step.lease.is_none() && step.generation < oldest);
        self.end_in_time(now);
        if self.spec.max_duration.is_some()
            && self.elapsed >= self.elapsed_noted.saturating_add(TIME_NOTED_EVERY)
        {
            self.events.push(Event::TimePassed);
        }
    }

    pub(super) fn close(&mut self, condition: impl Fn(&Step) -> bool) {
        for (_, step) in self.live.extract_if(.., |_, step| condition(step)) {
            let past = ClosedStep { step: Step { lease: None, ..step }, report: None };
            self.events.push(Event::StepClosed(Box::new(past)));
        }
    }

    /// Puts back every step that `trainer` holds: the process that leased them is gone.
    pub fn forget_trainer(&mut self, trainer: &str) {
        for step in self.live.values_mut() {
            if step.lease.as_ref().is_some_and(|lease| lease.trainer == trainer) {
                step.lease = None;
                self.events.push(Event::Released(step.id));
            }
        }
    }

    /// Starts the time of a lease anew.
    pub fn extend(&mut self, id: LeaseId, now: Now) -> Result<Duration, Error> {
        self.tick(now);
        let duration = self.spec.lease();
        let lease = self.held(id)?.ok_or(Error::LeaseNotHeld(id))?;
        lease.until = now.monotonic + duration;
        if let Some(lease) = self.live.get(&id.step).and_then(|step| step.lease.as_ref()) {
            self.trainers.hear(&lease.trainer, now);
        }
        Ok(duration)
    }

    /// Takes a step back unreported.
    pub fn release(&mut self, id: LeaseId, now: Now) -> Result<(), Error> {
        if self.held(id)?.is_some()
            && let Some(step) = self.live.get_mut(&id.step)
        {
            if let Some(lease) = step.lease.take() {
                self.trainers.hear(&lease.trainer, now);
            }
            self.events.push(Event::Released(id.step));
            self.tick(now);
        }
        Ok(())
    }

    /// Returns the trainer that holds the lease `id`; none if nobody does any more.
    pub fn holder(&self, id: LeaseId) -> Option<&str> {
        let step = self.live.get(&id.step).filter(|step| self.lease_id(step) == id)?;
        step.lease.as_ref().map(|lease| &*lease.trainer)
    }

    /// Returns whether `trainer` holds step `id`, unreported.
    pub fn is_held_by(&self, trainer: &str, id: StepId, now: Now) -> bool {
        let lease = self.live.get(&id).and_then(|step| step.lease.as_ref());
        lease.is_some_and(|lease| lease.trainer == trainer && lease.until > now.monotonic)
    }

    /// The lease `id`, if it is still held.
    fn held(&mut self, id: LeaseId) -> Result<Option<&mut Lease>, Error> {
        if id.study != self.id {
            return Err(Error::UnknownLease { step: id.step, lease: id });
        }
        if !(1..=self.progress.sampled).contains(&id.step.0) {
            return Err(Error::UnknownStep(id.step));
        }
        let step = self.live.get_mut(&id.step).filter(|step| step.attempt == id.attempt);
        Ok(step.and_then(|step| step.lease.as_mut()))
    }
}
