//! Connections on which nobody has been let in yet, and the places of those on which somebody has.
//!
//! A stranger can open connections and say nothing, or say it slowly. Such connections wait here, and in a full lobby
//! each newcomer takes the place of the oldest one of the address that has most: whoever has a token gets in by its
//! first request however many strangers there are.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::access::{Access, Caller, network};
use crate::limits::{LOBBY_MAX, LOBBY_TIME};
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
    fn enter(&self, address: IpAddr, displaced: CancellationToken) -> Seat {
        let mut waiting = self.lock();
        if waiting.guests.len() >= LOBBY_MAX
            && let Some(guest) = waiting.victim().and_then(|victim| waiting.guests.remove(&victim))
        {
            guest.displaced.cancel();
            self.0.displaced.fetch_add(1, Ordering::Relaxed);
        }
        let number = waiting.next;
        waiting.next += 1;
        waiting.guests.insert(number, Guest { network: network(address), displaced });
        drop(waiting);
        Seat { lobby: self.clone(), number }
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
    lobby: Lobby,
    displaced: CancellationToken,
    standing: watch::Sender<Standing>,
}

#[derive(Debug)]
enum Standing {
    Waiting {
        _seat: Seat,
    },
    /// Who was let in last, and counts.
    Admitted {
        _place: OwnedSemaphorePermit,
        caller: Caller,
    },
}

impl Connection {
    pub(crate) fn new(peer: SocketAddr, here: SocketAddr, lobby: &Lobby) -> Self {
        let displaced = CancellationToken::new();
        let seat = lobby.enter(peer.ip(), displaced.clone());
        let standing = watch::Sender::new(Standing::Waiting { _seat: seat });
        Self { peer, here, lobby: lobby.clone(), displaced, standing }
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
    pub(crate) fn admit(&self, caller: &Caller, room: &Room) -> Result<(), Problem> {
        let mut outcome = Ok(());
        self.standing.send_if_modified(|standing| match standing {
            Standing::Admitted { caller: last, .. } if last == caller => false,
            Standing::Admitted { caller: last, .. } => {
                *last = caller.clone();
                true
            }
            Standing::Waiting { .. } => match room.connections.take("too many connections are open") {
                Ok(place) => {
                    *standing = Standing::Admitted { _place: place, caller: caller.clone() };
                    true
                }
                Err(problem) => {
                    outcome = Err(problem);
                    false
                }
            },
        });
        outcome
    }

    /// Takes the place of somebody away again, unless another one was let in meanwhile: the connection waits with those
    /// on which nobody was.
    fn dismiss(&self, caller: &Caller) {
        self.standing.send_if_modified(|standing| {
            let is_theirs = standing.caller() == Some(caller);
            if is_theirs {
                let seat = self.lobby.enter(self.peer.ip(), self.displaced.clone());
                *standing = Standing::Waiting { _seat: seat };
            }
            is_theirs
        });
    }

    /// Until nobody has been let in for [`LOBBY_TIME`]. Who was let in and counts no more is dismissed meanwhile.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn late(&self, access: &Access) {
        let mut standing = self.standing.subscribe();
        loop {
            let admitted = standing.borrow_and_update().caller().cloned();
            let Some(caller) = admitted else {
                let admitted = standing.wait_for(|standing| standing.caller().is_some());
                if timeout(LOBBY_TIME, admitted).await.is_err() {
                    return;
                }
                continue;
            };
            tokio::select! {
                () = access.revoked(&caller) => self.dismiss(&caller),
                // The sender is this one's.
                _ = standing.changed() => {}
            }
        }
    }

    /// Until it has to give way, which it never has while somebody is let in.
    pub(crate) async fn displaced(&self) {
        self.displaced.cancelled().await;
    }
}

impl Standing {
    fn caller(&self) -> Option<&Caller> {
        match self {
            Self::Waiting { .. } => None,
            Self::Admitted { caller, .. } => Some(caller),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::time::Instant;

    use super::*;
    use crate::access::{Means, NewToken, Role, SessionId, Switches, Tokens};
    use crate::limits::CONNECTIONS_MAX;

    const SWITCHES: Switches =
        Switches { open_health_and_metrics: true, allow_payloads: true, allow_destructive_actions: false };

    fn token(entropy: [u8; 32]) -> NewToken {
        NewToken::new("ops", Role::Viewer, false, entropy).unwrap()
    }

    fn caller() -> Caller {
        Caller {
            name: "ops".into(),
            role: Role::Viewer,
            payloads: false,
            token: None,
            means: Means::Loopback,
        }
    }

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
        inside.admit(&caller(), &room).unwrap();
        let others: Vec<_> = (0..3 * LOBBY_MAX).map(|_| connect(1, &lobby)).collect();
        assert!(!is_displaced(&inside) && inside.standing.borrow().caller().is_some());
        assert_eq!(others.iter().filter(|other| is_displaced(other)).count(), 2 * LOBBY_MAX);
    }

    #[test]
    fn who_is_dismissed_gives_its_place_back_and_may_have_to_give_way() {
        let (lobby, room) = (Lobby::default(), Room::default());
        let connection = connect(1, &lobby);
        connection.admit(&caller(), &room).unwrap();
        let free = room.connections.free();
        let other = Caller { name: "other".into(), ..caller() };
        connection.dismiss(&other);
        assert_eq!((room.connections.free(), lobby.lock().guests.len()), (free, 0), "it is no other's place");
        connection.dismiss(&caller());
        assert_eq!((room.connections.free(), lobby.lock().guests.len()), (free + 1, 1));
        let others: Vec<_> = (0..LOBBY_MAX).map(|_| connect(1, &lobby)).collect();
        assert!(is_displaced(&connection) && others.iter().all(|other| !is_displaced(other)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_whose_caller_counts_no_more_waits_again_and_is_late_in_its_turn() {
        let (lobby, room) = (Lobby::default(), Room::default());
        let (token, other) = (token([1; 32]), token([2; 32]));
        let access = Access::new(Some(Tokens::parse(token.line()).unwrap()), SWITCHES);
        let start = Instant::now();
        let silent = connect(1, &lobby);
        silent.late(&access).await;
        assert_eq!(start.elapsed(), LOBBY_TIME);

        let connection = connect(1, &lobby);
        let id = SessionId::new([1; 32]);
        let caller = access.log_in(token.text(), peer(1).ip(), Instant::now(), id).unwrap();
        connection.admit(&caller, &room).unwrap();
        let mut late = pin!(connection.late(&access));
        assert!(timeout(3 * LOBBY_TIME, late.as_mut()).await.is_err());
        access.replace(Tokens::parse(other.line()).unwrap());
        let revoked = Instant::now();
        late.await;
        assert_eq!(revoked.elapsed(), LOBBY_TIME);
        assert_eq!(room.connections.free(), CONNECTIONS_MAX);
    }

    #[test]
    fn as_many_are_let_in_as_there_are_places() {
        let (lobby, room) = (Lobby::default(), Room::default());
        let connections: Vec<_> = (0..=CONNECTIONS_MAX).map(|_| connect(1, &lobby)).collect();
        let admitted =
            connections.iter().filter(|connection| connection.admit(&caller(), &room).is_ok()).count();
        assert_eq!(admitted, CONNECTIONS_MAX);
        assert!(connections[0].admit(&caller(), &room).is_ok(), "who is in needs no second place");
        drop(connections);
        assert!(connect(1, &lobby).admit(&caller(), &room).is_ok());
    }
}
