use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const RELAY_ABOVE: usize = 50;

/// So many nodes, in zones taken in turn; those of `gone` are not there.
fn view(nodes: usize, zones: usize, gone: &[usize]) -> Vec<(NodeId, String)> {
    let there = (0..nodes).filter(|node| !gone.contains(node));
    there.map(|node| (NodeId::new(&format!("n{node}")).unwrap(), format!("z{}", node % zones))).collect()
}

fn overlay(view: &[(NodeId, String)]) -> Overlay {
    Overlay::of(view.iter().map(|(node, zone)| (node, zone.as_str())), RELAY_ABOVE)
}

fn others(overlay: &Overlay, origin: Place) -> impl Iterator<Item = Place> + use<> {
    overlay.places().filter(move |place| *place != origin)
}

/// Whom each follower asks for an origin's changes.
fn tree(overlay: &Overlay, origin: Place) -> BTreeMap<Place, Place> {
    others(overlay, origin)
        .map(|follower| (follower, *overlay.way(origin, follower, &[]).last().unwrap()))
        .collect()
}

fn largest_fanout(tree: &BTreeMap<Place, Place>) -> usize {
    let mut children = BTreeMap::<Place, usize>::new();
    tree.values().for_each(|upstream| *children.entry(*upstream).or_default() += 1);
    children.into_values().max().unwrap_or(0)
}

#[test]
fn up_to_the_limit_everybody_follows_everybody() {
    let mesh = overlay(&view(RELAY_ABOVE, 3, &[]));
    for origin in mesh.places() {
        assert!(tree(&mesh, origin).values().all(|upstream| *upstream == origin));
    }
    let larger = overlay(&view(RELAY_ABOVE + 1, 3, &[]));
    let relayed = |origin| tree(&larger, origin).values().any(|upstream| *upstream != origin);
    assert!(larger.places().all(relayed), "above it every origin has relays");
}

#[test]
fn a_thousand_nodes_are_three_hops_apart_and_a_zone_is_entered_once() {
    for zones in [1, 3, 4, 10, 100] {
        let overlay = overlay(&view(1_000, zones, &[]));
        for origin in overlay.places().step_by(83) {
            let hops = others(&overlay, origin).map(|follower| overlay.way(origin, follower, &[]).len());
            assert!(hops.max() <= Some(3), "{zones} zones");
            let tree = tree(&overlay, origin);
            assert!(largest_fanout(&tree) <= FANOUT_MAX, "{zones} zones");
            let zone = |place: &Place| overlay.members[place.0 as usize].zone;
            let crossings = tree.iter().filter(|(to, from)| zone(to) != zone(from)).count();
            // Of more zones several share a branch, and the contact there may be of another than the origin.
            assert!(crossings <= if zones <= BRANCHES { zones - 1 } else { zones }, "{zones} zones");
        }
    }
}

#[test]
fn if_all_write_alike_no_node_sends_much_more_than_others() {
    let overlay = overlay(&view(300, 3, &[]));
    let mut sent = vec![0; overlay.len()];
    for origin in overlay.places() {
        tree(&overlay, origin).values().for_each(|upstream| sent[upstream.0 as usize] += 1);
    }
    let (most, mean) = (*sent.iter().max().unwrap(), sent.iter().sum::<usize>() / sent.len());
    assert!(most <= 3 * mean, "the busiest sends {most}, the mean is {mean}");
}

#[test]
fn equal_views_make_equal_overlays_in_every_release() {
    let overlay = overlay(&view(200, 2, &[]));
    let name = |place: &Place| overlay.node(*place).as_str();
    let place = |node: &str| overlay.place(&node.parse().unwrap()).unwrap();
    let way = |from, to| overlay.way(place(from), place(to), &[]).iter().map(name).collect::<Vec<_>>();
    assert_eq!(way("n0", "n1"), GOLDEN_WAYS[0]);
    assert_eq!(way("n7", "n150"), GOLDEN_WAYS[1]);
}

/// Moved: of all pairs of an origin and a follower that are in both views, how many have another upstream.
fn moved(before: &Overlay, after: &Overlay) -> usize {
    let mut moved = 0;
    for origin in after.places() {
        let Some(origin_before) = before.place(after.node(origin)) else { continue };
        for (follower, upstream) in tree(after, origin) {
            let Some(follower_before) = before.place(after.node(follower)) else { continue };
            let way = before.way(origin_before, follower_before, &[]);
            moved += usize::from(before.node(*way.last().unwrap()) != after.node(upstream));
        }
    }
    moved
}

/// There are n edges per origin, so each member has its share of n. What has to move are the edges to the children of
/// the one that has gone, and the subtrees of those that it was the contact for: per division about its share.
#[test]
fn one_that_goes_moves_few_edges() {
    const NODES: usize = 200;
    let all = overlay(&view(NODES, 2, &[]));
    let moves: Vec<usize> =
        (0..NODES).step_by(9).map(|gone| moved(&all, &overlay(&view(NODES, 2, &[gone])))).collect();
    let (most, mean) = (*moves.iter().max().unwrap(), moves.iter().sum::<usize>() / moves.len());
    assert!(mean <= 3 * NODES, "{mean} edges moved on average, {:.1} shares", mean as f64 / NODES as f64);
    assert!(most <= 6 * NODES, "{most} edges moved, {:.1} shares", most as f64 / NODES as f64);
}

#[test]
fn a_zone_that_outgrows_the_limit_is_divided_and_nothing_else_moves() {
    let sizes = [2 * RELAY_ABOVE, 2 * RELAY_ABOVE + 1];
    let [before, after] = sizes.map(|nodes| overlay(&view(nodes, 2, &[])));
    let largest = |overlay: &Overlay| overlay.branches.iter().map(|branches| branches.len()).max();
    assert_eq!(
        [largest(&before), largest(&after)],
        [Some(1), Some(2)],
        "one zone has one more than the limit"
    );
    let moved = moved(&before, &after);
    assert!(
        moved <= (RELAY_ABOVE + 3) * sizes[0],
        "{moved} edges moved, more than those to the zone's nodes"
    );
}

/// Whoever asks a source that is there, knows the origin and is reached itself is reached.
struct Asking<'a> {
    views: [&'a Overlay; 2],
    /// Which view a node has, and its links that are broken.
    has: &'a dyn Fn(&NodeId) -> usize,
    broken: &'a dyn Fn(&NodeId, &NodeId) -> bool,
    sources: BTreeMap<NodeId, Vec<NodeId>>,
    at: BTreeMap<NodeId, usize>,
}

impl<'a> Asking<'a> {
    fn new(
        views: [&'a Overlay; 2],
        origin: &NodeId,
        has: &'a dyn Fn(&NodeId) -> usize,
        broken: &'a dyn Fn(&NodeId, &NodeId) -> bool,
    ) -> Self {
        let mut sources = BTreeMap::new();
        for node in views.iter().flat_map(|view| view.places().map(|place| view.node(place))) {
            let view = views[has(node)];
            if let (Some(from), Some(me)) = (view.place(origin), view.place(node))
                && node != origin
            {
                let named = view.sources(from, me).into_iter().map(|place| view.node(place).clone());
                sources.insert(node.clone(), named.collect());
            }
        }
        let at = sources.keys().map(|node| (node.clone(), 0)).collect();
        Self { views, has, broken, sources, at }
    }

    fn source(&self, node: &NodeId) -> Option<&NodeId> {
        Some(&self.sources.get(node)?[self.at[node]])
    }

    fn hops(&self, node: &NodeId, origin: &NodeId) -> Option<usize> {
        let (mut node, mut hops) = (node, 0);
        while node != origin {
            let source = self.source(node).filter(|source| !(self.broken)(node, source))?;
            hops += 1;
            if hops > self.views[(self.has)(node)].len() {
                return None;
            }
            node = source;
        }
        Some(hops)
    }

    /// Lets everybody who is not reached ask its next source, as often as it takes.
    fn settle(&mut self, origin: &NodeId) -> BTreeMap<NodeId, Option<usize>> {
        let rounds = 12 * (RELAYS_TRIED + 1);
        for _ in 0..rounds {
            let hops = self.sources.keys().map(|node| (node.clone(), self.hops(node, origin)));
            let hops: BTreeMap<_, _> = hops.collect();
            for (node, _) in hops.iter().filter(|(_, hops)| hops.is_none()) {
                let sources = self.sources[node].len();
                self.at.entry(node.clone()).and_modify(|at| *at = (*at + 1) % sources);
            }
            if hops.values().all(Option::is_some) {
                return hops;
            }
        }
        self.sources.keys().map(|node| (node.clone(), self.hops(node, origin))).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_way_is_part_of_one_tree(nodes in 1_usize..180, zones in 1_usize..30, above in 0_usize..60) {
        let mut view = view(nodes, zones, &[]);
        let first = Overlay::of(view.iter().map(|(node, zone)| (node, zone.as_str())), above);
        view.reverse();
        let overlay = Overlay::of(view.iter().map(|(node, zone)| (node, zone.as_str())), above);
        for origin in overlay.places().step_by(7) {
            prop_assert_eq!(first.node(origin), overlay.node(origin));
            for follower in others(&overlay, origin) {
                let way = overlay.way(origin, follower, &[]);
                prop_assert_eq!(&way, &first.way(origin, follower, &[]));
                let (upstream, before) = way.split_last().unwrap();
                if *upstream != origin {
                    let its = overlay.way(origin, *upstream, &[]);
                    prop_assert_eq!(&its[..], before, "a relay is reached as its followers think");
                }
            }
            let most = if nodes > above { FANOUT_MAX } else { above };
            prop_assert!(largest_fanout(&tree(&overlay, origin)) <= most);
        }
    }

    #[test]
    fn the_origin_and_two_others_can_be_asked(nodes in 4_usize..180, zones in 1_usize..5) {
        let overlay = overlay(&view(nodes, zones, &[]));
        let origin = overlay.places().next().unwrap();
        for follower in others(&overlay, origin) {
            let sources = overlay.sources(origin, follower);
            prop_assert_eq!(sources.len(), RELAYS_TRIED + 1);
            prop_assert_eq!(sources.iter().collect::<BTreeSet<_>>().len(), sources.len());
            prop_assert!(sources.contains(&origin) && !sources.contains(&follower));
            let way = overlay.way(origin, follower, &[]);
            prop_assert_eq!(sources.first(), way.last());
        }
    }

    /// Each node has one of two views that differ by some members, who are there or not, and some links are broken. A way
    /// is of three hops; that views differ may make three of it, and broken links four.
    #[test]
    fn whatever_view_each_has_everybody_is_reached(
        nodes in 60_usize..150,
        zones in 1_usize..4,
        gone in [prop::collection::vec(1_usize..60, 0..6), prop::collection::vec(1_usize..60, 0..6)],
        seed: u64,
        broken in 0_u64..15,
    ) {
        let views = gone.map(|gone| overlay(&view(nodes, zones, &gone)));
        let hash = |node: &NodeId| weight(seed, xxh3_64(node.as_str().as_bytes()));
        let has = |node: &NodeId| (hash(node) % 2) as usize;
        let origin: NodeId = "n0".parse().unwrap();
        let is_broken = |a: &NodeId, b: &NodeId| weight(hash(a), hash(b)) % 100 < broken;
        let mut asking = Asking::new([&views[0], &views[1]], &origin, &has, &is_broken);
        let hops = asking.settle(&origin);
        for (node, its) in &hops {
            let most = if broken == 0 { 12 } else { 16 };
            prop_assert!(its.is_none_or(|its| its <= most), "{node} is {its:?} hops away");
            let reached = |source: &&NodeId| **source == origin || hops.get(source).copied().flatten().is_some();
            let works = asking.sources[node].iter().filter(reached).any(|source| !is_broken(node, source));
            prop_assert_eq!(its.is_some(), works, "{} can be reached", node);
        }
        let reached = hops.values().flatten().count();
        prop_assert!(reached * 10 >= hops.len() * 9, "{} of {} are reached", reached, hops.len());
    }
}

const GOLDEN_WAYS: [&[&str]; 2] = [&["n0", "n47"], &["n7", "n74"]];

#[test]
fn a_node_of_two_zones_is_there_once_in_whatever_order_they_come() {
    let mut twice = view(100, 4, &[]);
    twice.push((NodeId::new("n7").unwrap(), "z0".to_owned()));
    let there = overlay(&twice);
    twice.reverse();
    let reversed = overlay(&twice);
    assert_eq!((there.len(), reversed.len()), (100, 100));
    assert!(there.places().all(|place| there.node(place) == reversed.node(place)));
}
