//! The model's tables answer as the real ones do: the same calls at random, by owners old and new, to both.

use std::sync::Arc;

use agent_executor::{
    ids::CheckpointId,
    pregel,
    store::{self, Error, NextJob, Store},
};
use fastrand::Rng;

use super::{
    rules::{Mutant, Rules},
    state::{Checkpoint, Claim, Job, SUPERSTEPS, State},
    tables::{Fenced, Verdict},
};
use crate::stores::{Fixture, checkpoint, ended, in_memory, offer, step, suite};

suite!(the_models_tables_answer_as_the_stores_do);

/// Walks, each on a thread of its own.
const WALKS: u64 = 40;

/// Calls of a walk: enough to end three jobs with some detours.
const CALLS: usize = 40;

const JOBS: usize = 3;

async fn the_models_tables_answer_as_the_stores_do(db: &dyn Fixture) {
    compare(db, None).await;
}

#[tokio::test]
#[should_panic(expected = " is not ")]
async fn tables_without_the_fence_are_told_from_the_real_ones() {
    compare(&in_memory(), Some(Mutant::NoFence)).await;
}

#[tokio::test]
#[should_panic(expected = "assertion `left == right` failed")]
async fn tables_that_give_the_thread_to_the_lowest_job_are_told_from_the_real_ones() {
    compare(&in_memory(), Some(Mutant::LowestFirst)).await;
}

async fn compare(db: &dyn Fixture, mutant: Option<Mutant>) {
    let rules = Rules { mutant, jobs: JOBS, faults: &[], count: 0 };
    let stores = [db.process("a").await, db.process("b").await];
    let mut ended = 0;
    for seed in 0..WALKS {
        let mut walk = Walk::new(db, &stores, (rules, seed));
        for _ in 0..CALLS {
            walk.call().await;
        }
        ended += walk.model.rows.iter().filter(|row| row.end.is_some()).count();
    }
    assert!(
        ended > usize::try_from(WALKS).expect("a small number"),
        "the walks lead somewhere: {ended} ends"
    );
}

/// The model and a real thread, called alike.
struct Walk<'a> {
    db: &'a dyn Fixture,
    stores: &'a [Arc<dyn Store>],
    rules: Rules,
    seed: u64,
    random: Rng,
    model: State,
    /// Everyone who was ever granted the thread.
    owners: Vec<Owner>,
    /// The real checkpoint of each of the model's.
    made: Vec<(Checkpoint, pregel::Checkpoint)>,
    /// How long the history was when the lease last ran out.
    lapsed_at: Option<usize>,
    /// What was called, for the message of a failure.
    calls: Vec<String>,
}

#[derive(Clone)]
struct Owner {
    /// Which of the stores speaks for it.
    process: usize,
    claim: Claim,
    real: store::Claim,
    superstep: u8,
    parent: usize,
}

impl<'a> Walk<'a> {
    fn new(db: &'a dyn Fixture, stores: &'a [Arc<dyn Store>], (rules, seed): (Rules, u64)) -> Self {
        Self {
            db,
            stores,
            rules,
            seed,
            random: Rng::with_seed(seed),
            model: State::start(rules.jobs, rules.count),
            owners: Vec::new(),
            made: Vec::new(),
            lapsed_at: None,
            calls: Vec::new(),
        }
    }

    async fn call(&mut self) {
        let job = self.random.usize(..JOBS);
        // The newest owner calls most often, or little would ever land.
        let newest = self.owners.len().checked_sub(1);
        let owner =
            newest.map(|last| if self.random.u8(..4) == 0 { self.random.usize(..=last) } else { last });
        match (self.random.u8(..12), owner) {
            (0, _) => self.lapse().await,
            (1, _) => self.mark(job).await,
            (2, Some(owner)) => self.release(owner).await,
            (3..=4, Some(owner)) => self.finish(owner).await,
            (5..=8, Some(owner)) => self.commit(owner).await,
            _ => self.accept(job).await,
        }
    }

    fn name(&self, job: Job) -> String {
        format!("walk-{}-job-{job}", self.seed)
    }

    fn thread(&self) -> String {
        format!("walk-{}", self.seed)
    }

    fn said(&mut self, call: String) -> String {
        self.calls.push(call);
        format!("walk {}: {:#?}", self.seed, self.calls)
    }

    async fn accept(&mut self, job: Job) {
        let said = self.said(format!("accept {job}"));
        let process = self.random.usize(..self.stores.len());
        let offer = offer(&self.name(job), &self.thread(), job as u64 + 1);
        let real = self.stores[process].accept(&offer).await.expect("the store answers");
        let busy_with = self.model.thread.job;
        match (self.model.accept(self.rules, job, None), real) {
            (Verdict::Run(claim), store::Verdict::Run(real)) => self.own(process, claim, real, &said),
            (Verdict::Busy, store::Verdict::Parked { .. }) => assert_ne!(busy_with, Some(job), "{said}"),
            (Verdict::Busy, store::Verdict::RunningElsewhere { .. }) => {
                assert_eq!(busy_with, Some(job), "{said}");
            }
            (Verdict::Unpublished(Some(epoch)), store::Verdict::DoneUnpublished { result, .. }) => {
                let owner = self.owners.iter().find(|owner| owner.claim.epoch == epoch).expect("it ended it");
                assert_eq!(*result.event, *bytes(owner), "{said}");
            }
            (Verdict::Done, store::Verdict::Done) => {}
            (model, real) => panic!("{model:?} is not {real:?}: {said}"),
        }
    }

    /// Notes a claim that both granted.
    fn own(&mut self, process: usize, claim: Claim, real: store::Claim, said: &str) {
        assert_eq!(real.job_id.as_str(), self.name(claim.job), "{said}");
        assert_eq!(real.head.as_ref(), self.head(self.model.thread.head), "{said}");
        assert!(self.owners.iter().all(|before| before.real.epoch < real.epoch), "{said}");
        let own = self.model.history.last().filter(|newest| newest.job == claim.job);
        let superstep = own.map_or(0, |newest| newest.superstep + 1);
        self.owners.push(Owner { process, claim, real, superstep, parent: self.model.history.len() });
    }

    fn head(&self, head: usize) -> Option<&CheckpointId> {
        let model = self.model.history[head.checked_sub(1)?];
        self.made.iter().find(|(made, _)| *made == model).map(|(_, real)| &real.id)
    }

    /// The owner's next superstep, or its last one again.
    async fn commit(&mut self, number: usize) {
        let mut owner = self.owners[number].clone();
        let again = self.made.iter().rev().find(|(made, _)| made.epoch == owner.claim.epoch);
        let again = again.map(|(made, _)| *made).filter(|_| self.random.u8(..4) == 0);
        let Claim { job, epoch } = owner.claim;
        let next = Checkpoint { job, superstep: owner.superstep, epoch, parent: owner.parent };
        let model = again.unwrap_or(next);
        if model.superstep >= SUPERSTEPS {
            return;
        }
        let said = self.said(format!("commit {model:?}"));
        let (real, commit) = self.checkpoint(&owner, model);
        let stored = self.stores[owner.process].commit(commit).await;
        match (self.model.commit(self.rules, owner.claim, (model.superstep, model.parent)), stored) {
            (Ok(()), Ok(())) => {
                if again.is_none() {
                    owner.superstep += 1;
                    owner.parent = self.model.thread.head;
                    self.owners[number] = owner;
                    self.made.push((model, real));
                }
            }
            (Err(Fenced), Err(Error::Fenced { .. })) => {}
            (model, real) => panic!("{model:?} is not {real:?}: {said}"),
        }
    }

    /// The real checkpoint for one of the model's, and its commit.
    fn checkpoint(&self, owner: &Owner, model: Checkpoint) -> (pregel::Checkpoint, store::Commit) {
        let parent = self.head(model.parent);
        let known = self.made.iter().find(|(made, _)| *made == model).map(|(_, real)| real.clone());
        let real = known.unwrap_or_else(|| checkpoint(parent, model.superstep.into(), &[]));
        let commit = step(&owner.real, parent, &real);
        (real, commit)
    }

    /// The end of the owner's job, perhaps with its next superstep: the model takes the two one after the other, or
    /// none.
    async fn finish(&mut self, number: usize) {
        let owner = self.owners[number].clone();
        let Claim { job, epoch } = owner.claim;
        let next = if self.random.bool() { NextJob::Take } else { NextJob::Leave };
        let last = (owner.superstep < SUPERSTEPS && self.random.bool()).then_some(Checkpoint {
            job,
            superstep: owner.superstep,
            epoch,
            parent: owner.parent,
        });
        let said = self.said(format!("finish {:?} with {last:?}, {next:?}", owner.claim));
        let mut finish = ended(&owner.real, next);
        finish.result.event = bytes(&owner).into();
        let last = last.map(|model| {
            let (real, commit) = self.checkpoint(&owner, model);
            finish.last = Some(commit);
            (model, real)
        });
        let real = self.stores[owner.process].finish(&finish).await;
        let mut model = self.model.clone();
        let has_ended = model.rows[job].end.is_some_and(|end| end.epoch == epoch);
        let last = last.filter(|_| !has_ended);
        let stored = last
            .as_ref()
            .map_or(Ok(()), |(last, _)| model.commit(self.rules, owner.claim, (last.superstep, last.parent)));
        let answer = stored.and_then(|()| model.finish(self.rules, owner.claim, next == NextJob::Take));
        if answer.is_ok() {
            self.model = model;
            self.made.extend(last);
        }
        match (answer, real) {
            (Ok(None), Ok(None)) | (Err(Fenced), Err(Error::Fenced { .. })) => {}
            (Ok(Some(claim)), Ok(Some(real))) => {
                match self.owners.iter().find(|known| known.claim == claim) {
                    // The same finish again.
                    Some(known) => assert_eq!(known.real.epoch, real.epoch, "{said}"),
                    None => self.own(owner.process, claim, real, &said),
                }
            }
            (model, real) => panic!("{model:?} is not {real:?}: {said}"),
        }
    }

    async fn release(&mut self, number: usize) {
        let owner = self.owners[number].clone();
        let said = self.said(format!("release {:?}", owner.claim));
        let real = self.stores[owner.process].release(&owner.real).await;
        match (self.model.release(owner.claim), real) {
            (Ok(()), Ok(())) | (Err(Fenced), Err(Error::Fenced { .. })) => {}
            (model, real) => panic!("{model:?} is not {real:?}: {said}"),
        }
    }

    async fn mark(&mut self, job: Job) {
        if self.model.rows[job].end.is_some() {
            self.said(format!("mark {job}"));
            let name = offer(&self.name(job), &self.thread(), 0).record.job_id;
            self.stores[0].mark_published(&name).await.expect("the store answers");
            self.model.mark(job);
        }
    }

    /// Not twice without a commit between: the model knows nothing of suspects.
    async fn lapse(&mut self) {
        let committed = self.model.history.len();
        if self.lapsed_at.is_none_or(|before| before < committed) {
            self.said("the lease runs out".into());
            self.lapsed_at = Some(committed);
            self.db.expire_leases().await;
            self.model.thread.lapsed = self.model.thread.owned;
        }
    }
}

/// The result as this owner would make it.
fn bytes(owner: &Owner) -> Vec<u8> {
    format!("{} under {}", owner.real.job_id, owner.real.epoch.0).into_bytes()
}
