//! The loop of one source: one thing is decided at a time, while calls to the upstream are under way beside.

use std::collections::HashMap;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use keyhatch_protocol::Name;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::clock::Moment;
use super::leases::Leases;
use super::lend::Lent;
use super::pace::{Pace, dice};
use super::serve::Serving;
use super::sweep::{Found, Portion, WIDTH, sweep};
use super::wish::{Wish, Wishes};
use super::{Supply, Wanted};
use crate::policy::Pattern;
use crate::sources::upstream::{Answer, Fetched, Trouble, Turn, Upstream};

/// How soon a value that is held may be asked for again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often ages are looked at while an upstream is down.
const LOOK: Duration = Duration::from_secs(1);
/// How many times as long as one call a list may take, which is many calls.
const LISTING: u32 = 6;
/// The longest sleep.
const SLEEP: Duration = Duration::from_secs(60);

/// What a source is told.
pub enum Asked {
    /// A version of a secret is wanted that is not held; or, `again`, is asked for although it is.
    Supply {
        name: Name,
        wanted: Wanted,
        again: bool,
        by: u32,
        reply: oneshot::Sender<Supply>,
    },
    /// A secret is to be given a new value.
    Rotate {
        name: Name,
        turn: Turn,
        reply: oneshot::Sender<Result<(), String>>,
    },
    Seal(oneshot::Sender<()>),
    Unseal(oneshot::Sender<()>),
    Stop(oneshot::Sender<()>),
}

/// The loop of one source, to be run.
pub struct Line(pub Pin<Box<dyn Future<Output = ()>>>);

impl Line {
    pub fn begin<U: Upstream>(
        serving: Serving,
        upstream: U,
        inbox: mpsc::UnboundedReceiver<Asked>,
    ) -> Self {
        Self(Box::pin(Loop::new(serving, upstream).run(inbox)))
    }
}

/// A call that has ended. Names are those that are served.
enum Done {
    Swept {
        begun: Moment,
        found: Found,
    },
    Fetched {
        wish: Wish,
        asked: Moment,
        answer: Result<Answer, Trouble>,
    },
    Renewed {
        name: Name,
        asked: Moment,
        answer: Result<Option<Duration>, Trouble>,
    },
    Revoked(Result<(), Trouble>),
    Rotated {
        name: Name,
        answer: Result<(), Trouble>,
        reply: oneshot::Sender<Result<(), String>>,
    },
}

struct Loop<U> {
    serving: Serving,
    upstream: Rc<U>,
    prefetch: Rc<[Pattern]>,
    calls: JoinSet<Done>,
    /// Values of the round that is under way.
    portions: mpsc::UnboundedReceiver<Portion>,
    hand_over: mpsc::UnboundedSender<Portion>,
    /// When the round that is under way began.
    sweeping: Option<Moment>,
    pace: Pace,
    wishes: Wishes,
    fetching: usize,
    leases: Leases,
    /// When ages were looked at last.
    looked: Moment,
    sealed: bool,
}

fn begin(serving: &Serving, now: Moment) -> Pace {
    Pace::begin(serving.fetching.refresh, now, serving.is_loaded(), dice())
}

impl<U: Upstream> Loop<U> {
    fn new(serving: Serving, upstream: U) -> Self {
        let now = Moment::now();
        let (hand_over, portions) = mpsc::unbounded_channel();
        Self {
            prefetch: serving.fetching.prefetch.clone().into(),
            pace: begin(&serving, now),
            sealed: serving.is_sealed(),
            serving,
            upstream: Rc::new(upstream),
            calls: JoinSet::new(),
            portions,
            hand_over,
            sweeping: None,
            wishes: Wishes::default(),
            fetching: 0,
            leases: Leases::default(),
            looked: now,
        }
    }

    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Asked>) {
        loop {
            let now = Moment::now();
            self.begin_calls(now);
            let pause = self.wake(now).since(now);
            tokio::select! {
                // Values of a round are served before its end is told.
                biased;
                Some(portion) = self.portions.recv() => self.serve_portion(portion),
                Some(Ok(done)) = self.calls.join_next(), if !self.calls.is_empty() => self.finish(done),
                asked = inbox.recv() => match asked {
                    Some(Asked::Supply { name, wanted, again, by, reply }) => {
                        self.supply((name, wanted), again, by, reply);
                    }
                    Some(Asked::Rotate { name, turn, reply }) => self.rotate(name, turn, reply),
                    Some(Asked::Seal(reply)) => { self.seal(); let _ = reply.send(()); }
                    Some(Asked::Unseal(reply)) => { self.unseal(); let _ = reply.send(()); }
                    Some(Asked::Stop(reply)) => { self.stop(); let _ = reply.send(()); return; }
                    None => return,
                },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Begins what is due.
    fn begin_calls(&mut self, now: Moment) {
        if self.sealed {
            return;
        }
        if self.sweeping.is_none() && self.pace.next() <= now {
            self.begin_sweep(now);
        }
        // It may queue fetches, for which nothing else wakes.
        self.tend_leases(now);
        while self.fetching < WIDTH
            && let Some(wish) = self.wishes.next()
        {
            self.begin_fetch(wish, now);
        }
        self.look_at_age(now);
        if self.serving.save_due().is_some_and(|due| due <= now) {
            self.serving.save();
        }
    }

    /// What is too old, or no longer lent, is not served.
    fn look_at_age(&mut self, now: Moment) {
        let ended = self.leases.ended(self.looked, now);
        if ended || self.serving.is_down() && now.since(self.looked) >= LOOK {
            self.serving.look_at_age(now, self.serving.is_down());
            self.looked = now;
        }
    }

    /// When something is due next.
    fn wake(&self, now: Moment) -> Moment {
        let mut wake = now + SLEEP;
        if self.sealed {
            return wake;
        }
        if self.sweeping.is_none() {
            wake = wake.min(self.pace.next());
        }
        if self.serving.is_down() {
            wake = wake.min(self.looked + LOOK);
        }
        self.leases
            .wakes(now)
            .chain(self.serving.save_due())
            .fold(wake, Moment::min)
    }

    fn begin_sweep(&mut self, now: Moment) {
        self.sweeping = Some(now);
        let round = sweep(
            Rc::clone(&self.upstream),
            Rc::clone(&self.prefetch),
            self.serving.held(),
            self.serving.fetching.timeout * LISTING,
            self.hand_over.clone(),
        );
        self.calls.spawn_local(async move {
            let found = round.await;
            Done::Swept { begun: now, found }
        });
    }

    fn begin_fetch(&mut self, wish: Wish, now: Moment) {
        self.fetching += 1;
        let upstream = Rc::clone(&self.upstream);
        let own = self.serving.names.own(&wish.0);
        self.calls.spawn_local(async move {
            let answer = match (&own, wish.1) {
                (None, _) => Ok(Answer::Absent("not a name of this source".into())),
                (Some(own), Wanted::Previous) => upstream.previous(own).await,
                (Some(own), Wanted::Current) => {
                    let mut answers = upstream.fetch(std::slice::from_ref(own)).await;
                    answers
                        .pop()
                        .unwrap_or_else(|| Err(Trouble::unusable("no answer")))
                }
            };
            let asked = now;
            Done::Fetched {
                wish,
                asked,
                answer,
            }
        });
    }

    /// Where this source is sealed the reply is dropped, which is an answer too.
    fn rotate(&mut self, name: Name, turn: Turn, reply: oneshot::Sender<Result<(), String>>) {
        let Some(own) = self.serving.names.own(&name).filter(|_| !self.sealed) else {
            return;
        };
        let upstream = Rc::clone(&self.upstream);
        self.calls.spawn_local(async move {
            let answer = upstream.rotate(&own, &turn).await;
            Done::Rotated {
                name,
                answer,
                reply,
            }
        });
    }

    fn tend_leases(&mut self, now: Moment) {
        let due = self.leases.take_due(now);
        for name in due.fetch {
            self.wishes.want((name, Wanted::Current), None);
        }
        for (name, lease) in due.renew {
            let upstream = Rc::clone(&self.upstream);
            self.calls.spawn_local(async move {
                Done::Renewed {
                    name,
                    asked: now,
                    answer: upstream.renew(&lease).await,
                }
            });
        }
        for lease in due.revoke {
            let upstream = Rc::clone(&self.upstream);
            self.calls
                .spawn_local(async move { Done::Revoked(upstream.revoke(&lease).await) });
        }
    }

    fn supply(&mut self, wish: Wish, again: bool, by: u32, reply: oneshot::Sender<Supply>) {
        let now = Moment::now();
        let served = self.serving.served(&wish.0);
        let held = match wish.1 {
            Wanted::Current => served.is_some(),
            Wanted::Previous => served.is_some_and(|entry| entry.previous.is_some()),
        };
        let known = held && !(again && self.is_worth_asking(&wish.0, now));
        let answer = if self.sealed {
            Some(Supply::Unavailable)
        } else if known {
            Some(Supply::Served)
        } else if self.wishes.is_absent(&wish, now) {
            Some(Supply::Absent)
        } else if self.wishes.is_awaited(&wish) {
            None
        } else if self.serving.is_down() {
            Some(Supply::Unavailable)
        } else if !held && !self.wishes.pay(&wish, by, now) {
            Some(Supply::Limited)
        } else {
            None
        };
        match answer {
            // Who asked may have gone.
            Some(answer) => drop(reply.send(answer)),
            None => self.wishes.want(wish, Some(reply)),
        }
    }

    /// Whether the upstream may say more of a value that is held: it answers, the value is not lent, and it
    /// has not just been asked.
    fn is_worth_asking(&self, name: &Name, now: Moment) -> bool {
        !self.serving.is_down()
            && !self.leases.has(name)
            && !self.serving.is_confirmed_since(name, now - AGAIN)
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Swept { begun, found } => self.swept(begun, found),
            Done::Fetched {
                wish,
                asked,
                answer,
            } => {
                self.fetching -= 1;
                let supply = self.fetched(&wish, asked, answer);
                self.wishes.answer(&wish, supply);
            }
            Done::Renewed {
                name,
                asked,
                answer,
            } => self.renewed(&name, asked, answer),
            Done::Revoked(Ok(())) => {}
            Done::Rotated {
                name,
                answer,
                reply,
            } => {
                if answer.is_ok() {
                    self.wishes.want((name, Wanted::Current), None);
                }
                // Who asked may have gone.
                let _ = reply.send(answer.map_err(|why| why.to_string()));
            }
            // It ends by itself in time.
            Done::Revoked(Err(why)) => {
                tracing::warn!(source = %self.serving.source, %why, "an old lease was not ended early");
            }
        }
    }

    fn serve_portion(&mut self, portion: Portion) {
        let asked = self.sweeping.unwrap_or_else(Moment::now);
        let fetched = portion
            .into_iter()
            .filter_map(|(own, fetched)| Some((self.name_of(own.as_str())?, fetched)))
            .collect();
        self.serve(fetched, asked, false);
    }

    fn serve(&mut self, mut fetched: Vec<(Name, Fetched)>, asked: Moment, on_demand: bool) {
        let now = Moment::now();
        let mut leases = Vec::new();
        for (name, fetched) in &mut fetched {
            self.wishes.is_there(name);
            if let Some(lease) = fetched.lease.take() {
                leases.push((name.clone(), Lent::new(lease, asked, dice())));
            }
        }
        let ends = leases.iter().map(|(name, lent)| (name.clone(), lent.ends));
        let ends: HashMap<Name, Moment> = ends.collect();
        self.serving.serve(fetched, &ends, asked, on_demand);
        for (name, lent) in leases {
            self.leases.put(name, lent, now);
        }
    }

    /// The name that a secret of the upstream is served under; what cannot be served is told once.
    fn name_of(&mut self, own: &str) -> Option<Name> {
        match self.serving.names.served(own) {
            Ok(name) => Some(name),
            Err(why) => {
                self.serving.alert(own, &why);
                None
            }
        }
    }

    fn swept(&mut self, begun: Moment, found: Found) {
        self.sweeping = None;
        let now = Moment::now();
        let confirmed: Vec<Name> = self.names_of(found.confirmed);
        self.serving.confirm(confirmed, begun);
        let gone = self.names_of(found.gone);
        self.gone(&gone, now);
        self.serving.alert_all(found.unusable);
        if let Some((why, retry_after)) = found.outage {
            self.outage(&why, retry_after);
        } else {
            self.pace.succeeded(now, dice());
            self.serving.up(begun, self.pace.next());
        }
    }

    fn names_of(&mut self, own: Vec<Name>) -> Vec<Name> {
        own.into_iter()
            .filter_map(|own| self.name_of(own.as_str()))
            .collect()
    }

    fn gone(&mut self, names: &[Name], now: Moment) {
        if names.is_empty() {
            return;
        }
        for name in names {
            self.leases.remove(name);
            self.wishes
                .remember_absent((name.clone(), Wanted::Current), now);
        }
        self.serving.remove(names);
    }

    fn fetched(&mut self, wish: &Wish, asked: Moment, answer: Result<Answer, Trouble>) -> Supply {
        let (name, wanted) = wish;
        let now = Moment::now();
        self.leases.is_done(name);
        match answer {
            Ok(Answer::Found(fetched)) if *wanted == Wanted::Previous => {
                match self.serving.serve_previous(name, fetched) {
                    Ok(()) => Supply::Served,
                    Err(why) => self.unusable(name, &why),
                }
            }
            Ok(Answer::Found(fetched)) => {
                self.serve(vec![(name.clone(), fetched)], asked, true);
                match self.serving.served(name) {
                    Some(_) => Supply::Served,
                    // Why was told.
                    None => Supply::Unavailable,
                }
            }
            Ok(Answer::Absent(_)) => {
                match wanted {
                    Wanted::Previous => self.wishes.remember_absent(wish.clone(), now),
                    Wanted::Current => self.gone(std::slice::from_ref(name), now),
                }
                Supply::Absent
            }
            Err(Trouble::Unusable { why }) => self.unusable(name, &why),
            Err(Trouble::Outage { why, retry_after }) => {
                self.outage(&why, retry_after);
                self.postpone(name);
                Supply::Unavailable
            }
        }
    }

    fn unusable(&mut self, name: &Name, why: &str) -> Supply {
        self.serving.alert(name.as_str(), why);
        self.postpone(name);
        Supply::Unavailable
    }

    /// A lease that could not be tended is tried again when the upstream is.
    fn postpone(&mut self, name: &Name) {
        let next = (Moment::now() + LOOK).max(self.pace.next());
        self.leases.postpone(name, next);
    }

    fn renewed(&mut self, name: &Name, asked: Moment, answer: Result<Option<Duration>, Trouble>) {
        self.leases.is_done(name);
        let time = match answer {
            Ok(time) => time,
            Err(Trouble::Unusable { .. }) => None,
            Err(Trouble::Outage { why, retry_after }) => {
                self.outage(&why, retry_after);
                self.postpone(name);
                return;
            }
        };
        if let Some(ends) = self.leases.renewed(name, asked, time) {
            self.serving.extend(name, ends);
        }
    }

    fn outage(&mut self, why: &str, retry_after: Option<Duration>) {
        // Several calls that fail together are one failure.
        if self.sweeping.is_none() || !self.pace.is_open() {
            self.pace.failed(Moment::now(), retry_after, dice());
        }
        self.serving.down(why, self.pace.next());
        for wish in self.wishes.take_queue() {
            self.wishes.answer(&wish, Supply::Unavailable);
            self.leases.is_done(&wish.0);
            self.postpone(&wish.0);
        }
    }

    /// Every value is gone from the cache; what is under way must not bring one back.
    fn seal(&mut self) {
        self.sealed = true;
        self.drop_calls();
        self.leases.forget();
        self.wishes.forget_absent();
        self.upstream.forget();
        self.serving.forget();
    }

    fn unseal(&mut self) {
        self.sealed = false;
        let now = Moment::now();
        self.serving.restore();
        self.pace = begin(&self.serving, now);
    }

    fn stop(&mut self) {
        self.drop_calls();
        // A copy that was refused is not written over with nothing.
        if !self.sealed && self.serving.is_loaded() {
            self.serving.save();
        }
    }

    fn drop_calls(&mut self) {
        self.calls = JoinSet::new();
        (self.sweeping, self.fetching) = (None, 0);
        while self.portions.try_recv().is_ok() {}
        self.wishes.drop_all();
    }
}
