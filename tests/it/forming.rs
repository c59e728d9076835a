//! Processes become a cluster, and a change on one node evicts the stale copy on every other.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tidings_tests::api::{Api, Fill, Lookup};
use tidings_tests::cluster::{CACHE, Cluster, Setup};
use tidings_tests::wait::until;

/// Longest time until a change is applied on all nodes of an undisturbed cluster: milliseconds, and as long as a
/// machine that runs other tests may stand still or keep links down. It is no promise, only the end of the wait.
const APPLIED_WITHIN: Duration = Duration::from_secs(20);

/// Longest time of a clean shutdown.
const SHUT_DOWN_WITHIN: Duration = Duration::from_secs(20);

/// Nodes that are not in doubt, however long the machine stands still: what was filled stays.
fn patient(nodes: usize) -> Setup {
    let coherence = "write_horizon = \"0s\"";
    Setup { max_staleness: Duration::from_secs(60), coherence, ..Setup::loopback(nodes) }
}

/// Looks a key up, misses, and stores what was loaded.
async fn fill(api: &Api, key: &str, value: &str) -> Result<()> {
    let Lookup::Miss { token: Some(token) } = api.get(CACHE, key).await? else {
        bail!("{key} is cached already, or may not be");
    };
    ensure!(api.fill(CACHE, key, &token, value.into()).await? == Fill::Stored, "something ended the fill");
    ensure!(held(api, key).await?.as_deref() == Some(value), "the fill is not there");
    Ok(())
}

async fn held(api: &Api, key: &str) -> Result<Option<String>> {
    Ok(match api.get(CACHE, key).await? {
        Lookup::Hit { value, .. } => Some(String::from_utf8(value)?),
        Lookup::Miss { .. } => None,
    })
}

async fn evicted(api: &Api, key: &str) -> Result<()> {
    let look = async || match held(api, key).await? {
        None => Ok(()),
        Some(value) => bail!("{key} is still {value:?}"),
    };
    until("the stale copy goes", APPLIED_WITHIN, look).await
}

#[tokio::test]
async fn three_processes_form_a_cluster() -> Result<()> {
    let cluster = Cluster::start(patient(3)).await?;
    for (api, id) in cluster.apis().iter().zip(cluster.ids()) {
        let view = api.cluster().await?;
        assert!(view.ready);
        assert_eq!(view.node, id);
        let mut members: Vec<&str> = view.members.iter().map(|member| member.node.as_str()).collect();
        members.sort_unstable();
        assert_eq!(members, cluster.ids());
        let own: Vec<&str> =
            view.members.iter().filter(|member| member.is_self).map(|member| member.node.as_str()).collect();
        assert_eq!(own, [id.as_str()]);
    }
    Ok(())
}

#[tokio::test]
async fn a_write_on_one_node_evicts_the_copies_on_the_others() -> Result<()> {
    let cluster = Cluster::start(patient(3)).await?;
    let apis = cluster.apis();
    for api in &apis {
        fill(api, "removed", "old").await?;
        fill(api, "replaced", "old").await?;
        fill(api, "invalidated", "old").await?;
        fill(api, "untouched", "old").await?;
    }
    apis[0].delete(CACHE, "removed").await?;
    apis[1].put(CACHE, "replaced", "new".into()).await?;
    apis[2].invalidate(CACHE, &["invalidated"]).await?;
    for (node, api) in apis.iter().enumerate() {
        evicted(api, "removed").await?;
        evicted(api, "invalidated").await?;
        if node == 1 {
            assert_eq!(
                held(api, "replaced").await?.as_deref(),
                Some("new"),
                "the writer reads what it wrote"
            );
        } else {
            evicted(api, "replaced").await?;
        }
        assert_eq!(held(api, "untouched").await?.as_deref(), Some("old"), "exactly what is named");
    }
    Ok(())
}

#[tokio::test]
async fn fills_are_silent() -> Result<()> {
    let cluster = Cluster::start(patient(2)).await?;
    let apis = cluster.apis();
    for key in ["a", "b", "c"] {
        fill(&apis[0], key, "0").await?;
        fill(&apis[1], key, "1").await?;
    }
    for key in ["a", "b", "c"] {
        assert_eq!(held(&apis[0], key).await?.as_deref(), Some("0"));
    }
    for api in &apis {
        assert!(api.metric("tidings_events_published_total").await? < 0.5, "a fill is no news");
    }
    Ok(())
}

#[tokio::test]
async fn a_fill_that_an_invalidation_overtook_is_refused() -> Result<()> {
    let cluster = Cluster::start(patient(2)).await?;
    let apis = cluster.apis();
    let Lookup::Miss { token: Some(token) } = apis[0].get(CACHE, "k").await? else {
        bail!("nobody has filled it")
    };
    apis[1].delete(CACHE, "k").await?;
    let applied = async || {
        let applied = apis[0].metric("tidings_events_applied_total").await?;
        ensure!(applied > 0.5, "{applied} applied");
        Ok(())
    };
    until("the removal arrives", APPLIED_WITHIN, applied).await?;
    assert_eq!(apis[0].fill(CACHE, "k", &token, "old".into()).await?, Fill::Ended);
    assert_eq!(held(&apis[0], "k").await?, None);
    Ok(())
}

#[tokio::test]
async fn a_node_that_is_asked_to_end_says_goodbye() -> Result<()> {
    let mut cluster = Cluster::start(patient(3)).await?;
    let ended = cluster.node_mut(2).terminate(SHUT_DOWN_WITHIN).await?;
    assert_eq!(ended.code(), Some(0), "{}", cluster.node(2).log());
    let left = async || {
        for api in &cluster.apis()[..2] {
            let view = api.cluster().await?;
            let state =
                view.members.iter().find(|member| member.node == "n3").map(|member| member.state.as_str());
            ensure!(matches!(state, None | Some("left")), "{state:?}");
        }
        Ok(())
    };
    until("nobody waits for it", APPLIED_WITHIN, left).await?;
    Ok(())
}
