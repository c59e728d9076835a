use super::*;

/// How long what a node leaves behind may take to go.
const PATIENCE: Duration = Duration::from_secs(20);

async fn freed(bus: &std::sync::Weak<Bus>) -> bool {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while bus.strong_count() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bus.upgrade().is_none()
}

#[tokio::test]
async fn a_node_that_is_gone_holds_no_memory() {
    for shut_down in [true, false] {
        let first = Node::builder("shop").node_id("n1").start().await.unwrap();
        let seed = first.address().to_string();
        let second = Node::builder("shop").node_id("n2").seeds([seed]).start().await.unwrap();
        second.ready(PATIENCE).await.unwrap();
        let buses = [&first, &second].map(|node| Arc::downgrade(&node.inner.bus));
        if shut_down {
            for node in [&second, &first] {
                node.shutdown(PATIENCE).await;
            }
        }
        drop((first, second));
        for bus in &buses {
            assert!(freed(bus).await, "shut down: {shut_down}, held {} times", bus.strong_count());
        }
    }
}
