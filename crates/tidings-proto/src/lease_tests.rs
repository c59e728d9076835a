use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const TIME: u64 = 10;

fn key(n: u8) -> LeaseKey {
    LeaseKey { cache: CacheId(u32::from(n % 2)), bytes: Bytes::copy_from_slice(&[n]) }
}

fn leases() -> Leases<u32> {
    Leases::default()
}

fn terms(until: Tick) -> Terms {
    Terms { until, time: nanos(TIME) }
}

#[derive(Clone, Debug)]
enum Step {
    /// For so long it waits.
    Ask(u8, u64),
    /// Of the lease that is so many grants old.
    Bring(u8, u64),
    Fail(u8, u64),
    Revoke(u8),
    Expire,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0_u8..4;
    prop_oneof![
        6 => (key.clone(), 1_u64..30).prop_map(|(key, patience)| Step::Ask(key, patience)),
        2 => (key.clone(), 0_u64..3).prop_map(|(key, back)| Step::Bring(key, back)),
        1 => (key.clone(), 0_u64..3).prop_map(|(key, back)| Step::Fail(key, back)),
        1 => key.prop_map(Step::Revoke),
        1 => Just(Step::Expire),
        2 => (1_u64..8).prop_map(Step::Pass),
    ]
}

/// Holder, when it was granted, and who waits since when and until when.
type Held = (u64, u64, Vec<(u32, u64, u64)>);

/// The same by lists that are looked through.
#[derive(Default)]
struct Reference {
    keys: BTreeMap<u8, Held>,
    granted: u64,
}

type Told = Vec<Answer<u32, u64>>;

impl Reference {
    fn next(&mut self, key: u8, now: u64, told: &mut Told) {
        let Some((_, _, waiting)) = self.keys.remove(&key) else { return };
        let mut there = waiting.into_iter().skip_while(|(.., until)| *until <= now);
        if let Some((to, ..)) = there.next() {
            self.grant(key, to, there.collect(), now, told);
        }
    }

    fn grant(&mut self, key: u8, to: u32, waiting: Vec<(u32, u64, u64)>, now: u64, told: &mut Told) {
        self.granted += 1;
        self.keys.insert(key, (self.granted, now, waiting));
        let said = Said::Load(LeaseId(self.granted));
        told.push(Answer { to, said });
    }

    fn due(&mut self, key: u8, now: u64, told: &mut Told) {
        if self.keys.get(&key).is_some_and(|(_, since, _)| since + TIME <= now) {
            self.next(key, now, told);
        }
    }

    fn holds(&self, key: u8, id: u64) -> bool {
        self.keys.get(&key).is_some_and(|(holder, _, _)| *holder == id)
    }

    fn step(&mut self, step: &Step, asker: u32, id: u64, now: u64) -> Told {
        let mut told = Vec::new();
        match *step {
            Step::Ask(key, patience) => {
                self.due(key, now, &mut told);
                match self.keys.get_mut(&key) {
                    Some((_, _, waiting)) => waiting.push((asker, now, now + patience)),
                    None => self.grant(key, asker, Vec::new(), now, &mut told),
                }
            }
            Step::Bring(key, _) => {
                self.due(key, now, &mut told);
                if self.holds(key, id) {
                    let (_, since, waiting) = self.keys.remove(&key).unwrap();
                    let there = waiting.into_iter().filter(|(.., until)| *until > now);
                    told.extend(there.map(|(to, asked, _)| {
                        let ages = Ages { lease: nanos(now - since), question: nanos(now - asked) };
                        Answer { to, said: Said::Brought(id, ages) }
                    }));
                }
            }
            Step::Fail(key, _) => {
                self.due(key, now, &mut told);
                if self.holds(key, id) {
                    self.next(key, now, &mut told);
                }
            }
            Step::Revoke(key) => self.next(key, now, &mut told),
            Step::Expire => {
                self.keys.values_mut().for_each(|(_, _, waiting)| waiting.retain(|(.., until)| *until > now));
                let keys: Vec<_> = self.keys.keys().copied().collect();
                keys.into_iter().for_each(|key| self.due(key, now, &mut told));
            }
            Step::Pass(_) => {}
        }
        told
    }
}

/// What was said, by whom it was said to; of several leases granted in one step, the order does not matter.
fn sorted(mut told: Told) -> Vec<(u32, Option<(u64, Ages)>)> {
    told.sort_by_key(|answer| answer.to);
    let brought = |said| match said {
        Said::Brought(result, ages) => Some((result, ages)),
        Said::Load(..) => None,
        Said::Refused => panic!("there is room"),
    };
    told.into_iter().map(|answer| (answer.to, brought(answer.said))).collect()
}

fn run(leases: &mut Leases<u32>, step: &Step, asker: u32, id: u64, now: Tick) -> Told {
    match *step {
        Step::Ask(k, patience) => leases.ask(&key(k), asker, terms(now.after(nanos(patience))), now),
        Step::Bring(k, _) => leases.bring(&key(k), LeaseId(id), &id, now),
        Step::Fail(k, _) => leases.fail(&key(k), LeaseId(id), now),
        Step::Revoke(k) => leases.revoke(&key(k), now).into_iter().collect(),
        Step::Expire => leases.expire(now),
        Step::Pass(_) => Vec::new(),
    }
}

proptest! {
    #[test]
    fn it_says_what_a_naive_one_says(steps in prop::collection::vec(step(), 0..80)) {
        let (mut leases, mut reference) = (leases(), Reference::default());
        let (mut now, mut told) = (0, BTreeSet::new());
        // The ids that each of both has given for a key need not be the same: keys of one step come in any order.
        for (asker, step) in (0..).zip(&steps) {
            if let Step::Pass(time) = step {
                now += time;
            }
            let (real, model) = match *step {
                Step::Bring(k, back) | Step::Fail(k, back) => {
                    let real = leases.leases.get(&key(k)).map_or(0, |lease| lease.id.0);
                    let model = reference.keys.get(&k).map_or(0, |(holder, _, _)| *holder);
                    // One that is not the holder's is nobody's any more.
                    if back == 0 { (real, model) } else { (u64::MAX - back, u64::MAX - back) }
                }
                _ => (0, 0),
            };
            let renamed = |mut told: Told| {
                for answer in &mut told {
                    if let Said::Brought(result, _) = &mut answer.said {
                        *result = 1;
                    }
                }
                told
            };
            let said = renamed(run(&mut leases, step, asker, real, Tick(now)));
            prop_assert!(said.iter().all(|answer| told.insert(answer.to)), "{said:?} is said twice");
            let expected = renamed(reference.step(step, asker, model, now));
            prop_assert_eq!(sorted(said), sorted(expected), "{:?} at {}", step, now);
            let waiting: usize = reference.keys.values().map(|(_, _, waiting)| waiting.len()).sum();
            prop_assert_eq!(leases.len(), (reference.keys.len(), waiting));
            prop_assert_eq!(leases.bytes, reference.keys.len());
            prop_assert_eq!(leases.counts().granted, reference.granted);
        }
    }
}

fn said(answers: &Told) -> Vec<&Said<u64>> {
    answers.iter().map(|answer| &answer.said).collect()
}

#[test]
fn a_dead_holder_costs_one_lease_time() {
    let mut leases = leases();
    let forever = terms(Tick::FOREVER);
    let _: Told = leases.ask(&key(1), 1, forever, Tick(0));
    let _: Told = leases.ask(&key(1), 2, forever, Tick(1));
    let _: Told = leases.ask(&key(1), 3, forever, Tick(2));
    assert_eq!(leases.expire::<u64>(Tick(TIME - 1)), []);
    let granted: Told = leases.expire(Tick(TIME));
    assert!(matches!(granted[..], [Answer { to: 2, said: Said::Load(LeaseId(2)) }]), "{granted:?}");
    // What the first one brings after all is nobody's.
    assert_eq!(leases.bring(&key(1), LeaseId(1), &7, Tick(TIME + 1)), []);
    let shared = leases.bring(&key(1), LeaseId(2), &8, Tick(TIME + 4));
    let ages = Ages { lease: nanos(4), question: nanos(TIME + 2) };
    assert_eq!(shared, [Answer { to: 3, said: Said::Brought(8, ages) }]);
    let counts = leases.counts();
    assert_eq!((counts.granted, counts.expired, counts.late, counts.shared), (2, 1, 1, 1));
    assert_eq!(leases.len(), (0, 0));
}

#[test]
fn what_a_revoked_load_brings_is_handed_to_nobody() {
    let mut leases = leases();
    let _: Told = leases.ask(&key(1), 1, terms(Tick::FOREVER), Tick(0));
    let _: Told = leases.ask(&key(1), 2, terms(Tick::FOREVER), Tick(0));
    let granted: Option<Answer<u32, u64>> = leases.revoke(&key(1), Tick(1));
    assert!(matches!(granted, Some(Answer { to: 2, said: Said::Load(LeaseId(2)) })), "{granted:?}");
    assert_eq!(leases.bring(&key(1), LeaseId(1), &7, Tick(2)), []);
    assert_eq!((leases.counts().revoked, leases.counts().late), (1, 1));
}

#[test]
fn everything_is_bounded() {
    let mut of_one = leases();
    for asker in 0..=WAITERS_PER_LEASE_MAX as u32 {
        let _: Told = of_one.ask(&key(1), asker, terms(Tick::FOREVER), Tick(0));
    }
    let refused: Told = of_one.ask(&key(1), u32::MAX, terms(Tick::FOREVER), Tick(0));
    assert_eq!(said(&refused), [&Said::Refused]);
    assert_eq!(of_one.len(), (1, WAITERS_PER_LEASE_MAX));

    let mut of_all = leases();
    for n in 0..2 * WAITERS_MAX as u32 {
        let k = LeaseKey { cache: CacheId(n % 32), bytes: Bytes::new() };
        let _: Told = of_all.ask(&k, n, terms(Tick::FOREVER), Tick(0));
    }
    assert_eq!(of_all.len(), (32, WAITERS_MAX));
    assert_eq!(of_all.counts().refused as usize, WAITERS_MAX - 32);

    let long = |n: u32| LeaseKey { cache: CacheId(n), bytes: Bytes::from(vec![0; KEY_BYTES_MAX]) };
    let mut of_long = leases();
    for n in 0..LEASES_MAX as u32 {
        let _: Told = of_long.ask(&long(n), n, terms(Tick::FOREVER), Tick(0));
    }
    assert_eq!(of_long.len().0, LEASED_BYTES_MAX / KEY_BYTES_MAX);
    let beyond = LeaseKey { cache: CacheId(1), bytes: Bytes::from(vec![0; KEY_BYTES_MAX + 1]) };
    assert_eq!(said(&leases().ask(&beyond, 1, terms(Tick::FOREVER), Tick(0))), [&Said::Refused]);

    let mut of_short = leases();
    for n in 0..2 * LEASES_MAX as u32 {
        let k = LeaseKey { cache: CacheId(n), bytes: Bytes::new() };
        let _: Told = of_short.ask(&k, n, terms(Tick::FOREVER), Tick(0));
    }
    assert_eq!(of_short.len().0, LEASES_MAX);
}

fn nanos(nanos: u64) -> Duration {
    Duration::from_nanos(nanos)
}

proptest! {
    #[test]
    fn a_result_is_never_dated_later_than_its_load(
        // Of the asker's time line: when the lease was given, when the question was sent, and what everything took.
        granted in 10_000_000_u64..20_000_000,
        asked in 10_000_000_u64..20_000_000,
        (to_home, waits, back) in (0_u64..500_000, 0_u64..5_000_000, 0_u64..500_000),
        // By how many millionths the home's clock is faster.
        rate in -1_000_i64..=1_000,
    ) {
        let came = asked + to_home;
        let said = granted.max(came) + waits;
        let at_home = |time: u64| nanos(time.saturating_add_signed(time as i64 * rate / 1_000_000));
        let ages = Ages { lease: at_home(said - granted), question: at_home(said - came) };
        let began = ages.began(Tick(asked), Tick(said + back));
        let margin = 4 * (said - granted.min(came)) / 1_000 + 4;
        prop_assert!(began <= Tick(granted), "{began:?}");
        prop_assert!(began >= Tick(granted - to_home - margin), "{began:?}");
        // A home that lies makes it no later than it can be.
        let lies = Ages { question: Duration::MAX, ..ages };
        prop_assert!(lies.began(Tick(asked), Tick(said + back)) <= Tick(said + back));
    }
}
