//! A cache of rendered profiles that is derived from a cache of users: a change of a user, on any node, drops the
//! profile made of it, on every node.
//!
//! `cargo run -p tidings --example derived_cache`

use std::convert::Infallible;
use std::time::Duration;

use tidings::testing::Cluster;
use tidings::{Cache, Node};

type Users = Cache<u32, String>;
type Profiles = Cache<String, String>;

/// Every node that changes users needs the rule: who makes a change derives what follows from it.
fn open(node: &Node) -> Result<(Users, Profiles), Box<dyn std::error::Error>> {
    let users = node.cache("users").open()?;
    let profiles = node.cache("profiles").open()?;
    users.derive(&profiles, |id: &u32| [format!("profile:{id}"), format!("card:{id}")])?;
    Ok((users, profiles))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cluster = Cluster::start(2).await?;
    let [first, second] = cluster.nodes() else { unreachable!("two were started") };
    let (users, _) = open(first)?;
    let (_, profiles) = open(second)?;

    users.insert(7, "Ada".to_owned())?;
    let profile = "profile:7".to_owned();
    let render = || async { Ok::<_, Infallible>("<h1>Ada</h1>".to_owned()) };
    println!("rendered: {}", profiles.get_or_load(&profile, render).await?);
    users.insert(7, "Ada, Countess of Lovelace".to_owned())?;
    while profiles.contains(&profile) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!("the old profile is gone");
    cluster.shutdown().await;
    Ok(())
}
