//! The units that are told of new versions, beside the rotations themselves, so that none waits for one.

use std::time::{Duration, Instant};

use keyhatch_protocol::Name;

use super::super::handle::Plan;
use super::super::{Outcome, records, unit};
use super::{PAUSE, Service};
use crate::config::OnRotated;
use crate::sources::engine::saved_now;

/// How long what comes for a unit is gathered, so that it is told once of several secrets that change together.
const GATHER: Duration = Duration::from_secs(2);

/// What a unit is told of.
pub(super) struct News {
    on: OnRotated,
    /// The secrets, each with its new version.
    of: Vec<(Name, String)>,
}

impl Service {
    /// Warns where a unit is to be told, and the bus is not there to do so.
    pub(super) fn warn_of_bus(&self) {
        if self.plans.values().any(Plan::tells)
            && let Err(why) = unit::sees_bus()
        {
            tracing::warn!("a rotation has `on_rotated`, but {why}");
        }
    }

    /// Begins to tell units of what is new for them, each by one job at a time; answers when to look again.
    pub(super) fn tell(&mut self, plans: &[Plan], otherwise: Duration) -> Duration {
        let mut wait = otherwise;
        for news in self.news(plans) {
            let unit = &news.on.unit;
            if self.telling.values().any(|told| told.on.unit == *unit) {
                continue;
            }
            let since = self
                .untold_since
                .entry(unit.clone())
                .or_insert_with(Instant::now);
            let left = GATHER.saturating_sub(since.elapsed());
            if !left.is_zero() {
                wait = wait.min(left);
            } else if records::telling(&self.rooms.audit, &news.on, &news.of) {
                self.untold_since.remove(unit);
                let on = news.on.clone();
                let task = self.tasks.spawn(async move {
                    let told = unit::tell(&on).await;
                    told.map_or_else(Outcome::Failed, |()| Outcome::Next)
                });
                self.telling.insert(task.id(), news);
            } else {
                wait = wait.min(PAUSE);
            }
        }
        wait
    }

    /// What each unit has yet to be told of.
    fn news(&mut self, plans: &[Plan]) -> Vec<News> {
        let now = saved_now();
        let mut all = Vec::<News>::new();
        for plan in plans {
            let name = &plan.rotation.secret;
            let Some(on) = &plan.rotation.on_rotated else {
                // One that is named later has read what is there.
                if let Some(state) = self.states.get_mut(name) {
                    state.untold = None;
                }
                continue;
            };
            self.see(plan, &now);
            let untold = self.states.get(name).and_then(|state| state.untold.clone());
            let Some(version) = untold else { continue };
            let of = (name.clone(), version);
            match all.iter_mut().find(|news| news.on == *on) {
                Some(news) => news.of.push(of),
                None => all.push(News {
                    on: on.clone(),
                    of: vec![of],
                }),
            }
        }
        all
    }

    /// Takes in what came of telling a unit.
    pub(super) async fn told(&mut self, news: News, outcome: Outcome) {
        let why = match outcome {
            Outcome::Failed(why) => Some(why),
            _ => None,
        };
        for (name, version) in &news.of {
            let (Some(plan), Some(state)) = (self.plans.get(name), self.states.get_mut(name))
            else {
                continue;
            };
            // A reload may have named another unit meanwhile, which knows nothing of it.
            if plan.rotation.on_rotated.as_ref() != Some(&news.on) {
                continue;
            }
            state.untold.take_if(|untold| untold == version);
            state.not_told.clone_from(&why);
            if let Some(why) = &why {
                records::not_told(&self.rooms.audit, &news.on, name, version, why);
            }
        }
        self.save().await;
    }
}
