//! What goes wrong: a few things at a time, for seconds, with sound seconds between.

use crate::node::Leaving;
use crate::wire::Path;
use crate::world::{Event, World};
use crate::{HORIZON_US, HOT, KEYS, Micros};

/// How long faults last. With the pauses between, nobody who lives is unheard for longer than its grace.
const FAULTS_US: (Micros, Micros) = (500_000, 4_000_000);
const SOUND_US: (Micros, Micros) = (1_500_000, 4_500_000);

impl World {
    pub(crate) fn begin_faults(&mut self, left: u64) {
        let lasts = self.chance.between(FAULTS_US.0, FAULTS_US.1);
        for _ in 0..self.chance.between(1, 3) {
            let begins = self.chance.below(lasts);
            self.schedule(begins, (0, None), Event::BeginFault);
        }
        self.schedule(lasts, (0, None), Event::EndFaults(left - 1));
    }

    pub(crate) fn end_faults(&mut self, left: u64) {
        self.note(|| "the network is sound".to_owned());
        for (place, from, to, frame) in self.network.heal() {
            self.send_frame((place, from), to, frame);
        }
        for place in 0..self.places.len() {
            if self.places[place].paused {
                self.schedule(0, (place, None), Event::Resume);
            }
        }
        let sound = self.chance.between(SOUND_US.0, SOUND_US.1);
        let next = if left == 0 { Event::Settle } else { Event::BeginFaults(left) };
        self.schedule(sound, (0, None), next);
    }

    pub(crate) fn begin_fault(&mut self) {
        let (one, other) = (self.chance.index(self.places.len()), self.chance.index(self.places.len()));
        match self.chance.below(10) {
            0 => self.cut(&[one], &[other], true),
            1 => self.cut(&[one], &[other], false),
            2 => {
                let others: Vec<usize> = (0..self.places.len()).filter(|place| *place != one).collect();
                self.cut(&[one], &others, true);
            }
            3 => {
                let (left, right): (Vec<_>, Vec<_>) =
                    (0..self.places.len()).partition(|_| self.chance.permille(500));
                self.cut(&left, &right, true);
            }
            4 | 5 => {
                self.network.lost = [20, 100, 300][self.chance.index(3)];
                self.network.doubled = self.chance.below(200);
                self.network.late = self.chance.below(300);
                self.network.late_us = [20_000, 200_000, 2_000_000][self.chance.index(3)];
                let network = (self.network.lost, self.network.doubled, self.network.late);
                self.note(|| format!("of a thousand frames so many are lost, doubled, late: {network:?}"));
            }
            6 if !self.places[one].paused => {
                self.note(|| format!("n{one} stands still"));
                self.places[one].paused = true;
                self.summary.pauses += 1;
                let lasts = self.chance.between(300_000, FAULTS_US.1);
                self.schedule(lasts, (one, None), Event::Resume);
            }
            7 | 8 => {
                self.summary.crashes += u64::from(self.places[one].node.is_some());
                self.end_life(one);
            }
            _ => self.leave(one),
        }
        if self.chance.permille(500) {
            self.burst(other);
        }
    }

    /// Of what is held, heartbeats come through: they travel on a stream of their own.
    pub(crate) fn release(&mut self) {
        for (place, from, to, frame) in self.network.release() {
            self.carry((place, from), to, frame);
        }
    }

    fn cut(&mut self, some: &[usize], others: &[usize], both: bool) {
        let path = if self.chance.permille(300) { Path::Held } else { Path::Cut };
        self.note(|| format!("{path:?} from {some:?} to {others:?}, back as well: {both}"));
        if path == Path::Held {
            let passes = self.chance.below(FAULTS_US.1);
            self.schedule(passes, (0, None), Event::Release);
        }
        for (from, to) in some.iter().flat_map(|from| others.iter().map(move |to| (*from, *to))) {
            self.network.set(from, to, path);
            if both {
                self.network.set(to, from, path);
            }
        }
    }

    fn leave(&mut self, place: usize) {
        let deadline = self.now() + 3_000_000;
        if let Some(node) = self.places[place].node.as_mut().filter(|node| node.leaving.is_none()) {
            self.summary.leaves += 1;
            // The domain would refuse a removal whose write is under way.
            node.leaving = Some(Leaving { deadline, sealed: None, said: None });
            self.note(|| format!("n{place} leaves"));
        }
    }

    /// So many changes at once that logs forget.
    fn burst(&mut self, place: usize) {
        if self.places[place].paused {
            return;
        }
        let node = self.places[place].node.as_mut();
        let Some(node) = node.filter(|node| node.leaving.is_none()) else { return };
        for _ in 0..self.chance.between(10, 120) {
            let key = self.chance.between(u64::from(HOT), u64::from(KEYS) - 1) as u8;
            self.history.commit(key);
            node.remove(key, &mut self.history);
        }
        node.feed_all();
        self.note(|| format!("n{place} changes hot keys"));
        self.send(place);
    }

    /// A process ends without a word, whatever it was about. What it had asked the system of record for may still happen.
    pub(crate) fn end_life(&mut self, place: usize) {
        let Some(node) = self.places[place].node.take() else { return };
        self.summary.tally.add(&node.tally);
        self.note(|| format!("{} ends", node.me));
        let (now, counts) = (self.now(), node.counts());
        for operation in node.operations.iter().filter(|operation| operation.writes()) {
            match operation.version() {
                Some(version) if counts => self.history.announce(operation.key(), version, now),
                Some(_) => {}
                None if self.chance.permille(600) => {
                    let lands = self.chance.below(HORIZON_US);
                    self.schedule(lands, (place, None), Event::Commit(operation.key(), counts));
                }
                None => {}
            }
        }
        let longest = if self.chance.permille(500) { 100_000 } else { 6_000_000 };
        let returns = self.chance.between(10_000, longest);
        if self.chance.permille(900) {
            self.schedule(returns, (place, None), Event::Restart);
        }
    }
}
