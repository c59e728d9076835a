//! Large clusters: an origin's changes, its confirmations and their acknowledgements go by relays.
//!
//! Every node is a follower of every origin, whatever way its changes take, and sequences are the origin's. So nothing
//! that [`crate::follower`] promises depends on who is asked: a relay is a place where the same log can be read, and
//! what cannot be had from one is asked of another, and of the origin itself in the end. Followers choose (*pull*), so
//! nodes with different views disagree about who relays and never about who is served.
//!
//! | part | what it decides |
//! |---|---|
//! | [`Overlay`] | from whom to follow which origin |
//! | [`Path`] | when to ask the next source, when the first again, and when a relay may reset a lane |
//! | [`Asked`], [`Relayed`] | up to when what a relay says confirms something |
//! | [`Held`] | what is kept of others' logs to serve from, within one bound in bytes |
//! | [`Acks`] | what followers have applied, passed up under their names |
//! | [`FollowOf`], [`Confirmed`], [`PassedUp`] | how nodes say that to each other |
//!
//! The overlay divides the nodes by zone and then by hash, as the prefix tables of Plaxton, Rajaraman and Richa (1997)
//! and of Pastry (Rowstron and Druschel 2001) do; who is responsible for a range hands each branch to one node in it, as
//! broadcasts over such tables do (El-Ansary, Alima, Brand and Haridi 2003), chosen by highest random weight (Thaler and
//! Ravishankar 1998), so that one that comes or goes moves few edges. Contacts depend on who chooses, so that each
//! origin has a tree of its own and all trees share few links. Plumtree (Leitão, Pereira and Rodrigues 2007) builds
//! its tree from what arrives first and mends it by announcements to everybody nearby; here sequences show what is
//! missing, so that a follower needs one source at a time.
//!
//! # Why a confirmation that was relayed is true
//!
//! Let a follower ask at `p` of its clock, and a relay that has confirmed the origin at `c` of its own answer at `n`:
//! it says its age, `n - c`, and the heads it has applied, which include everything that the origin had done at `c`. The
//! question was sent before it was answered, so `p - (n - c)` is a moment not after `c`, on whichever clock: with the
//! heads applied, everything that the origin had done by then is. So a confirmation never becomes younger on its way,
//! and of all nodes together none is younger than the newest answer of the origin: relays that ask each other in a
//! circle only watch it grow old. A clock that runs slow while it measures an age would make it younger, so each relay
//! adds two thousandths. An age that reaches back beyond the beginning of the follower's clock confirms nothing.
//!
//! # Why nobody is fresh while somebody on the way knows a writer that it does not
//!
//! A relay takes note of the member set that comes with what confirms an origin before it confirms (the rule of
//! [`crate::follower`]), reads the version of its own set after its confirmations, and sends that set before the answer.
//! By induction a follower that is confirmed as of `c` has taken note of whoever the origin named at `c`.
//!
//! A writer's changes count once everybody named to it knows of it, which without a link to each is known from
//! acknowledgements. They are passed up behind the member set of who passes them ([`Acks::take`]), so the writer takes
//! note of whom the acknowledging node names before it counts it as aware: then the named are closed under links, and
//! a node that is confirmed by way of links is among them. Were either set left out, a relay could get to know a writer,
//! see it leave, and forget it, without its followers ever having heard its name; `tests/relays/naming.rs` shows how.

mod acks;
mod confirm;
mod held;
mod overlay;
mod path;
mod wire;

pub use self::acks::{ACKS_MAX, Acked, Acks, TooMany};
pub use self::confirm::{Asked, Relayed};
pub use self::held::{HELD_BYTES_MAX, Held, Position};
pub use self::overlay::{BRANCHES, FANOUT_MAX, Overlay, Place, RELAYS_TRIED, Way};
pub use self::path::{Lacking, PATIENCE, PATIENCE_PER_HOP, Path, RETURN_AFTER, RETURN_AFTER_MAX};
pub use self::wire::{ACKED_MAX, Confirmed, FollowOf, PassedUp};
