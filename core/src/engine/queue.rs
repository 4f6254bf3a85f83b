//! The requests of one worker process that wait for a place below `max_lookups`, fair by client.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, 1996): each client has a queue of its own. The first in it has a start
//! tag: the virtual time when it came, but not less than the finish tag of the client's lookup before, which is that one's
//! start tag and [`COST`]. The lowest start tag is next. So a client with a thousand tokens gets as many places as a client
//! with two, and who asks for the first time is next. Tags are given to the first of a client only, so requests that leave
//! before their turn cost nothing. The virtual time and the tags of other processes are in [`crate::shm::places`].
//!
//! Clients whose tag is not above the virtual time had no more than their share, and are served in the order in which they
//! came. But when more come than the homeserver can answer, all who came first are about to leave, and lookups for them help
//! nobody in time: then it is the last who is served next, of those clients and of each client's requests. ("Adaptive LIFO",
//! Maurer, "Fail at Scale", ACM Queue 13(8), 2015.)

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, TryReserveError, VecDeque};

use super::client::Client;
use crate::key::Key;
use crate::shm::places::COST;

/// What one client waits for.
#[derive(Default)]
struct Flow {
    keys: VecDeque<Key>,
    /// Of these, how many may be of requests that have left.
    left: usize,
    /// Of the first of them.
    start: u64,
    /// Of the lookup before.
    finish: u64,
}

/// The queue.
#[derive(Default)]
pub(super) struct Queue {
    flows: HashMap<Client, Flow>,
    /// The clients with something in their queue, as they came, whose start tag is not above the virtual time.
    ready: VecDeque<Client>,
    /// The others, the lowest start tag first.
    ahead: BinaryHeap<Reverse<(u64, Client)>>,
    /// How many keys there are.
    len: usize,
    /// The highest `max_lookups` among those that came since it was empty.
    top_limit: u32,
}

/// What is known of a key in the queue.
pub(super) enum Standing {
    /// Nobody waits for it, or not here.
    Gone,
    /// The first who waits for it goes on before an answer would come.
    Late,
    /// It waits.
    Waits,
}

impl Queue {
    /// The highest limit for which something waits.
    pub(super) fn top_limit(&self) -> u32 {
        self.top_limit
    }

    /// Room for one more key of a client.
    ///
    /// # Errors
    ///
    /// There is no memory.
    pub(super) fn try_reserve(&mut self, client: Client, time: u64) -> Result<(), TryReserveError> {
        let busy = self.ready.len() + self.ahead.len();
        if self.flows.len() > 2 * busy + 64 {
            // A client without requests is known as long as its last lookup counts.
            self.flows
                .retain(|_, flow| !flow.keys.is_empty() || flow.finish > time);
        }
        self.flows.try_reserve(1)?;
        self.ready.try_reserve(busy + 1 - self.ready.len())?;
        self.ahead.try_reserve(busy + 1 - self.ahead.len())?;
        if let Some(flow) = self.flows.get_mut(&client) {
            return flow.keys.try_reserve(1);
        }
        let mut flow = Flow::default();
        flow.keys.try_reserve(1)?;
        self.flows.insert(client, flow);
        Ok(())
    }

    /// The start tag of a request of `client` that comes now.
    pub(super) fn tag(&self, client: Client, time: u64) -> u64 {
        self.flows
            .get(&client)
            .map_or(time, |flow| flow.finish.max(time))
    }

    /// Puts a key at the end of its client's queue. There is room if [`Self::try_reserve`] was called for it before.
    pub(super) fn push(&mut self, client: Client, key: Key, limit: u32, time: u64) {
        let flow = self.flows.entry(client).or_default();
        let was_empty = flow.keys.is_empty();
        flow.keys.push_back(key);
        self.top_limit = if self.len == 0 {
            limit
        } else {
            self.top_limit.max(limit)
        };
        self.len += 1;
        if was_empty {
            self.enter(client, time);
        }
    }

    /// Gives the first of a client its tag, and the client its turn.
    fn enter(&mut self, client: Client, time: u64) {
        let Some(flow) = self.flows.get_mut(&client) else {
            return;
        };
        flow.start = flow.finish.max(time);
        if flow.start <= time {
            self.ready.push_back(client);
        } else {
            self.ahead.push(Reverse((flow.start, client)));
        }
    }

    /// Who waited for a key of `client` has left; `is_waiting` tells which keys are still waited for.
    pub(super) fn leave(&mut self, client: Client, is_waiting: impl Fn(&Key) -> bool) {
        let Some(flow) = self.flows.get_mut(&client) else {
            return;
        };
        flow.left += 1;
        // Each time half of them have left: so it costs a few steps for each.
        if flow.left * 2 > flow.keys.len() && flow.keys.len() > 1 {
            let before = flow.keys.len();
            // The first stays, so that a client with a turn has a key.
            let mut first = true;
            flow.keys
                .retain(|key| core::mem::take(&mut first) || is_waiting(key));
            flow.left = 0;
            self.len -= before - flow.keys.len();
        }
    }

    /// Forgets all keys: none of them is waited for any more.
    pub(super) fn clear(&mut self, time: u64) {
        self.ready.clear();
        self.ahead.clear();
        self.len = 0;
        self.flows.retain(|_, flow| {
            flow.keys.clear();
            flow.left = 0;
            flow.finish > time
        });
    }

    /// The lowest start tag, or one of a client that had no more than its share.
    pub(super) fn lowest_tag(&self) -> Option<u64> {
        let client = match (self.ready.front(), self.ahead.peek()) {
            (Some(client), _) => client,
            (None, Some(Reverse((_, client)))) => client,
            (None, None) => return None,
        };
        self.flows.get(client).map(|flow| flow.start)
    }

    /// Takes the next client out, with the key that is its next, its start tag, and whether that is the last of its keys.
    /// It has to come back by [`Self::served`], [`Self::passed`] or [`Self::kept`].
    pub(super) fn next(&mut self, time: u64, standing: impl Fn(&Key) -> Standing) -> Option<Next> {
        while let Some(Reverse((tag, _))) = self.ahead.peek() {
            if *tag > time {
                break;
            }
            if let Some(Reverse((_, client))) = self.ahead.pop() {
                self.ready.push_back(client);
            }
        }
        loop {
            let Some(client) = self.ready.pop_front() else {
                let Reverse((_, client)) = self.ahead.pop()?;
                if let Some((next, _)) = self.key_of(client, &standing) {
                    return Some(next);
                }
                continue;
            };
            match self.key_of(client, &standing) {
                Some((next, false)) => return Some(next),
                Some((next, true)) => {
                    // It would be too late. So the last who came is next, if it is in time.
                    let Some(last) = self.ready.pop_back() else {
                        return Some(next);
                    };
                    self.ready.push_front(client);
                    if let Some((next, _)) = self.key_of(last, &standing) {
                        return Some(next);
                    }
                }
                None => {}
            }
        }
    }

    /// The next key of a client, and whether it is late. `None` if there is none.
    fn key_of(
        &mut self,
        client: Client,
        standing: &impl Fn(&Key) -> Standing,
    ) -> Option<(Next, bool)> {
        let flow = self.flows.get_mut(&client)?;
        let mut from_back = false;
        loop {
            let key = *if from_back {
                flow.keys.back()?
            } else {
                flow.keys.front()?
            };
            let late = match standing(&key) {
                Standing::Gone => {
                    if from_back {
                        flow.keys.pop_back();
                    } else {
                        flow.keys.pop_front();
                    }
                    flow.left = flow.left.saturating_sub(1);
                    self.len -= 1;
                    continue;
                }
                Standing::Late => true,
                Standing::Waits => false,
            };
            if late && !from_back && flow.keys.len() > 1 {
                from_back = true;
                continue;
            }
            let next = Next {
                client,
                key,
                tag: flow.start,
                from_back,
            };
            return Some((next, late));
        }
    }

    /// That key has its lookup.
    pub(super) fn served(&mut self, next: &Next, time: u64) {
        if let Some(flow) = self.flows.get_mut(&next.client) {
            flow.finish = next.tag + COST;
        }
        self.passed(next, time);
    }

    /// That key needs no place any more.
    pub(super) fn passed(&mut self, next: &Next, time: u64) {
        let Some(flow) = self.flows.get_mut(&next.client) else {
            return;
        };
        if next.from_back {
            flow.keys.pop_back();
        } else {
            flow.keys.pop_front();
        }
        self.len -= 1;
        if !flow.keys.is_empty() {
            self.enter(next.client, time);
        }
    }

    /// That key still waits: its client is next, as before.
    pub(super) fn kept(&mut self, next: &Next, time: u64) {
        if next.tag > time {
            self.ahead.push(Reverse((next.tag, next.client)));
        } else {
            self.ready.push_front(next.client);
        }
    }
}

/// Which key is next.
#[derive(Clone, Copy)]
pub(super) struct Next {
    /// Whose turn it is.
    pub client: Client,
    /// What it asks about.
    pub key: Key,
    /// Its start tag.
    pub tag: u64,
    from_back: bool,
}
