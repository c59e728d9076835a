//! A cache of rendered profiles that is derived from a cache of users: a change of a user, on any node, drops the
//! profile made of it.
//!
//! `cargo run -p tidings --example derived_cache`

use std::convert::Infallible;
use std::time::Duration;

use tidings::testing::Cluster;
use tidings::{Cache, Item, Mode, Target};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cluster = Cluster::start(2).await?;
    let [first, second] = cluster.nodes() else { unreachable!("two were started") };
    let users: Cache<u32, String> = first.cache("users").open()?;
    let users_too: Cache<u32, String> = second.cache("users").open()?;

    // Every node derives for itself, so the profiles need not be broadcast.
    let profiles: Cache<u32, String> = second.cache("profiles").mode(Mode::Local).open()?;
    let derived = profiles.clone();
    let _listener = users_too.subscribe().listen(move |item| {
        let stale = match item {
            Item::Event(event) => match event.target() {
                Target::Key(id) => derived.remove(id),
                Target::Keys(ids) => derived.write().remove_many(ids.iter().copied()),
                _ => derived.clear(),
            },
            // What was missed is unknown: everything goes.
            Item::Lagged { .. } | Item::Fenced { .. } => derived.clear(),
        };
        if let Err(error) = stale {
            eprintln!("profile not dropped: {error}");
        }
    })?;

    users.insert(7, "Ada".to_owned())?;
    let render = || async { Ok::<_, Infallible>("<h1>Ada</h1>".to_owned()) };
    println!("rendered: {}", profiles.get_or_load(&7, render).await?);
    users.insert(7, "Ada, Countess of Lovelace".to_owned())?;
    while profiles.contains(&7) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!("the old profile is gone");
    cluster.shutdown().await;
    Ok(())
}
