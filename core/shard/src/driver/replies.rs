//! Where the answers of calls under way go, by token.

use crate::call::Answer;
use crate::handle::ReplyTo;

/// A slab: tokens are reused only after their answer, and name the place directly.
#[derive(Debug, Default)]
pub(super) struct Replies {
    places: Vec<Option<ReplyTo>>,
    free: Vec<u32>,
}

impl Replies {
    pub(super) fn insert(&mut self, reply: ReplyTo) -> u64 {
        if let Some(place) = self.free.pop() {
            self.places[place as usize] = Some(reply);
            return u64::from(place);
        }
        self.places.push(Some(reply));
        self.places.len() as u64 - 1
    }

    /// Deliver. The token may have been given up by [`Replies::closed`] before.
    pub(super) fn send(&mut self, token: u64, answer: Answer) {
        if let Some(reply) = self.take(token) {
            reply.send(answer);
        }
    }

    pub(super) fn send_all(&mut self, answer: impl Fn() -> Answer) {
        self.free.clear();
        for reply in self.places.drain(..).flatten() {
            reply.send(answer());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.len() == self.free.len()
    }

    /// Tokens of calls whose caller went away. They stay taken until their answer comes.
    pub(super) fn closed(&self) -> Vec<u64> {
        let closed = |reply: &Option<ReplyTo>| reply.as_ref().is_some_and(ReplyTo::is_closed);
        (0..)
            .zip(&self.places)
            .filter(|(_, reply)| closed(reply))
            .map(|(token, _)| token)
            .collect()
    }

    /// Give up a token whose call the core has dropped.
    pub(super) fn forget(&mut self, token: u64) {
        drop(self.take(token));
    }

    fn take(&mut self, token: u64) -> Option<ReplyTo> {
        let place = usize::try_from(token).ok()?;
        let reply = self.places.get_mut(place)?.take()?;
        self.free.push(place as u32);
        Some(reply)
    }
}
