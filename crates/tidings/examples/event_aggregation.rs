//! Counts changes by kind and by the node that made them, over two nodes in this process.
//!
//! `cargo run -p tidings --example event_aggregation`

use std::collections::BTreeMap;
use std::time::Duration;

use tidings::testing::Cluster;
use tidings::{Cache, Item};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cluster = Cluster::start(2).await?;
    let [first, second] = cluster.nodes() else { unreachable!("two were started") };
    let orders: Cache<u32, String> = first.cache("orders").open()?;
    let others: Cache<u32, String> = second.cache("orders").open()?;

    // The second node hears what both do.
    let mut events = others.subscribe().start()?;
    for id in 0..10 {
        orders.insert(id, "placed".to_owned())?;
        others.insert(100 + id, "placed".to_owned())?;
    }
    orders.replace(3, "paid".to_owned())?;
    orders.remove(&4)?;

    let mut counts: BTreeMap<(String, &str), u64> = BTreeMap::new();
    let mut missed = 0;
    // Nothing for a while: that was all.
    while let Ok(Some(item)) = tokio::time::timeout(Duration::from_millis(500), events.next()).await {
        match item {
            Item::Event(event) => {
                *counts.entry((event.origin.node.to_string(), event.kind.name())).or_default() += 1;
            }
            // A slow subscriber is told; it never slows a writer.
            Item::Lagged { missed: more } => missed += more,
            // What a peer did while it could not be heard is not known.
            Item::Fenced { .. } => println!("changes of a peer were missed"),
        }
    }
    for ((node, kind), count) in counts {
        println!("{node}: {count} {kind}");
    }
    println!("{missed} missed");
    cluster.shutdown().await;
    Ok(())
}
