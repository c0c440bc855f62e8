//! Who waits for a secret that is not held, what is known to be absent, and who pays for looking.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use keyhatch_protocol::Name;
use tokio::sync::oneshot;

use super::clock::Moment;
use super::pace::Budget;
use super::{Supply, Wanted};

/// How long an absent name is known to be absent.
const ABSENT: Duration = Duration::from_secs(5);
/// How many users' budgets are remembered.
const BUDGETS: usize = 10_000;
/// How many absent names are remembered.
const ABSENT_NAMES: usize = 10_000;

/// What someone waits for.
pub type Wish = (Name, Wanted);

/// All that is wished for of one source.
#[derive(Default)]
pub struct Wishes {
    /// Of each user that asks.
    budgets: HashMap<u32, Budget>,
    /// Who paid for what is being fetched; given back where it is there.
    paid: HashMap<Wish, u32>,
    absent: HashMap<Wish, Moment>,
    waiting: HashMap<Wish, Vec<oneshot::Sender<Supply>>>,
    queue: VecDeque<Wish>,
}

impl Wishes {
    /// Whether someone waits for it already.
    pub fn is_awaited(&self, wish: &Wish) -> bool {
        self.waiting.contains_key(wish)
    }

    /// One call, however many ask.
    pub fn want(&mut self, wish: Wish, reply: Option<oneshot::Sender<Supply>>) {
        if !self.is_awaited(&wish) {
            self.queue.push_back(wish.clone());
        }
        self.waiting.entry(wish).or_default().extend(reply);
    }

    /// The next one to be asked for.
    pub fn next(&mut self) -> Option<Wish> {
        self.queue.pop_front()
    }

    /// Those that were not asked for yet.
    pub fn take_queue(&mut self) -> VecDeque<Wish> {
        std::mem::take(&mut self.queue)
    }

    /// Tells all that wait what came of it.
    pub fn answer(&mut self, wish: &Wish, supply: Supply) {
        self.settle(wish, supply);
        for reply in self.waiting.remove(wish).unwrap_or_default() {
            let _ = reply.send(supply);
        }
    }

    /// Nothing is asked for any more.
    pub fn drop_all(&mut self) {
        self.queue.clear();
        self.paid.clear();
        for wish in self.waiting.keys().cloned().collect::<Vec<_>>() {
            self.answer(&wish, Supply::Unavailable);
        }
    }

    /// Whether `by` may have another name looked up. One user's budget is no other's.
    pub fn pay(&mut self, wish: &Wish, by: u32, now: Moment) -> bool {
        if self.budgets.len() >= BUDGETS {
            self.budgets.clear();
        }
        let budget = self.budgets.entry(by).or_insert_with(|| Budget::new(now));
        let may = budget.allows(now);
        if may {
            budget.spend();
            self.paid.insert(wish.clone(), by);
        }
        may
    }

    /// Only names that are not there cost something.
    fn settle(&mut self, wish: &Wish, supply: Supply) {
        if let Some(by) = self.paid.remove(wish)
            && supply != Supply::Absent
            && let Some(budget) = self.budgets.get_mut(&by)
        {
            budget.give_back();
        }
    }

    /// Whether it is known to be absent.
    pub fn is_absent(&self, wish: &Wish, now: Moment) -> bool {
        self.absent.get(wish).is_some_and(|until| *until > now)
    }

    /// It is absent, and need not be asked for again at once.
    pub fn remember_absent(&mut self, wish: Wish, now: Moment) {
        if self.absent.len() >= ABSENT_NAMES {
            self.absent.retain(|_, until| *until > now);
        }
        if self.absent.len() < ABSENT_NAMES {
            self.absent.insert(wish, now + ABSENT);
        }
    }

    /// It is there now.
    pub fn is_there(&mut self, name: &Name) {
        self.absent.remove(&(name.clone(), Wanted::Current));
    }

    /// What was absent may be there.
    pub fn forget_absent(&mut self) {
        self.absent.clear();
    }
}
