//! What streams and subjects are called.
//!
//! A name may hold dots, which separate the tokens of a subject and are in no stream's name; they are written as `=`,
//! which no name holds. All else that a name may hold, a subject and a stream's name may hold too.

use crate::name::Name;

/// The names of one store.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
}

/// A name as a token of a subject.
fn token(name: &Name) -> String {
    name.as_str().replace('.', "=")
}

fn name(token: &str) -> Option<Name> {
    Name::new(&token.replace('=', ".")).ok()
}

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The stream of a topic.
    pub(super) fn topic_stream(&self, topic: &Name) -> String {
        format!("{}{}", self.topic_streams(), token(topic))
    }

    /// What the names of all streams of topics begin with. No prefix holds a `+`: there is no other reading.
    fn topic_streams(&self) -> String {
        format!("{}+topic+", self.prefix)
    }

    /// The topic of a stream.
    pub(super) fn topic_of(&self, stream: &str) -> Option<Name> {
        name(stream.strip_prefix(&self.topic_streams())?)
    }

    /// What events of a topic are published to.
    pub(super) fn topic(&self, topic: &Name) -> String {
        format!("{}.topic.{}", self.prefix, token(topic))
    }

    /// What the retry of one dead letter is published to, once.
    pub(super) fn retry(&self, topic: &Name, letter: u64) -> String {
        format!("{}.retry.{}.{letter}", self.prefix, token(topic))
    }

    /// All subjects of a topic's stream.
    pub(super) fn of_topic(&self, topic: &Name) -> Vec<String> {
        vec![self.topic(topic), format!("{}.retry.{}.*", self.prefix, token(topic))]
    }

    /// What any event may be published to.
    pub(super) fn any_topic(&self) -> String {
        format!("{}.topic.*", self.prefix)
    }

    /// The stream of all journals.
    pub(super) fn groups_stream(&self) -> String {
        format!("{}+groups", self.prefix)
    }

    /// A group's journal.
    pub(super) fn group(&self, topic: &Name, group: &Name) -> String {
        format!("{}.group.{}.{}", self.prefix, token(topic), token(group))
    }

    /// The journals of a topic's groups.
    pub(super) fn groups_of(&self, topic: &Name) -> String {
        format!("{}.group.{}.*", self.prefix, token(topic))
    }

    /// The group of a journal.
    pub(super) fn group_of(subject: &str) -> Option<Name> {
        name(subject.rsplit_once('.')?.1)
    }

    /// All journals.
    pub(super) fn all_groups(&self) -> String {
        format!("{}.group.>", self.prefix)
    }

    /// The stream of dead letters.
    pub(super) fn dead_stream(&self) -> String {
        format!("{}+dead", self.prefix)
    }

    /// What one burial is published to, once: an event may be buried again when its group was made to go on from
    /// elsewhere, which the epoch says.
    pub(super) fn dead(&self, topic: &Name, group: &Name, (epoch, id): (u64, u64)) -> String {
        format!("{}.dead.{}.{}.{epoch}.{id}", self.prefix, token(topic), token(group))
    }

    /// Epoch and event of a burial.
    pub(super) fn burial_of(subject: &str) -> Option<(u64, u64)> {
        let mut tokens = subject.rsplit('.');
        let id = tokens.next()?.parse().ok()?;
        Some((tokens.next()?.parse().ok()?, id))
    }

    /// All dead letters.
    pub(super) fn all_dead(&self) -> String {
        format!("{}.dead.>", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_from_streams_and_subjects() {
        let names = Names::new("shop-1");
        for text in ["orders", "orders.created", "..", "заказы", "a-b_c:d", &".".repeat(80)] {
            let name = Name::new(text).unwrap();
            assert_eq!(names.topic_of(&names.topic_stream(&name)), Some(name.clone()));
            assert_eq!(Names::group_of(&names.group(&name, &name)), Some(name.clone()));
            assert!(names.topic_stream(&name).len() <= 255);
            assert_eq!(names.group(&name, &name).split('.').count(), 4);
            assert_eq!(Names::burial_of(&names.dead(&name, &name, (3, 7))), Some((3, 7)));
        }
        assert_eq!(names.topic_stream(&Name::new("orders.created").unwrap()), "shop-1+topic+orders=created");
    }

    #[test]
    fn a_store_knows_no_topics_of_another() {
        let (one, other) = (Names::new("a"), Names::new("a-topic"));
        let name = Name::new("orders").unwrap();
        assert_eq!(one.topic_of(&other.topic_stream(&name)), None);
        assert_eq!(one.topic_of(&one.groups_stream()), None);
        assert_eq!(one.topic_of("a+topic+"), None);
    }
}
