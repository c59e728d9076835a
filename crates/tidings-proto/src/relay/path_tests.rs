use super::*;

fn nodes(names: &[&str]) -> Vec<NodeId> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn path() -> Path {
    Path::new(nodes(&["a", "b", "origin"]), 2, BEGIN)
}

const BEGIN: Tick = Tick(1);

fn after(seconds: f64) -> Tick {
    BEGIN.after(Duration::from_secs_f64(seconds))
}

#[test]
fn a_source_that_confirms_nothing_new_is_left_and_the_origin_is_the_last() {
    let mut path = path();
    assert!(!path.passed(after(1.4)), "two hops away, the nearer ones look first");
    path.confirmed(Tick(5), after(1.4));
    assert!(!path.passed(after(2.8)));
    path.confirmed(Tick(5), after(2.8));
    assert!(path.passed(after(2.9)), "what is known already is nothing new");
    assert_eq!(path.source().as_str(), "b");
    assert!(!path.passed(after(4.3)) && path.passed(after(4.4)));
    assert_eq!(path.source().as_str(), "origin");
}

#[test]
fn a_source_whose_link_ends_is_left_at_once() {
    let mut path = path();
    assert!(path.broken(after(0.1)) && path.broken(after(0.1)));
    assert_eq!(path.source().as_str(), "origin");
    let mut only = Path::new(nodes(&["origin"]), 1, BEGIN);
    assert!(!only.broken(after(0.1)), "there is nobody else");
}

#[test]
fn a_relay_resets_a_lane_only_where_nobody_holds_what_is_missing() {
    let mut path = path();
    assert_eq!(path.lacking(7, after(0.1)), Lacking::AskElsewhere);
    assert_eq!(path.lacking(7, after(0.2)), Lacking::AskElsewhere);
    assert_eq!(path.source().as_str(), "origin");
    path.broken(after(0.3));
    assert_eq!(path.source().as_str(), "a");
    assert_eq!(path.lacking(7, after(0.4)), Lacking::Reset, "the origin cannot be asked either");
    path.confirmed(Tick(9), after(0.5));
    assert_eq!(path.lacking(8, after(0.6)), Lacking::AskElsewhere, "that was another time");
}

#[test]
fn a_newcomer_to_a_log_is_reset_by_the_first_relay() {
    let mut path = path();
    assert_eq!(path.lacking(FIRST, after(0.1)), Lacking::Reset);
    assert_eq!(path.source().as_str(), "a");
}

#[test]
fn a_changed_view_does_not_lead_back_to_who_was_left() {
    let mut path = path();
    path.broken(after(0.1));
    assert!(!path.rerouted(nodes(&["a", "b", "c", "origin"]), 2, after(0.2)), "b stays");
    assert!(path.rerouted(nodes(&["a", "d", "origin"]), 2, after(0.3)));
    assert_eq!(path.source().as_str(), "d");
    assert!(path.rerouted(nodes(&["c", "origin"]), 2, after(0.4)), "a has gone");
    assert_eq!(path.source().as_str(), "c");
}

#[test]
fn the_first_source_is_asked_again_once_it_was_left_for_long_enough() {
    let mut path = path();
    assert_eq!(path.missed(after(100.0)), None, "it is asked");
    path.broken(after(100.0));
    path.broken(after(103.0));
    assert_eq!((path.source().as_str(), path.missed(after(104.9))), ("origin", None));
    assert_eq!(path.missed(after(105.0)).unwrap().as_str(), "a", "from when that one was left");
    path.returns(after(106.0));
    assert_eq!((path.source().as_str(), path.missed(after(200.0))), ("a", None));
    assert!(!path.passed(after(107.4)) && path.passed(after(107.5)), "it has its patience again");
}

#[test]
fn a_first_source_that_fails_again_and_again_is_returned_to_more_and_more_seldom() {
    let mut path = path();
    let (mut now, mut pauses) = (after(0.0), Vec::new());
    for _ in 0..8 {
        path.broken(now);
        let left = now;
        while path.missed(now).is_none() {
            now = now.after(Duration::from_secs(1));
        }
        pauses.push(now.since(left).as_secs());
        path.returns(now);
        now = now.after(Duration::from_secs(1));
    }
    assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 160, 160]);
    // One that has held for as long as it was not asked has made that good.
    now = now.after(RETURN_AFTER_MAX);
    path.broken(now);
    assert_eq!(path.missed(now.after(RETURN_AFTER)).unwrap().as_str(), "a");
}
