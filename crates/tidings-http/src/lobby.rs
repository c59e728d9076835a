//! Connections on which nobody has been let in yet, and the places of those on which somebody has.
//!
//! A stranger can open connections and say nothing, or say it slowly. Such connections wait here, and in a full lobby
//! each newcomer takes the place of the oldest one of the address that has most: whoever has a token gets in by its
//! first request however many strangers there are.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::access::network;
use crate::limits::LOBBY_MAX;
use crate::problem::Problem;
use crate::room::Room;

/// Who waits. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lobby(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    displaced: AtomicU64,
}

/// By the order in which they came.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    guests: BTreeMap<u64, Guest>,
}

#[derive(Debug)]
struct Guest {
    network: IpAddr,
    displaced: CancellationToken,
}

impl Waiting {
    /// Whose turn it is to give way: the oldest of the network that has most. Of two with as many, that of the oldest.
    fn victim(&self) -> Option<u64> {
        let mut shares = HashMap::<IpAddr, (usize, u64)>::new();
        for (number, guest) in &self.guests {
            shares.entry(guest.network).or_insert((0, *number)).0 += 1;
        }
        let largest = shares.into_values().max_by_key(|(count, oldest)| (*count, std::cmp::Reverse(*oldest)));
        largest.map(|(_, oldest)| oldest)
    }
}

impl Lobby {
    /// A place for a connection, which is another's if there is no room.
    fn enter(&self, address: IpAddr) -> Seat {
        let mut waiting = self.lock();
        if waiting.guests.len() >= LOBBY_MAX
            && let Some(guest) = waiting.victim().and_then(|victim| waiting.guests.remove(&victim))
        {
            guest.displaced.cancel();
            self.0.displaced.fetch_add(1, Ordering::Relaxed);
        }
        let (number, displaced) = (waiting.next, CancellationToken::new());
        waiting.next += 1;
        waiting.guests.insert(number, Guest { network: network(address), displaced: displaced.clone() });
        drop(waiting);
        Seat { lobby: self.clone(), number, displaced }
    }

    /// How many had to give way.
    pub(crate) fn displaced(&self) -> u64 {
        self.0.displaced.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the lobby, which is free again once this is dropped.
#[derive(Debug)]
struct Seat {
    lobby: Lobby,
    number: u64,
    displaced: CancellationToken,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.lobby.lock().guests.remove(&self.number);
    }
}

/// One connection, from when it is accepted.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: SocketAddr,
    here: SocketAddr,
    displaced: CancellationToken,
    standing: Mutex<Standing>,
}

#[derive(Debug)]
enum Standing {
    Waiting { _seat: Seat },
    Admitted { _place: OwnedSemaphorePermit },
}

impl Connection {
    pub(crate) fn new(peer: SocketAddr, here: SocketAddr, lobby: &Lobby) -> Self {
        let seat = lobby.enter(peer.ip());
        let displaced = seat.displaced.clone();
        Self { peer, here, displaced, standing: Mutex::new(Standing::Waiting { _seat: seat }) }
    }

    /// The other end.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The address that it came to.
    pub(crate) fn here(&self) -> SocketAddr {
        self.here
    }

    /// Lets somebody in, for whom there has to be a place.
    pub(crate) fn admit(&self, room: &Room) -> Result<(), Problem> {
        let mut standing = self.lock();
        if matches!(*standing, Standing::Waiting { .. }) {
            let place = room.connections.take("too many connections are open")?;
            *standing = Standing::Admitted { _place: place };
        }
        Ok(())
    }

    /// Whether nobody has been let in yet.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(*self.lock(), Standing::Waiting { .. })
    }

    /// Until it has to give way, which it never has once somebody was let in.
    pub(crate) async fn displaced(&self) {
        self.displaced.cancelled().await;
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CONNECTIONS_MAX;

    fn peer(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 1))
    }

    fn connect(last: u8, lobby: &Lobby) -> Connection {
        Connection::new(peer(last), SocketAddr::from(([192, 0, 2, 99], 7480)), lobby)
    }

    fn is_displaced(connection: &Connection) -> bool {
        connection.displaced.is_cancelled()
    }

    #[test]
    fn who_has_most_connections_gives_way_and_its_oldest_first() {
        let lobby = Lobby::default();
        let one = connect(1, &lobby);
        let many: Vec<_> = (1..LOBBY_MAX).map(|_| connect(2, &lobby)).collect();
        let newcomers = [connect(3, &lobby), connect(2, &lobby)];
        let gone: Vec<bool> = many.iter().map(is_displaced).collect();
        assert_eq!(gone.iter().position(|gone| !gone), Some(2));
        assert!(!is_displaced(&one) && newcomers.iter().all(|newcomer| !is_displaced(newcomer)));
        assert_eq!((lobby.displaced(), lobby.lock().guests.len()), (2, LOBBY_MAX));
        drop((one, many, newcomers));
        assert!(lobby.lock().guests.is_empty());
    }

    #[test]
    fn who_was_let_in_stays_whoever_comes() {
        let (lobby, room) = (Lobby::default(), Room::default());
        let inside = connect(1, &lobby);
        inside.admit(&room).unwrap();
        let others: Vec<_> = (0..3 * LOBBY_MAX).map(|_| connect(1, &lobby)).collect();
        assert!(!is_displaced(&inside) && !inside.is_waiting());
        assert_eq!(others.iter().filter(|other| is_displaced(other)).count(), 2 * LOBBY_MAX);
    }

    #[test]
    fn as_many_are_let_in_as_there_are_places() {
        let (lobby, room) = (Lobby::default(), Room::default());
        let connections: Vec<_> = (0..=CONNECTIONS_MAX).map(|_| connect(1, &lobby)).collect();
        let admitted = connections.iter().filter(|connection| connection.admit(&room).is_ok()).count();
        assert_eq!(admitted, CONNECTIONS_MAX);
        assert!(connections[0].admit(&room).is_ok(), "who is in needs no second place");
        drop(connections);
        assert!(connect(1, &lobby).admit(&room).is_ok());
    }
}
