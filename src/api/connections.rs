//! Who may hold how many connections at once.
//!
//! Users have a limit each and one together; root has places of its own beyond them. A user who is at the limit loses
//! the oldest connection that has not asked anything yet, so that programs which connect and hang lock nobody out, not
//! even their own user; when all of them are at work, the new one is refused.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use tokio::sync::Notify;

/// One connection's place; free again when the last clone of the [`Rc`] in [`Place`] is dropped.
#[derive(Debug, Default)]
struct Seat {
    /// One of root's own places.
    own: bool,
    /// Requests in flight (at most one, as HTTP/1.1 has it).
    busy: Cell<bool>,
    /// Given to somebody else.
    lost: Cell<bool>,
    leave: Notify,
}

#[derive(Debug, Default)]
struct Table {
    /// Oldest first, by user.
    seats: HashMap<u32, Vec<Rc<Seat>>>,
    /// Of all users but root, and root's beyond its own places.
    shared: usize,
    /// Root's in its own places.
    own: usize,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Connections(Rc<RefCell<Table>>);

/// A place for one connection.
#[derive(Debug)]
pub(super) struct Place {
    table: Connections,
    uid: u32,
    seat: Rc<Seat>,
}

/// Places there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rooms {
    pub per_user: usize,
    pub shared: usize,
    pub for_root: usize,
}

impl Connections {
    /// `None`: all places that `uid` may have are at work.
    pub fn admit(&self, uid: u32, rooms: Rooms) -> Option<Place> {
        let (own, free) = {
            let table = self.0.borrow();
            if uid == 0 {
                let own = table.own < rooms.for_root;
                (own, own || table.shared < rooms.shared)
            } else {
                let mine = table.seats.get(&uid).map_or(0, Vec::len);
                (false, mine < rooms.per_user && table.shared < rooms.shared)
            }
        };
        let own = if free { own } else { self.take_from_idle(uid)? };
        let seat = Rc::new(Seat { own, ..Seat::default() });
        let mut table = self.0.borrow_mut();
        *table.count(own) += 1;
        table.seats.entry(uid).or_default().push(Rc::clone(&seat));
        Some(Place { table: self.clone(), uid, seat })
    }

    /// Frees the place of the user's oldest connection without a request; says which kind of place it was.
    fn take_from_idle(&self, uid: u32) -> Option<bool> {
        let seat = {
            let table = self.0.borrow();
            let seats = table.seats.get(&uid)?;
            Rc::clone(seats.iter().find(|s| !s.busy.get())?)
        };
        seat.lost.set(true);
        seat.leave.notify_one();
        self.release(uid, &seat);
        Some(seat.own)
    }

    fn release(&self, uid: u32, seat: &Rc<Seat>) {
        let mut table = self.0.borrow_mut();
        let count = table.count(seat.own);
        *count = count.saturating_sub(1);
        if let Some(seats) = table.seats.get_mut(&uid) {
            seats.retain(|s| !Rc::ptr_eq(s, seat));
            if seats.is_empty() {
                table.seats.remove(&uid);
            }
        }
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        let table = self.0.borrow();
        table.shared + table.own
    }
}

impl Table {
    fn count(&mut self, own: bool) -> &mut usize {
        if own { &mut self.own } else { &mut self.shared }
    }
}

/// While it lives, a request is being worked on.
#[derive(Debug)]
pub(super) struct Work(Rc<Seat>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.busy.set(false);
    }
}

impl Place {
    /// For as long as the result lives, the place is not given to somebody else.
    pub fn work(&self) -> Work {
        self.seat.busy.set(true);
        Work(Rc::clone(&self.seat))
    }

    /// Waits until the place is given to somebody else.
    pub async fn lost(&self) {
        self.seat.leave.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.seat.lost.get() {
            self.table.release(self.uid, &self.seat);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOMS: Rooms = Rooms { per_user: 2, shared: 3, for_root: 1 };

    #[test]
    fn users_have_limits_and_root_has_places_of_its_own() {
        let all = Connections::default();
        let admit = |uid| all.admit(uid, ROOMS);
        let ann = [admit(1).unwrap(), admit(1).unwrap()];
        let _busy = [ann[0].work(), ann[1].work()];
        assert!(admit(1).is_none(), "a third one of the same user");
        let bob = admit(2).unwrap();
        let _bob_works = bob.work();
        assert!(admit(3).is_none(), "all users together");
        let root = admit(0).unwrap();
        let _root_works = root.work();
        assert!(admit(0).is_none());
        assert_eq!(all.count(), 4);
        drop(ann);
        assert!(admit(1).is_some());
        assert!(admit(0).is_some(), "root may use the shared places as well");
        drop((bob, root));
        assert_eq!(all.count(), 0);
    }

    #[test]
    fn the_oldest_without_a_request_gives_way() {
        let all = Connections::default();
        let working = all.admit(1, ROOMS).unwrap();
        let work = working.work();
        let idle = all.admit(1, ROOMS).unwrap();
        let third = all.admit(1, ROOMS).unwrap();
        assert!(idle.seat.lost.get() && !working.seat.lost.get());
        assert_eq!(all.count(), 2);
        drop(idle);
        assert_eq!(all.count(), 2, "a lost place is not given back twice");
        drop(work);
        let _fourth = all.admit(1, ROOMS).unwrap();
        assert!(working.seat.lost.get() && !third.seat.lost.get());
        // Other users' idle connections are theirs.
        let _bob = all.admit(2, ROOMS).unwrap();
        assert!(all.admit(3, ROOMS).is_none());
    }

    #[test]
    fn root_always_gets_in_while_one_of_its_connections_is_idle() {
        let all = Connections::default();
        let places: Vec<Place> = (0..50).map(|_| all.admit(0, ROOMS).unwrap()).collect();
        assert_eq!(all.count(), 4);
        drop(places);
        assert_eq!(all.count(), 0);
    }
}
