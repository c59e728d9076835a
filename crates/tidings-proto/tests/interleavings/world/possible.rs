//! What can happen next, and what it takes off the scope.

use super::{Action, Due, JOINED, WIRE_MAX, World, lane};
use crate::search;

impl World {
    fn actions_of(&self, origin: usize, out: &mut Vec<Action>) {
        let (home, seen, left) = (&self.homes[origin], &self.seen[origin], &self.left);
        let mut add = |holds: bool, action| out.extend(holds.then_some(action));
        add(!home.beats.is_empty(), Action::Beat(origin));
        add(!home.beats.is_empty() && left.losses > 0, Action::LoseBeat(origin));
        add(home.alive && seen.met && left.probes > 0, Action::Probe(origin));
        add(home.alive && home.probe.is_some() && home.beats.len() < WIRE_MAX, Action::Answer(origin));
        add(home.alive && left.crashes > 0, Action::Crash(origin));
        add(!home.alive && left.restarts > 0, Action::Restart(origin));
        let may_meet = !self.scope.joins || origin == 0 || self.seen[0].version > 1;
        add(home.alive && !seen.met && may_meet, Action::Meet(origin));
        for key in 0..self.scope.keys {
            let head = home.log.head(lane(key));
            let news = home.cursors[key].is_some_and(|cursor| cursor.next <= head);
            let wire = &home.wire[key];
            let alive = home.alive;
            add(alive && left.writes > 0 && home.open[key].is_none(), Action::Commit(origin, key));
            add(alive && home.open[key].is_some(), Action::Append(origin, key));
            add(alive && home.open[key].is_some() && left.clears > 0, Action::Clear(origin, key));
            add(home.entering[key].is_some(), Action::Enter(origin, key));
            // A lane that is not followed will be; one that is may be followed anew, by another connection.
            let may_follow = seen.attempts[key].is_none() || left.follows > 0;
            add(alive && seen.met && may_follow, Action::Follow(origin, key));
            add(alive && news && wire.len() < WIRE_MAX, Action::Send(origin, key));
            let waits = matches!(seen.fences[key], Some(Due::Must(_)));
            add(!wire.is_empty() && !waits, Action::Take(origin, key));
            add(!wire.is_empty() && left.losses > 0, Action::Lose(origin, key));
            add(seen.fences[key].is_some(), Action::Fence(origin, key));
            add(left.receipts > 0 && self.may_ask(origin, key), Action::Ask(origin, key));
            add(self.may_look(origin, key), Action::Look(origin, key));
        }
        add(self.may_ack(origin), Action::Ack(origin));
    }

    /// Takes what an action costs off what is left.
    fn pay(&mut self, action: Action) {
        let (left, seen) = (&mut self.left, &self.seen);
        let cost = match action {
            Action::Commit(..) => &mut left.writes,
            Action::Probe(_) => &mut left.probes,
            Action::Lose(..) | Action::LoseBeat(_) => &mut left.losses,
            Action::Follow(origin, key) if seen[origin].attempts[key].is_some() => &mut left.follows,
            Action::Clear(..) => &mut left.clears,
            Action::Load(_) => &mut left.loads,
            Action::Call(_) => &mut left.calls,
            Action::Ask(..) => &mut left.receipts,
            Action::BeginRead(_) => &mut left.reads,
            Action::Crash(_) => &mut left.crashes,
            Action::Restart(_) => &mut left.restarts,
            Action::Renew => &mut left.renewals,
            Action::Pass => &mut left.passes,
            _ => return,
        };
        *cost -= 1;
    }
}

impl World {
    /// What can happen next.
    pub(super) fn possible(&self) -> Vec<Action> {
        let mut out = Vec::new();
        (0..self.scope.origins).for_each(|origin| self.actions_of(origin, &mut out));
        let mut add = |holds: bool, action| out.extend(holds.then_some(action));
        for key in 0..self.scope.keys {
            let flight = self.flights[key].is_some();
            add(!flight && self.left.loads > 0, Action::Load(key));
            add(flight, Action::Store(key));
            add(self.left.calls > 0 && self.is_joinable(key), Action::Call(key));
            let reading = self.reading[key].is_some();
            add(!reading && self.left.reads > 0, Action::BeginRead(key));
            add(reading, Action::EndRead(key));
        }
        add(self.scope.joins && self.homes[0].version == 1, Action::Join);
        let over = self.homes.get(1).is_some_and(|home| !home.alive);
        add(self.scope.ends && over && self.homes[0].version == JOINED, Action::End);
        add(self.scope.joins && self.seen[0].version < self.homes[0].version, Action::Learn);
        add(self.left.passes > 0, Action::Pass);
        add(self.left.renewals > 0, Action::Renew);
        out
    }

    /// The world after one of these.
    pub(super) fn after(&self, action: Action) -> Self {
        let mut after = self.clone();
        after.pay(action);
        after.act_on(action);
        if self.reduced {
            after.tell_apart(action);
            after.settle();
        }
        after
    }
}

impl search::World for World {
    type Action = Action;

    fn next(&self) -> Vec<(Vec<Action>, Self)> {
        match self.reduced {
            true if !self.is_anything_at_stake() => Vec::new(),
            true => self.next_in_order(),
            false => self.possible().into_iter().map(|action| (vec![action], self.after(action))).collect(),
        }
    }

    fn step(&self, action: Action) -> Option<Self> {
        self.possible().contains(&action).then(|| self.after(action))
    }

    fn broken(&self) -> Option<String> {
        let hits = (0..self.scope.keys).filter_map(|key| Some((key, self.entries[key]?)));
        let mut hits = hits.filter(|(key, entry)| self.is_hit(*key, *entry, self.published.fresh_until));
        self.broken
            .clone()
            .or_else(|| hits.find_map(|(key, entry)| self.overdue(key, entry, self.least[key])))
    }
}
