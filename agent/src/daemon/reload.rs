//! Reload: a configuration takes effect whole, or not at all.

use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde_json::json;

use super::Daemon;
use super::preflight::preflight;
use super::start::exe_paths;
use crate::api::admin::AdminServer;
use crate::audit::{Entry, Event, extra};
use crate::config::{self, Config, Depth, Stamps};
use crate::confine::Needs;
use crate::exec::allowed_programs;
use crate::files::Trust;
use crate::routes::Routes;

impl Daemon {
    /// Reads the configuration anew, and tells the service manager when that begins and ends.
    pub(super) fn reload(&self, admin: &AdminServer) -> Result<(), Vec<String>> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        let now = now.as_micros();
        self.manager
            .tell(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
        let done = self.load_anew(admin);
        self.manager.tell("READY=1");
        done
    }

    /// The configuration takes effect whole, or not at all.
    fn load_anew(&self, admin: &AdminServer) -> Result<(), Vec<String>> {
        let loaded = config::load(&self.path, Depth::Full(Trust::own()))
            .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>());
        let fresh = loaded.and_then(|fresh| match self.refuse_changes(&fresh) {
            problems if problems.is_empty() => {
                let routes = Routes::of(&fresh.routes, &self.context.routes.load())?;
                Ok((fresh, routes))
            }
            problems => Err(problems),
        });
        let fresh = fresh.and_then(|fresh| match self.credentials.open(None, &fresh.0.policy) {
            Ok(()) => Ok(fresh),
            Err(error) => Err(vec![error.to_string()]),
        });
        let (fresh, routes) = match fresh {
            Ok(fresh) => fresh,
            Err(problems) => {
                problems
                    .iter()
                    .for_each(|problem| tracing::error!("{problem}"));
                let members = extra(&[("problems", json!(problems))]);
                self.record(Event::PolicyRejected, &members);
                return Err(problems);
            }
        };
        fresh
            .warnings
            .iter()
            .for_each(|warning| tracing::warn!("{warning}"));
        self.context.images.learn(&exe_paths(&fresh));
        self.context
            .config_files
            .store(Arc::new(Stamps::of(&fresh.files)));
        admin.admins.store(Arc::new(fresh.agent.admins.clone()));
        self.context.dropin.store(Arc::new(fresh.dropin.clone()));
        self.context.routes.store(Arc::new(routes));
        self.context.rotations.set(&fresh.rotations);
        self.context.set_policy(Arc::clone(&fresh.policy));
        self.record(Event::PolicyLoaded, &extra(&[("config", json!(self.path))]));
        tracing::info!("the configuration was loaded anew");
        Ok(())
    }

    /// What only a restart can change.
    fn refuse_changes(&self, fresh: &Config) -> Vec<String> {
        let mut problems = preflight(fresh);
        let needs = Needs::of(&self.path, fresh, &|name| std::env::var_os(name));
        let path = self.path.display();
        let mut more = needs.beyond(&self.granted);
        if !self.context.runner.knows(&allowed_programs(fresh)) {
            more.push("to run another program".to_owned());
        }
        problems.extend(more.iter().map(|what| {
            format!("{path}: needs {what}, which keyhatchd gave up as it started; restart it")
        }));
        let (old, new) = (&self.config, fresh);
        let mut fixed = |same: bool, what: &str| {
            if !same {
                problems.push(format!(
                    "{path}: {what} changed, which a reload cannot do; restart keyhatchd"
                ));
            }
        };
        fixed(old.agent.socket == new.agent.socket, "[agent].socket");
        fixed(
            old.agent.admin_socket == new.agent.admin_socket,
            "[agent].admin_socket",
        );
        fixed(
            old.agent.state_dir == new.agent.state_dir,
            "[agent].state_dir",
        );
        fixed(old.agent.metrics == new.agent.metrics, "[agent].metrics");
        fixed(
            old.agent.snapshot_key == new.agent.snapshot_key,
            "[agent].snapshot_key",
        );
        fixed(old.sources == new.sources, "[[source]]");
        fixed(old.audit == new.audit, "[audit]");
        problems
    }

    fn record(&self, event: Event, members: &str) {
        // The log itself says when it cannot be written.
        let _ = self.context.audit.keep(&Entry {
            extra: Some(members),
            ..Entry::of(event)
        });
    }
}
