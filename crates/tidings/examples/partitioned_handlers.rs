//! Four handlers divide a cache's events among them: each key's events go to one handler, in order.
//!
//! `cargo run -p tidings --example partitioned_handlers`

use std::time::Duration;

use tidings::testing::Cluster;
use tidings::{Cache, EventKind, Item};
use tokio::task::JoinSet;

const HANDLERS: usize = 4;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cluster = Cluster::start(2).await?;
    let [writer, reader] = cluster.nodes() else { unreachable!("two were started") };
    let accounts: Cache<String, i64> = writer.cache("accounts").open()?;
    // The number of partitions is this node's own choice; the writer has one.
    let watched: Cache<String, i64> = reader.cache("accounts").partitions(16).open()?;

    let mut handlers = JoinSet::new();
    for index in 0..HANDLERS {
        let kinds = [EventKind::Inserted, EventKind::Updated];
        let mut share = watched.subscribe().kinds(kinds).assigned(index, HANDLERS).start()?;
        handlers.spawn(async move {
            let mut handled = 0;
            while let Some(item) = share.next().await {
                if let Item::Event(_) = item {
                    handled += 1;
                }
            }
            (index, handled)
        });
    }
    for n in 0..1_000 {
        accounts.increment(&format!("account-{}", n % 100), 1)?;
    }
    let applied = || reader.members().iter().any(|member| member.applied >= 1_000);
    while !applied() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Closing the cache ends its subscriptions, after what they have still to read.
    watched.close();
    while let Some(Ok((index, handled))) = handlers.join_next().await {
        println!("handler {index}: {handled} events");
    }
    cluster.shutdown().await;
    Ok(())
}
