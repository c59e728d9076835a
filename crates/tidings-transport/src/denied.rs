//! The deny list: node ids and serial numbers of certificates.

use std::collections::HashSet;

use crate::tls::PeerIdentity;

/// Who may not connect, whatever certificate they show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DenyList {
    entries: HashSet<String>,
    serials: HashSet<String>,
}

impl DenyList {
    /// A list of node ids and of serial numbers in hexadecimal digits, in any case, with or without colons and
    /// leading zeros. An entry that could be either counts as both.
    pub(crate) fn new<S: AsRef<str>>(entries: impl IntoIterator<Item = S>) -> Self {
        let mut list = Self::default();
        for entry in entries {
            let entry = entry.as_ref().trim();
            list.entries.insert(entry.to_owned());
            list.serials.extend(serial(entry));
        }
        list
    }

    /// Whether a peer is on it.
    pub(crate) fn denies(&self, peer: &PeerIdentity) -> bool {
        self.entries.contains(peer.node.as_str())
            || serial(&peer.serial).is_some_and(|serial| self.serials.contains(&serial))
    }
}

fn serial(text: &str) -> Option<String> {
    let text = text.strip_prefix("0x").unwrap_or(text);
    let digits: String = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
    let sound = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    sound.then(|| digits.trim_start_matches('0').to_owned())
}

#[cfg(test)]
mod tests {
    use tidings_proto::id::NodeId;

    use super::*;

    fn peer(node: &str, serial: &str) -> PeerIdentity {
        PeerIdentity { node: NodeId::new(node).unwrap(), serial: serial.to_owned() }
    }

    #[test]
    fn nodes_are_denied_by_id() {
        let list = DenyList::new(["n1", " n2 "]);
        assert!(list.denies(&peer("n1", "01")) && list.denies(&peer("n2", "01")));
        assert!(!list.denies(&peer("n3", "01")) && !list.denies(&peer("N1", "01")));
    }

    #[test]
    fn certificates_are_denied_by_serial_number_in_any_spelling() {
        for spelling in ["0a1b2c", "A1:B2:C", "0x0A1B2C", "00:0a:1b:2c"] {
            assert!(DenyList::new([spelling]).denies(&peer("n1", "0a1b2c")), "{spelling}");
        }
        assert!(!DenyList::new(["0a1b2d"]).denies(&peer("n1", "0a1b2c")));
    }

    #[test]
    fn an_empty_list_denies_nobody() {
        assert!(!DenyList::default().denies(&peer("n1", "00")));
        assert!(!DenyList::new([""]).denies(&peer("n1", "00")));
    }
}
