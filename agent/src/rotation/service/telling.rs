//! The units that are told of new versions, beside the rotations themselves, so that none waits for one.

use keyhatch_protocol::Name;

use super::super::handle::Plan;
use super::super::{Outcome, records, unit};
use super::Service;
use crate::sources::engine::saved_now;

impl Service {
    /// Warns where a unit is to be told, and the bus is not there to do so.
    pub(super) fn warn_of_bus(&self) {
        if self.plans.values().any(Plan::tells)
            && let Err(why) = unit::sees_bus()
        {
            tracing::warn!("a rotation has `on_rotated`, but {why}");
        }
    }

    /// Begins to tell the unit of a version that is new, beside all else.
    pub(super) fn tell(&mut self, plan: &Plan) {
        let (name, now) = (&plan.rotation.secret, saved_now());
        let Some(on) = &plan.rotation.on_rotated else {
            // One that is named later has read what is there.
            if let Some(state) = self.states.get_mut(name) {
                state.untold = None;
            }
            return;
        };
        let telling = self.telling.values().any(|(telling, _)| telling == name);
        if telling || !self.see(plan, &now) {
            return;
        }
        let untold = self.states.get(name).and_then(|state| state.untold.clone());
        let Some(version) = untold else { return };
        let on = on.clone();
        let task = self.tasks.spawn(async move {
            unit::tell(&on)
                .await
                .map_or_else(Outcome::Failed, |()| Outcome::Next)
        });
        self.telling.insert(task.id(), (name.clone(), version));
    }

    /// Takes in what came of telling the unit.
    pub(super) async fn told(&mut self, name: &Name, version: &str, outcome: Outcome) {
        let (Some(plan), Some(state)) = (self.plans.get(name), self.states.get_mut(name)) else {
            return;
        };
        state.untold.take_if(|untold| untold == version);
        state.not_told = match outcome {
            Outcome::Failed(why) => Some(why),
            _ => None,
        };
        records::told(&self.rooms.audit, plan, version, state.not_told.as_deref());
        self.save().await;
    }
}
