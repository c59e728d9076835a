use chitchat::{ChitchatMessage, Deserializable as _, Serializable as _};
use proptest::prelude::*;

use super::*;
use crate::attest::tests::record;

fn identity(node: &str, incarnation: u64) -> Identity {
    let record = record(node, incarnation);
    Identity { origin: record.origin, address: record.address }
}

fn seen(node: &str, heartbeat: u64) -> Seen {
    Seen { node: identity(node, 1), heartbeat, version: 1 }
}

fn change(node: &str, record: Option<(u64, String)>) -> Change {
    Change { node: identity(node, 1), from: 0, record }
}

fn messages() -> [Message; 4] {
    let digest = vec![seen("a", 7), seen("b", 9)];
    let delta = vec![change("a", Some((1, "x".repeat(3_000)))), change("b", None)];
    [
        Message::Syn { cluster: "demo".into(), digest: digest.clone() },
        Message::SynAck { digest, delta: delta.clone() },
        Message::Ack { delta },
        Message::BadCluster,
    ]
}

/// Plain delta bytes as a message of one block per 65,535 bytes, compressed or not.
fn ack(plain: &[u8], compress: bool) -> Vec<u8> {
    let mut out = Message::Ack { delta: Vec::new() }.encode();
    out.pop();
    for block in plain.chunks(BLOCK_BYTES_MAX) {
        let block = if compress { zstd::bulk::compress(block, 0).unwrap() } else { block.to_vec() };
        out.push(if compress { 1 } else { 2 });
        out.extend((block.len() as u16).to_le_bytes());
        out.extend(block);
    }
    out.push(0);
    out
}

type Writer<'a> = &'a dyn Fn(&mut Vec<u8>);

fn operations(parts: &[Writer<'_>]) -> Vec<u8> {
    let mut plain = Vec::new();
    parts.iter().for_each(|part| part(&mut plain));
    plain
}

fn node(name: &str, collected: u64) -> impl Fn(&mut Vec<u8>) {
    let id = identity(name, 1);
    move |out| {
        out.push(0);
        write_node(&id, out);
        out.extend(collected.to_le_bytes());
        out.extend(0_u64.to_le_bytes());
    }
}

fn set(key: &'static str, version: u64, status: u8) -> impl Fn(&mut Vec<u8>) {
    move |out| {
        out.push(1);
        write_text(key, out);
        write_text("value", out);
        out.extend(version.to_le_bytes());
        out.push(status);
    }
}

#[test]
fn what_is_written_is_read_back_here_and_by_chitchat() {
    for message in messages() {
        let bytes = message.encode();
        let mut rest = &bytes[..];
        ChitchatMessage::deserialize(&mut rest).unwrap();
        assert!(rest.is_empty());
        assert_eq!(Message::parse(&bytes, &mut Unpacker::default()), Ok(Parsed { message, omitted: 0 }));
    }
}

#[test]
fn what_chitchat_writes_is_read() {
    for message in messages()
        .into_iter()
        .filter(|message| !matches!(message, Message::Ack { .. } | Message::SynAck { .. }))
    {
        let bytes = message.encode();
        let theirs = ChitchatMessage::deserialize(&mut &bytes[..]).unwrap().serialize_to_vec();
        assert_eq!(Message::parse(&theirs, &mut Unpacker::default()).unwrap().message, message);
    }
}

#[test]
fn compressed_blocks_are_read() {
    let plain = operations(&[&node("a", 0), &set(RECORD_KEY, 1, 0)]);
    let parsed = Message::parse(&ack(&plain, true), &mut Unpacker::default()).unwrap();
    let delta = vec![change("a", Some((1, "value".into())))];
    assert_eq!(parsed, Parsed { message: Message::Ack { delta }, omitted: 0 });
}

#[test]
fn changes_that_no_member_makes_are_left_out() {
    let raise = |out: &mut Vec<u8>| {
        out.push(2);
        out.extend(u64::MAX.to_le_bytes());
    };
    let cases: [(Vec<u8>, usize, usize); 6] = [
        (operations(&[&node("a", 0), &set("other", 1, 0)]), 1, 1),
        (operations(&[&node("a", 0), &set(RECORD_KEY, 1, 1)]), 1, 1),
        (operations(&[&node("a", 0), &set(RECORD_KEY, 0, 0)]), 1, 1),
        (operations(&[&node("a", 0), &set(RECORD_KEY, 1, 0), &set(RECORD_KEY, 2, 0)]), 1, 1),
        (operations(&[&node("a", 0), &raise]), 1, 1),
        (operations(&[&node("b", 0), &node("a", 9), &set(RECORD_KEY, 1, 0)]), 1, 2),
    ];
    for (plain, changes, omitted) in cases {
        let parsed = Message::parse(&ack(&plain, false), &mut Unpacker::default()).unwrap();
        let Message::Ack { delta } = parsed.message else { panic!("an Ack") };
        assert_eq!((delta.len(), parsed.omitted), (changes, omitted));
        assert!(delta.iter().all(|change| change.record.as_ref().is_none_or(|record| record.0 == 1)));
        assert_ne!(delta[0].node, identity("z", 1));
    }
}

#[test]
fn a_change_before_any_node_or_two_of_one_node_are_malformed() {
    let orphan = operations(&[&set(RECORD_KEY, 1, 0)]);
    let twice = operations(&[&node("a", 0), &node("a", 0)]);
    for plain in [orphan, twice] {
        assert_eq!(Message::parse(&ack(&plain, false), &mut Unpacker::default()), Err(Reason::Malformed));
    }
}

#[test]
fn a_frame_that_inflates_is_refused() {
    let zeros = vec![0; DELTA_BYTES_MAX + 1];
    assert_eq!(Message::parse(&ack(&zeros, true), &mut Unpacker::default()), Err(Reason::Inflation));
}

#[test]
fn a_frame_that_is_too_long_is_refused_unread() {
    assert_eq!(
        Message::parse(&vec![0; FRAME_BYTES_MAX + 1], &mut Unpacker::default()),
        Err(Reason::FrameSize)
    );
}

#[test]
fn too_many_nodes_are_refused_before_they_are_read() {
    let mut bytes = Message::Syn { cluster: "demo".into(), digest: Vec::new() }.encode();
    bytes[4..6].copy_from_slice(&(DIGEST_NODES_MAX as u16 + 1).to_le_bytes());
    assert_eq!(Message::parse(&bytes, &mut Unpacker::default()), Err(Reason::Capacity));
}

#[test]
fn truncated_and_padded_frames_are_malformed() {
    for message in messages() {
        let bytes = message.encode();
        for length in 0..bytes.len() {
            assert_eq!(
                Message::parse(&bytes[..length], &mut Unpacker::default()),
                Err(Reason::Malformed),
                "{length} of {message:?}"
            );
        }
        assert_eq!(
            Message::parse(&[&bytes[..], &[0]].concat(), &mut Unpacker::default()),
            Err(Reason::Malformed)
        );
    }
}

#[test]
fn heartbeats_are_replaced_in_place() {
    let [syn, syn_ack, ack, _] = messages();
    for message in [syn, syn_ack, ack] {
        let mut bytes = message.encode();
        replace_heartbeats(&mut bytes, |node| (node.origin.node.as_str() == "b").then_some(99)).unwrap();
        let mut expected = message;
        if let Message::Syn { digest, .. } | Message::SynAck { digest, .. } = &mut expected {
            digest[1].heartbeat = 99;
        }
        assert_eq!(Message::parse(&bytes, &mut Unpacker::default()).unwrap().message, expected);
    }
}

#[test]
fn an_entry_of_a_digest_has_the_size_that_is_reckoned_with() {
    let mut v6 = seen("node", 1);
    v6.node.address = "[::1]:7".parse().unwrap();
    for entry in [seen("n1", 1), v6] {
        let mut out = Vec::new();
        write_digest(std::slice::from_ref(&entry), &mut out);
        assert_eq!(out.len(), 2 + entry.node.digest_bytes());
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2_000), kind in 0..4_u8) {
        let frame = [&MAGIC.to_le_bytes()[..], &[VERSION, kind], &bytes].concat();
        if let Ok(parsed) = Message::parse(&frame, &mut Unpacker::default()) {
            // What is accepted is written as something that chitchat accepts too.
            prop_assert!(ChitchatMessage::deserialize(&mut &parsed.message.encode()[..]).is_ok());
        }
    }

    #[test]
    fn any_change_of_a_sound_frame_is_parsed_or_refused(at in 0..400_usize, byte in any::<u8>(), which in 0..4_usize) {
        let mut frame = messages()[which].encode();
        let at = at % frame.len();
        frame[at] = byte;
        if let Ok(parsed) = Message::parse(&frame, &mut Unpacker::default()) {
            prop_assert!(ChitchatMessage::deserialize(&mut &parsed.message.encode()[..]).is_ok());
        }
    }
}
