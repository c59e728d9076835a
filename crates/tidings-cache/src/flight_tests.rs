use tidings_proto::hash::CacheId;

use super::*;
use crate::key::Encoded;

const NOW: Tick = Tick(1_000);

fn key(name: &str) -> Encoded {
    Encoded::new(CacheId(1), name).unwrap()
}

fn any_load(epoch: u32) -> Joinable {
    Joinable { epoch, after: Tick::NEVER }
}

#[test]
fn a_load_is_joined_while_its_epoch_is_current_and_it_is_young_enough() {
    let (mut table, key) = (FlightTable::default(), key("k"));
    let key = key.borrowed();
    assert_eq!(table.join(key, any_load(1)), None);
    table.begin_load(key, 1, NOW, "first");
    assert_eq!(table.join(key, any_load(1)), Some("first"));
    assert_eq!(table.join(key, any_load(2)), None);
    assert_eq!(table.join(key, Joinable { epoch: 1, after: NOW }), None);
    assert_eq!(table.join(key, Joinable { epoch: 1, after: Tick(NOW.0 - 1) }), Some("first"));
}

#[test]
fn a_flight_may_store_once_unless_its_key_or_slot_was_touched() {
    let (mut table, (k, m)) = (FlightTable::default(), (key("k"), key("m")));
    let (k, m) = (k.borrowed(), m.borrowed());
    let load = table.begin_load(k, 1, NOW, ());
    let write = table.begin_guard(k, 1, NOW, Purpose::Write);
    let other = table.begin_load(m, 1, NOW, ());
    assert!(!table.finish(m, load, 1, NOW), "a flight of another key");
    assert!(table.finish(k, load, 1, NOW));
    assert!(!table.finish(k, load, 1, NOW), "a second time");
    assert!(!table.finish(k, write, 2, NOW), "its slot was fenced");
    table.end(k);
    assert!(table.finish(m, other, 1, NOW));
    assert_eq!(table.len(), 0);
}

#[test]
fn an_invalidation_ends_all_flights_of_its_key_and_no_other() {
    let (mut table, (k, m)) = (FlightTable::default(), (key("k"), key("m")));
    let (k, m) = (k.borrowed(), m.borrowed());
    let purposes = [Purpose::Write, Purpose::Decision, Purpose::Token(Tick::FOREVER)];
    let mut flights = vec![table.begin_load(k, 1, NOW, ())];
    flights.extend(purposes.map(|purpose| table.begin_guard(k, 1, NOW, purpose)));
    let other = table.begin_guard(m, 1, NOW, Purpose::Token(Tick::FOREVER));
    table.end(k);
    assert!(flights.into_iter().all(|flight| !table.finish(k, flight, 1, NOW)));
    assert!(table.finish(m, other, 1, NOW));
    assert_eq!((table.len(), table.tokens), (0, 0));
}

#[test]
fn a_load_that_replaces_one_ends_it() {
    let (mut table, key) = (FlightTable::default(), key("k"));
    let key = key.borrowed();
    let old = table.begin_load(key, 1, NOW, "old");
    let new = table.begin_load(key, 1, NOW, "new");
    assert!(!table.finish(key, old, 1, NOW));
    assert_eq!(table.join(key, any_load(1)), Some("new"), "the end of the old one leaves the new one alone");
    assert!(table.finish(key, new, 1, NOW));
}

#[test]
fn a_fill_ends_decisions_alone() {
    let (mut table, key) = (FlightTable::default(), key("k"));
    let key = key.borrowed();
    let decision = table.begin_guard(key, 1, NOW, Purpose::Decision);
    let write = table.begin_guard(key, 1, NOW, Purpose::Write);
    let load = table.begin_load(key, 1, NOW, ());
    table.end_decisions(key);
    assert!(!table.finish(key, decision, 1, NOW));
    assert!(table.finish(key, write, 1, NOW) && table.finish(key, load, 1, NOW));
    table.begin_guard(key, 1, NOW, Purpose::Decision);
    table.end_decisions(key);
    assert_eq!(table.len(), 0);
}

#[test]
fn a_token_is_good_up_to_its_deadline_and_then_forgotten() {
    let (mut table, (k, m)) = (FlightTable::<()>::default(), (key("k"), key("m")));
    let (k, m) = (k.borrowed(), m.borrowed());
    let deadline = Purpose::Token(Tick(2_000));
    let (used, late) = (table.begin_guard(k, 1, NOW, deadline), table.begin_guard(m, 1, NOW, deadline));
    assert!(table.finish(k, used, 1, Tick(2_000)));
    table.expire(Tick(2_000));
    assert_eq!(table.len(), 1);
    assert!(!table.finish(m, late, 1, Tick(2_001)));
    table.begin_guard(m, 1, NOW, deadline);
    table.expire(Tick(2_001));
    assert_eq!((table.len(), table.tokens), (0, 0));
}

#[test]
fn beyond_the_bound_the_oldest_token_goes_and_nothing_else() {
    let mut table = FlightTable::<()>::default();
    let names: Vec<_> = (0..=TOKENS_PER_SHARD_MAX).map(|n| key(&n.to_string())).collect();
    let first = names[0].borrowed();
    let write = table.begin_guard(first, 1, NOW, Purpose::Write);
    let tokens: Vec<_> = names
        .iter()
        .map(|name| table.begin_guard(name.borrowed(), 1, NOW, Purpose::Token(Tick::FOREVER)))
        .collect();
    assert_eq!(table.tokens, TOKENS_PER_SHARD_MAX);
    let good: Vec<_> =
        names.iter().zip(tokens).map(|(name, token)| table.finish(name.borrowed(), token, 1, NOW)).collect();
    assert!(!good[0] && good[1..].iter().all(|good| *good));
    assert!(table.finish(first, write, 1, NOW));
    assert_eq!((table.len(), table.tokens), (0, 0));
}
