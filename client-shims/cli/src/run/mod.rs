//! `keyhatch run`: a command with secrets in its environment, started again when one of them is rotated.

mod changes;
mod deliver;
mod routed;
mod wants;

use std::os::unix::process::CommandExt;
use std::process;
use std::time::{Duration, Instant};

use keyhatch::blocking::Client;

use crate::bridge::{self, environment};
use crate::child::{Command, Event, Keeper, Variable};
use crate::failure::Failure;
use crate::options::{OnRotate, Run};
use crate::output::visible;
use crate::proxy;
use changes::Changes;
use deliver::Delivery;
use wants::Wants;

/// Changes within this time count as one.
const TOGETHER: Duration = Duration::from_secs(2);

/// Before new values that could not be read are asked for again.
const AGAIN: Duration = Duration::from_secs(10);

pub fn run(client: &Client, run: &Run) -> Result<u8, Failure> {
    let routed = routed::wanted(&run.route)?;
    let wants = Wants::gather(run)?;
    if run.on_rotate == OnRotate::None {
        if !routed.is_empty() || run.proxy.is_some() {
            let why = "run: --route and --proxy need this process beside the command: leave --on-rotate none out";
            return Err(Failure::usage(why));
        }
        let delivery = Delivery::read(client, &wants)?;
        return Err(become_child(run, &delivery));
    }
    let keeper = Keeper::new()?;
    let delivery = Delivery::read(client, &wants)?;
    let changes = Changes::watch(client, delivery.names())?;
    let bridge = match routed.as_slice() {
        [] => None,
        _ => Some(bridge::beside(client)?),
    };
    let proxy = match &run.proxy {
        Some(named) => {
            let bridge = bridge.as_ref().map(|bridge| bridge.address);
            Some(proxy::beside(client, named, run.only_routes, bridge)?)
        }
        None => None,
    };
    let mut beside = Vec::new();
    if let Some(bridge) = &bridge {
        beside = routed::variables(&bridge.url, &routed);
    }
    match (&proxy, &bridge) {
        (Some(proxy), _) => proxy.join(&mut beside),
        (None, Some(bridge)) => beside.extend(environment::unproxied(&bridge.url)),
        (None, None) => {}
    }
    Runner {
        client,
        beside,
        _proxy: proxy,
        wants,
        command: Command::new(&run.command)?,
        on_rotate: run.on_rotate,
        keeper,
        changes,
        delivery,
    }
    .start()
}

/// Returns only where the command could not be run.
fn become_child(run: &Run, delivery: &Delivery) -> Failure {
    let [program, arguments @ ..] = run.command.as_slice() else {
        return Failure::usage("there is no command to run");
    };
    let mut command = process::Command::new(program);
    command.args(arguments);
    for variable in delivery.variables() {
        command.env(&variable.name, variable.value());
    }
    let cause = command.exec();
    Failure::cannot_run(&program.to_string_lossy(), &cause)
}

struct Runner<'a> {
    client: &'a Client,
    /// Where the routes are.
    beside: Vec<Variable>,
    _proxy: Option<proxy::Beside>,
    wants: Wants,
    command: Command,
    on_rotate: OnRotate,
    keeper: Keeper,
    changes: Changes,
    /// What the running child was given.
    delivery: Delivery,
}

impl Runner<'_> {
    fn start(mut self) -> Result<u8, Failure> {
        let variables = self.variables(&self.delivery);
        self.keeper.start(&self.command, &variables)?;
        self.delivery.close();
        let mut due = None;
        loop {
            let wake = Some(self.changes.as_fd());
            match self.keeper.wait(wake, due)? {
                Event::Exited(code) => return Ok(code),
                Event::Woken => {
                    self.changes.heard();
                    if self.changes.differ_from(self.delivery.versions()) {
                        due.get_or_insert_with(|| Instant::now() + TOGETHER);
                    }
                }
                Event::TimedOut => match self.rotated()? {
                    After::Waits(until) => due = until,
                    After::Ends(code) => return Ok(code),
                },
                Event::Told(_) => {}
            }
        }
    }

    fn variables(&self, delivery: &Delivery) -> Vec<Variable> {
        let mut all = delivery.variables();
        all.extend(self.beside.iter().cloned());
        all
    }

    fn rotated(&mut self) -> Result<After, Failure> {
        match self.on_rotate {
            OnRotate::Signal(signal) => {
                self.changes.note(self.delivery.versions_mut());
                self.keeper.tell(signal);
                Ok(After::Waits(None))
            }
            OnRotate::Restart | OnRotate::None => self.restart(),
        }
    }

    /// The new values first: as long as they cannot be read, the child goes on with the old ones.
    fn restart(&mut self) -> Result<After, Failure> {
        let fresh = match Delivery::read(self.client, &self.wants) {
            Ok(fresh) => fresh,
            Err(failure) => {
                // Its exit code is for a command that could not be started.
                let _ = failure.report();
                eprintln!("keyhatch: run: the command goes on with the values it has");
                return Ok(After::Waits(Some(Instant::now() + AGAIN)));
            }
        };
        if fresh.versions() == self.delivery.versions() {
            return Ok(After::Waits(None));
        }
        eprintln!(
            "keyhatch: run: {} rotated, restarting",
            visible(&fresh.news(&self.delivery))
        );
        let (code, ending) = self.keeper.stop()?;
        if ending {
            return Ok(After::Ends(code));
        }
        self.keeper.start(&self.command, &self.variables(&fresh))?;
        self.delivery = fresh;
        self.delivery.close();
        self.changes.follow(self.client, self.delivery.names());
        // What changed while the old child took its time.
        let again = self.changes.differ_from(self.delivery.versions());
        Ok(After::Waits(again.then(|| Instant::now() + TOGETHER)))
    }
}

/// After a change was dealt with.
enum After {
    /// The child runs on; look again at this time.
    Waits(Option<Instant>),
    /// We were told to end.
    Ends(u8),
}
