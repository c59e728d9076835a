//! The rig's own network does what it is told: otherwise a passed test of a cut says nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tidings_tests::host::Host;
use tidings_tests::network::Network;
use tidings_tests::switch::Mess;
use tidings_tests::wait::until;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, timeout};

/// Longest wait for a datagram that is not lost.
const ARRIVES_WITHIN: Duration = Duration::from_secs(20);

/// Wait that shows that a datagram is lost: on this machine it takes microseconds.
const LOST_AFTER: Duration = Duration::from_millis(200);

/// Pause after which the next datagrams may be sent: what has not arrived by then is counted later.
const BATCH_PAUSE: Duration = Duration::from_millis(10);

/// Each host with each other, both ways.
pub(crate) fn pairs(hosts: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..hosts).flat_map(move |from| (0..hosts).filter(move |to| *to != from).map(move |to| (from, to)))
}

/// A socket on a host.
async fn socket(host: &Host) -> Result<UdpSocket> {
    let address = SocketAddr::from((host.address(), 0));
    Ok(host.runtime().spawn(async move { UdpSocket::bind(address).await }).await??)
}

/// How long a datagram takes; nothing if it is lost.
async fn travel(from: &UdpSocket, to: &UdpSocket, wait: Duration) -> Result<Option<Duration>> {
    /// Tells datagrams apart: one that was given up may still come.
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let sent = Instant::now();
    from.send_to(&number, to.local_addr()?).await?;
    let arrives = async {
        let mut read = [0; 8];
        while read != number {
            to.recv_from(&mut read).await?;
        }
        Ok::<_, std::io::Error>(())
    };
    let Ok(arrived) = timeout(wait, arrives).await else { return Ok(None) };
    arrived?;
    Ok(Some(sent.elapsed()))
}

async fn arrives(from: &UdpSocket, to: &UdpSocket) -> Result<bool> {
    Ok(travel(from, to, ARRIVES_WITHIN).await?.is_some())
}

async fn is_lost(from: &UdpSocket, to: &UdpSocket) -> Result<bool> {
    Ok(travel(from, to, LOST_AFTER).await?.is_none())
}

#[tokio::test]
async fn a_cut_is_one_way_and_heals() -> Result<()> {
    let mut network = Network::bridged(2)?;
    let (a, b) = (socket(&network.hosts()[0]).await?, socket(&network.hosts()[1]).await?);
    assert!(arrives(&a, &b).await? && arrives(&b, &a).await?);
    network.cut(0, 1)?;
    assert!(is_lost(&a, &b).await? && arrives(&b, &a).await?);
    network.heal()?;
    assert!(arrives(&a, &b).await? && arrives(&b, &a).await?);
    Ok(())
}

#[tokio::test]
async fn an_isolated_host_hears_and_reaches_nobody() -> Result<()> {
    let mut network = Network::bridged(3)?;
    let (a, b) = (socket(&network.hosts()[0]).await?, socket(&network.hosts()[1]).await?);
    let c = socket(&network.hosts()[2]).await?;
    network.isolate(0)?;
    assert!(is_lost(&a, &b).await? && is_lost(&b, &a).await? && is_lost(&c, &a).await?);
    assert!(arrives(&b, &c).await? && arrives(&c, &b).await?);
    Ok(())
}

/// Datagrams that are sent to see what becomes of them.
const SENT: usize = 2000;

/// So many at a time, that a receiving socket holds them all.
const AT_A_TIME: usize = 50;

/// Sends numbers from the first host to the second one; those that arrived, in their order.
async fn numbers_that_arrive(hosts: &[Arc<Host>]) -> Result<Vec<usize>> {
    let (from, to) = (socket(&hosts[0]).await?, socket(&hosts[1]).await?);
    let (target, mut arrived, mut read) = (to.local_addr()?, Vec::new(), [0; 8]);
    for first in (0..SENT).step_by(AT_A_TIME) {
        for number in first..first + AT_A_TIME {
            from.send_to(&number.to_be_bytes(), target).await?;
        }
        while let Ok(received) = timeout(BATCH_PAUSE, to.recv_from(&mut read)).await {
            received?;
            arrived.push(usize::from_be_bytes(read));
        }
    }
    while let Ok(received) = timeout(LOST_AFTER, to.recv_from(&mut read)).await {
        received?;
        arrived.push(usize::from_be_bytes(read));
    }
    Ok(arrived)
}

#[tokio::test]
async fn loss_takes_its_share() -> Result<()> {
    let mut network = Network::bridged(2)?;
    network.lose(0, 1, 30)?;
    let arrived = numbers_that_arrive(network.hosts()).await?;
    let lost = SENT - arrived.len();
    // Eight standard deviations of 2,000 draws at 30 %.
    assert!((435..765).contains(&lost), "{lost} of {SENT} lost");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_delays_and_holds_one_way() -> Result<()> {
    const DELAY: Duration = Duration::from_millis(150);
    let network = Network::switched(3)?;
    let (a, b) = (socket(&network.hosts()[0]).await?, socket(&network.hosts()[1]).await?);
    // The first datagrams also wait for the neighbours' addresses.
    assert!(arrives(&a, &b).await? && arrives(&b, &a).await?);
    let switch = network.switch().expect("it was made with one");
    switch.delay(0, 1, DELAY);
    let there = travel(&a, &b, ARRIVES_WITHIN).await?.expect("it is late, not lost");
    assert!(there >= DELAY, "{there:?}");
    // Any that a busy machine does not hold up.
    until("the way back is not delayed", ARRIVES_WITHIN, async || {
        let back = travel(&b, &a, ARRIVES_WITHIN).await?.context("it is not lost")?;
        ensure!(back < DELAY, "{back:?}");
        Ok(())
    })
    .await?;
    switch.delay(0, 1, Duration::ZERO);
    switch.hold(0, 1, true);
    assert!(is_lost(&a, &b).await?, "it is held");
    switch.hold(0, 1, false);
    assert!(timeout(ARRIVES_WITHIN, b.recv_from(&mut [0; 8])).await.is_ok(), "it comes when it is let go");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_way_is_held_for_what_is_to_be_overtaken_too() -> Result<()> {
    /// A frame that is to be overtaken waits for longer than that.
    const SOON: Duration = Duration::from_millis(1);
    let network = Network::switched(2)?;
    let (a, b) = (socket(&network.hosts()[0]).await?, socket(&network.hosts()[1]).await?);
    assert!(arrives(&a, &b).await? && arrives(&b, &a).await?);
    let switch = network.switch().expect("it was made with one");
    switch.mess(0, 1, Mess { twice: 0, overtaken: 100 });
    for _ in 0..5 {
        a.send_to(&[0; 8], b.local_addr()?).await?;
        sleep(SOON).await;
        switch.hold(0, 1, true);
        assert!(is_lost(&a, &b).await?, "it was sent after the way was held");
        switch.hold(0, 1, false);
        while timeout(LOST_AFTER, b.recv_from(&mut [0; 8])).await.is_ok() {}
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_doubles_and_lets_overtake() -> Result<()> {
    let network = Network::switched(2)?;
    let switch = network.switch().expect("it was made with one");
    switch.mess(0, 1, Mess { twice: 20, overtaken: 20 });
    let arrived = numbers_that_arrive(network.hosts()).await?;
    let mut each = arrived.clone();
    each.sort_unstable();
    each.dedup();
    assert_eq!(each, (0..SENT).collect::<Vec<_>>(), "nothing is lost");
    // Far from what may come by chance; the frames of address resolution take part.
    let twice = arrived.len() - SENT;
    assert!((200..700).contains(&twice), "{twice} of {SENT} doubled");
    let overtaken = arrived.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!((100..700).contains(&overtaken), "{overtaken} of {SENT} overtaken");
    Ok(())
}

#[tokio::test]
async fn programs_and_sockets_are_inside_their_host() -> Result<()> {
    let network = Network::bridged(1)?;
    let host = &network.hosts()[0];
    let addresses = host.namespace().run("ip", &["-4", "-o", "addr", "show", "eth0"])?;
    assert!(addresses.contains("10.77.0.1/24"), "{addresses}");
    assert!(UdpSocket::bind((host.address(), 0)).await.is_err(), "this process itself is outside");
    socket(host).await?;
    Ok(())
}

#[tokio::test]
async fn a_host_leaves_nothing_behind() -> Result<()> {
    let network = Network::bridged(1)?;
    let name = network.hosts()[0].namespace().name().to_owned();
    let path = std::path::Path::new("/run/netns").join(name);
    assert!(path.exists());
    drop(network);
    assert!(!path.exists());
    Ok(())
}
