//! Stored definitions.

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    MemoryStore, count,
    tables::{Claimant, Tables},
};
use crate::{
    ids::{JobId, UnixNanos},
    store::{AgentFilter, AgentRef, AgentView, Agents, Error, NewAgent, PutAgent},
};

/// A stored definition.
pub(super) struct Kept {
    agent: NewAgent,
    at: UnixNanos,
}

#[async_trait]
impl Agents for MemoryStore {
    async fn put_agent(&self, agent: &NewAgent) -> Result<PutAgent, Error> {
        self.write(|tables| Ok(tables.put_agent(agent, &self.claimant())))
    }

    async fn agent(&self, agent: &AgentRef) -> Result<Option<(AgentView, Bytes)>, Error> {
        Ok(self.tables()?.agent(agent))
    }

    async fn agents(&self, filter: &AgentFilter, limit: u32) -> Result<Vec<AgentView>, Error> {
        Ok(self.tables()?.list_agents(filter, count(limit)))
    }

    async fn pin_agent(&self, job_id: &JobId, agent: &AgentRef) -> Result<Option<String>, Error> {
        self.write(|tables| Ok(tables.pin_agent(job_id, agent)))
    }
}

impl Tables {
    fn put_agent(&mut self, agent: &NewAgent, by: &Claimant<'_>) -> PutAgent {
        let same = |kept: &&Kept| kept.agent.name == agent.name && kept.agent.version == agent.version;
        match self.agents.iter().find(same) {
            Some(kept) if kept.agent.hash == agent.hash => PutAgent::Known,
            Some(kept) => PutAgent::Taken(kept.agent.hash.clone()),
            None => {
                self.agents.push(Kept { agent: agent.clone(), at: by.now });
                PutAgent::New
            }
        }
    }

    fn view_of(&self, kept: &Kept) -> AgentView {
        let versions = self.agents.iter().filter(|other| other.agent.name == kept.agent.name).count();
        let count = |count: usize| u64::try_from(count).expect("a count fits 64 bits");
        AgentView {
            name: kept.agent.name.clone(),
            version: kept.agent.version.clone(),
            hash: kept.agent.hash.clone(),
            bytes: count(kept.agent.definition.len()),
            stored_at: kept.at,
            versions: count(versions),
        }
    }

    fn agent(&self, wanted: &AgentRef) -> Option<(AgentView, Bytes)> {
        let is_wanted = |kept: &&Kept| match wanted {
            AgentRef::Named { name, version } => {
                kept.agent.name == *name
                    && version.as_ref().is_none_or(|version| *version == kept.agent.version)
            }
            AgentRef::Hash(hash) => kept.agent.hash == *hash,
        };
        let kept = self.agents.iter().rfind(is_wanted)?;
        Some((self.view_of(kept), kept.agent.definition.clone()))
    }

    fn list_agents(&self, filter: &AgentFilter, limit: usize) -> Vec<AgentView> {
        let newest_first = || self.agents.iter().rev();
        if let Some(name) = &filter.name {
            let versions = newest_first().filter(|kept| kept.agent.name == *name);
            return versions.map(|kept| self.view_of(kept)).take(limit).collect();
        }
        let mut newest: Vec<&Kept> = Vec::new();
        for kept in newest_first() {
            let name = &kept.agent.name;
            let listed = name.starts_with(&filter.prefix) && *name > filter.after;
            if listed && !newest.iter().any(|other| other.agent.name == *name) {
                newest.push(kept);
            }
        }
        newest.sort_by(|a, b| a.agent.name.cmp(&b.agent.name));
        newest.into_iter().map(|kept| self.view_of(kept)).take(limit).collect()
    }

    fn pin_agent(&mut self, job_id: &JobId, wanted: &AgentRef) -> Option<String> {
        let found = self.agent(wanted).map(|(view, _)| view.hash);
        match wanted {
            AgentRef::Hash(_) => found,
            AgentRef::Named { .. } => {
                if let Some(pinned) = self.pins.get(job_id) {
                    return Some(pinned.clone());
                }
                // As the column of a row: of a job that is not there nothing is noted.
                let hash = found.filter(|_| self.jobs.contains_key(job_id))?;
                self.pins.insert(job_id.clone(), hash.clone());
                Some(hash)
            }
        }
    }
}
