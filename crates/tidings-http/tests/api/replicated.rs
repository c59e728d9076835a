use reqwest::Method;
use serde_json::json;

use crate::support::{Rig, answer, until};

#[tokio::test]
async fn what_is_put_in_a_cache_whose_values_travel_is_there_on_every_node() {
    let rig = Rig::start(2).await;
    let [a, b] = &rig.apis[..] else { panic!("two nodes") };
    for api in [a, b] {
        api.open("c", &json!({ "mode": "replicate" })).await;
    }
    a.put("c", "k", "one").await;
    until("it has travelled", async || b.read("c", "k").await.text() == "one").await;
    b.put("c", "k", "two").await;
    until("and back", async || a.read("c", "k").await.text() == "two").await;
    assert_eq!(b.get("/v1/caches/c").await.is(200).document()["mode"], "replicate");
    answer(a.entry(Method::DELETE, "c", "k")).await.is(204);
    until("it is gone", async || b.read("c", "k").await.status == 404).await;
    let stored = "tidings_invalidations_total{cache=\"c\",target=\"key\",outcome=\"stored\"}";
    assert_eq!((a.metric(stored).await, b.metric(stored).await), (Some(1.0), Some(1.0)));
    assert_eq!(b.metric("tidings_cache_tombstones{cache=\"c\"}").await, Some(1.0));
    rig.end().await;
}
