use proptest::prelude::*;

use super::*;
use crate::relay::{Acked, Relayed};

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn members(count: usize, name: &str) -> MemberSet {
    let member = |n: usize| NamedMember {
        origin: Origin { node: node(name), incarnation: Incarnation(u64::MAX - n as u64) },
        address: "[2001:db8::ffff:ffff:ffff:ffff]:65535".parse().unwrap(),
        ended: n % 2 == 1,
    };
    MemberSet { version: 3, members: (0..count).map(member).collect() }
}

fn hello() -> Hello {
    Hello {
        protocols: (1, 1),
        cluster: "demo".into(),
        node: node("n1"),
        incarnation: Incarnation(7),
        log: LogId(0x0102_0304_0506_0708),
        hash_version: 1,
        lanes: Lanes::default(),
        address: "127.0.0.1:7401".parse().unwrap(),
        zone: "z".into(),
        release: "0.1.0".into(),
        wall_ms: 1_700_000_000_000,
        age_ms: 70_000,
        members: MemberSet { version: 1, members: vec![] },
    }
}

/// One of each frame, and of each refusal.
fn samples() -> Vec<Control> {
    let follow =
        Follow { incarnation: Incarnation(7), lane: Lanes::default().lane(3).unwrap(), from: 70_000 };
    let address = "127.0.0.1:7401".parse().unwrap();
    let refusals = [
        Refusal::Cluster("demo".into()),
        Refusal::Identity(node("n1")),
        Refusal::Protocol(1, 2),
        Refusal::HashVersion(1),
        Refusal::DuplicateNode { node: node("n1"), address },
        Refusal::Incarnation(Incarnation(8)),
        Refusal::Denied,
        Refusal::Leaving,
    ];
    let mut all = vec![
        Control::Hello(hello()),
        Control::Follow(follow),
        Control::Resume(1),
        Control::Reset(251),
        Control::Probe(70_000),
        Control::Heartbeat(Heartbeat { echo: 5, members: 2, heads: vec![0, 1, 250, 251] }),
        Control::Ack(9),
        Control::Goodbye(vec![1, 2, 3, 4]),
        Control::Members(members(1, "n2")),
        Control::Caches(vec!["users".into(), "orders".into()]),
        Control::Clock(ClockReading { echo: 5, wall_ms: 1_700_000_000_000 }),
        Control::Ages(vec![Age { back: 300, micros: 4_000 }, Age { back: 0, micros: 7 }]),
    ];
    all.extend(of_relays());
    all.extend(refusals.map(Control::Refused));
    all
}

/// One of each frame about others' logs.
fn of_relays() -> [Control; 5] {
    let lane = Lanes::default().lane(3).unwrap();
    let origin = |name, life| Origin { node: node(name), incarnation: Incarnation(life) };
    let confirmed = Relayed::Confirmed { heads: vec![0, 1, 250, 251], age_us: 900 };
    let origins = vec![(0, confirmed), (300, Relayed::Ended(vec![1, 2]))];
    let acked = vec![Acked { follower: origin("n2", 8), lane, applied: 70_000 }];
    [
        Control::FollowOf(FollowOf { number: 2, origin: origin("n3", 7), lane, from: 70_000 }),
        Control::Lacking(251),
        Control::Confirmed(Confirmed { echo: 5, members: 2, origins }),
        Control::PassedUp(PassedUp { members: 2, origin: origin("n3", 7), acked }),
        Control::Relays(true),
    ]
}

fn decode_all(mut bytes: BytesMut) -> Result<Vec<Control>, FrameError> {
    let mut controls = Vec::new();
    while let Some(frame) = take(&mut bytes)? {
        controls.push(Control::decode(&frame)?);
    }
    assert!(bytes.is_empty());
    Ok(controls)
}

fn framed(kind: FrameType, body: &[u8]) -> BytesMut {
    BytesMut::from(&[&header(kind, body.len())[..], body].concat()[..])
}

#[test]
fn each_frame_is_read_as_it_was_written() {
    let samples = samples();
    let bytes: Vec<u8> = samples.iter().flat_map(Control::encode).collect();
    assert_eq!(decode_all(BytesMut::from(&bytes[..])).unwrap(), samples);
}

#[test]
fn the_samples_hold_every_control_frame() {
    let samples = samples();
    let others = [FrameType::Events, FrameType::Ask, FrameType::Answer];
    for kind in FrameType::KNOWN {
        assert!(others.contains(&kind) || samples.iter().any(|sample| sample.kind() == kind), "{kind:?}");
    }
}

#[test]
fn bytes_on_the_wire_are_the_same_in_every_release() {
    let golden: &[&[u8]] = &[
        b"\x01\x01\x36\x00\x00\x00\x01\x01\x04demo\x02n1\x07\xfd\x08\x07\x06\x05\x04\x03\x02\x01\x01\x04\x00\x7f\x00\x00\x01\xfb\xe9\x1c\x01z\x050.1.0\xfd\x00\x68\xe5\xcf\x8b\x01\x00\x00\xfc\x70\x11\x01\x00\x01\x00",
        b"\x01\x02\x07\x00\x00\x00\x07\x03\xfc\x70\x11\x01\x00",
        b"\x01\x03\x01\x00\x00\x00\x01",
        b"\x01\x04\x03\x00\x00\x00\xfb\xfb\x00",
        b"\x01\x06\x05\x00\x00\x00\xfc\x70\x11\x01\x00",
        b"\x01\x07\x09\x00\x00\x00\x05\x02\x04\x00\x01\xfa\xfb\xfb\x00",
        b"\x01\x08\x01\x00\x00\x00\x09",
        b"\x01\x09\x05\x00\x00\x00\x04\x01\x02\x03\x04",
        b"\x01\x0b\x23\x00\x00\x00\x03\x01\x02n2\xfd\xff\xff\xff\xff\xff\xff\xff\xff\x01\x20\x01\x0d\xb8\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfb\xff\xff\x00",
        b"\x01\x80\x0e\x00\x00\x00\x02\x05users\x06orders",
        b"\x01\x81\x0a\x00\x00\x00\x05\xfd\x00\x68\xe5\xcf\x8b\x01\x00\x00",
        b"\x01\x82\x09\x00\x00\x00\x02\xfb\x2c\x01\xfb\xa0\x0f\x00\x07",
        b"\x01\x85\x0b\x00\x00\x00\x02\x02n3\x07\x03\xfc\x70\x11\x01\x00",
        b"\x01\x86\x03\x00\x00\x00\xfb\xfb\x00",
        b"\x01\x87\x16\x00\x00\x00\x05\x02\x02\x00\x00\x04\x00\x01\xfa\xfb\xfb\x00\xfb\x84\x03\xfb\x2c\x01\x01\x02\x01\x02",
        b"\x01\x88\x10\x00\x00\x00\x02\x02n3\x07\x01\x02n2\x08\x03\xfc\x70\x11\x01\x00",
        b"\x01\x89\x01\x00\x00\x00\x01",
        b"\x01\x0a\x06\x00\x00\x00\x00\x04demo",
        b"\x01\x0a\x04\x00\x00\x00\x01\x02n1",
        b"\x01\x0a\x03\x00\x00\x00\x02\x01\x02",
        b"\x01\x0a\x02\x00\x00\x00\x03\x01",
        b"\x01\x0a\x0c\x00\x00\x00\x04\x02n1\x00\x7f\x00\x00\x01\xfb\xe9\x1c",
        b"\x01\x0a\x02\x00\x00\x00\x05\x08",
        b"\x01\x0a\x01\x00\x00\x00\x06",
        b"\x01\x0a\x01\x00\x00\x00\x07",
    ];
    let encoded: Vec<_> = samples().iter().map(Control::encode).collect();
    for (encoded, golden) in encoded.iter().zip(golden) {
        assert_eq!(encoded, golden, "{}", golden.escape_ascii());
    }
    assert_eq!(encoded.len(), golden.len());
    assert_eq!(header(FrameType::Events, 0x0001_0203), *b"\x01\x05\x03\x02\x01\x00");
}

#[test]
fn a_frame_in_pieces_is_taken_when_its_last_byte_is_there() {
    for sample in samples() {
        let bytes = sample.encode();
        let mut buffer = BytesMut::new();
        for byte in &bytes[..bytes.len() - 1] {
            buffer.extend_from_slice(&[*byte]);
            assert_eq!(take(&mut buffer).unwrap(), None);
        }
        buffer.extend_from_slice(&bytes[bytes.len() - 1..]);
        let frame = take(&mut buffer).unwrap().unwrap();
        assert_eq!(Control::decode(&frame).unwrap(), sample);
    }
}

#[test]
fn an_oversized_frame_is_refused_by_its_header() {
    let mut longest = BytesMut::from(&header(FrameType::Events, FRAME_BYTES_MAX)[..]);
    assert_eq!(take(&mut longest).unwrap(), None);
    for length in [FRAME_BYTES_MAX + 1, u32::MAX as usize] {
        let mut buffer = BytesMut::from(&header(FrameType::Events, length)[..]);
        assert!(matches!(take(&mut buffer), Err(FrameError::TooLong(bytes)) if bytes == length));
        assert!(buffer.capacity() < 1_000, "a refused frame made room for itself");
    }
}

#[test]
fn an_unknown_type_is_refused_below_128_and_skipped_above() {
    for kind in [0, 12, 127] {
        let mut buffer = BytesMut::from(&[PROTOCOL_VERSION, kind, 0, 0, 0, 0][..]);
        assert!(matches!(take(&mut buffer), Err(FrameError::Type(got)) if got == kind));
    }
    let mut bytes = Vec::new();
    for kind in [190, 255, 200] {
        bytes.extend_from_slice(&[PROTOCOL_VERSION, kind, 2, 0, 0, 0, 0xff, 0xff]);
    }
    assert_eq!(take(&mut BytesMut::from(&bytes[..])).unwrap(), None);
    bytes.extend_from_slice(&Control::Ack(4).encode());
    assert_eq!(decode_all(BytesMut::from(&bytes[..])).unwrap(), [Control::Ack(4)]);
}

#[test]
fn another_version_is_refused() {
    for version in [0, PROTOCOL_VERSION + 1, 255] {
        let mut bytes = Control::Ack(4).encode();
        bytes[0] = version;
        let result = take(&mut BytesMut::from(&bytes[..]));
        assert!(matches!(result, Err(FrameError::Version(got)) if got == version));
    }
}

#[test]
fn bytes_left_over_in_a_body_are_refused() {
    for sample in samples() {
        let bytes = sample.encode();
        let body = [&bytes[HEADER_BYTES..], &[0]].concat();
        let frame = take(&mut framed(sample.kind(), &body)).unwrap().unwrap();
        let result = Control::decode(&frame);
        assert!(matches!(result, Err(FrameError::Body(_, CodecError::Trailing(1)))), "{result:?}");
    }
}

#[test]
fn a_truncated_body_is_refused() {
    for sample in samples() {
        let bytes = sample.encode();
        for end in HEADER_BYTES..bytes.len() {
            let frame = take(&mut framed(sample.kind(), &bytes[HEADER_BYTES..end])).unwrap().unwrap();
            let result = Control::decode(&frame);
            assert!(matches!(result, Err(FrameError::Body(..))), "{sample:?} cut at {end}: {result:?}");
        }
    }
}

#[test]
fn a_batch_of_events_is_not_a_control_frame() {
    let frame = take(&mut framed(FrameType::Events, b"")).unwrap().unwrap();
    assert!(matches!(Control::decode(&frame), Err(FrameError::Type(5))));
}

#[test]
fn as_many_members_as_allowed_with_the_longest_names_fit_a_frame() {
    let name = "n".repeat(crate::id::NAME_BYTES_MAX);
    for sample in [
        Control::Members(members(MEMBERS_MAX, &name)),
        Control::Hello(Hello { members: members(MEMBERS_MAX, &name), ..hello() }),
    ] {
        let bytes = sample.encode();
        assert!(bytes.len() <= HEADER_BYTES + FRAME_BYTES_MAX);
        assert_eq!(decode_all(BytesMut::from(&bytes[..])).unwrap(), [sample]);
    }
}

#[test]
fn long_texts_and_too_many_caches_are_refused() {
    let long = || "x".repeat(TEXT_BYTES_MAX + 1);
    for sample in [
        Control::Hello(Hello { zone: long(), ..hello() }),
        Control::Hello(Hello { release: long(), ..hello() }),
        Control::Caches(vec![String::new(), long()]),
    ] {
        let result = decode_all(BytesMut::from(&sample.encode()[..]));
        assert!(
            matches!(result, Err(FrameError::LongText(_, length)) if length == TEXT_BYTES_MAX + 1),
            "{result:?}"
        );
    }
    let names = |count| Control::Caches(vec!["x".repeat(TEXT_BYTES_MAX); count]);
    assert_eq!(decode_all(BytesMut::from(&names(CACHES_MAX).encode()[..])).unwrap(), [names(CACHES_MAX)]);
    let result = decode_all(BytesMut::from(&names(CACHES_MAX + 1).encode()[..]));
    assert!(matches!(result, Err(FrameError::TooMany(FrameType::Caches, _))), "{result:?}");
}

#[test]
fn more_members_than_allowed_are_refused() {
    for sample in [
        Control::Members(members(MEMBERS_MAX + 1, "n")),
        Control::Hello(Hello { members: members(MEMBERS_MAX + 1, "n"), ..hello() }),
    ] {
        let result = decode_all(BytesMut::from(&sample.encode()[..]));
        assert!(
            matches!(result, Err(FrameError::TooMany(_, count)) if count == MEMBERS_MAX + 1),
            "{result:?}"
        );
    }
}

#[test]
fn more_than_a_frame_holds_of_others_logs_is_refused() {
    let name = "n".repeat(crate::id::NAME_BYTES_MAX);
    let follower = Origin { node: node(&name), incarnation: Incarnation(u64::MAX) };
    let acked =
        Acked { follower: follower.clone(), lane: Lanes::default().lane(0).unwrap(), applied: u64::MAX };
    let passed = |count| {
        let acked = vec![acked.clone(); count];
        Control::PassedUp(PassedUp { members: u64::MAX, origin: follower.clone(), acked })
    };
    let confirmed = |count| {
        let origins = vec![(u32::MAX, Relayed::Ended(vec![u64::MAX; 4])); count];
        Control::Confirmed(Confirmed { echo: 1, members: 1, origins })
    };
    let samples: [(usize, &dyn Fn(usize) -> Control); 2] = [(ACKED_MAX, &passed), (MEMBERS_MAX, &confirmed)];
    for (most, sample) in samples {
        let bytes = sample(most).encode();
        assert_eq!(decode_all(BytesMut::from(&bytes[..])).unwrap(), [sample(most)]);
        let result = decode_all(BytesMut::from(&sample(most + 1).encode()[..]));
        assert!(matches!(result, Err(FrameError::TooMany(_, count)) if count == most + 1), "{result:?}");
    }
}

#[test]
fn a_claimed_list_is_not_allocated_before_its_elements_are_there() {
    // A list of 2^60 heads, members or names, claimed in nine bytes. Every element takes at least one byte on the
    // wire, so that a list cannot be longer than its body.
    let claim = b"\xfd\x00\x00\x00\x00\x00\x00\x00\x10";
    for (kind, before) in [
        (FrameType::Goodbye, &b""[..]),
        (FrameType::Heartbeat, b"\x01\x01"),
        (FrameType::Members, b"\x01"),
        (FrameType::Caches, b""),
        (FrameType::Ages, b""),
        (FrameType::Confirmed, b"\x01\x01"),
        (FrameType::Confirmed, b"\x01\x01\x01\x00\x00"),
        (FrameType::PassedUp, b"\x01\x02n3\x07"),
    ] {
        let body = [before, claim].concat();
        let frame = take(&mut framed(kind, &body)).unwrap().unwrap();
        assert!(matches!(Control::decode(&frame), Err(FrameError::Body(..))), "{kind:?}");
    }
}

#[test]
fn names_and_lanes_that_cannot_be_are_refused() {
    let encoded = Control::Hello(hello()).encode();
    let at = |what: &[u8]| encoded.windows(what.len()).position(|window| window == what).unwrap();
    let (node_at, lanes_at) = (at(b"\x02n1") + 1, at(b"\x01\x04\x00\x7f") + 1);
    for (at, value) in [(node_at, b'/'), (node_at, b' '), (lanes_at, 0), (lanes_at, 3), (lanes_at, 128)] {
        let mut bytes = encoded.clone();
        bytes[at] = value;
        let result = decode_all(BytesMut::from(&bytes[..]));
        assert!(matches!(result, Err(FrameError::Body(..))), "{value} at {at}: {result:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(frame)) = take(&mut buffer) {
            let _ = Control::decode(&frame).is_ok();
        }
    }

    #[test]
    fn arbitrary_bodies_never_panic(
        kind in prop::sample::select(FrameType::KNOWN.to_vec()),
        body in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let frame = take(&mut framed(kind, &body)).unwrap().unwrap();
        let _ = Control::decode(&frame).is_ok();
    }

    #[test]
    fn sequences_of_any_size_are_read_as_written(heads in prop::collection::vec(any::<u64>(), 0..65), n: u64) {
        let samples = vec![
            Control::Goodbye(heads.clone()),
            Control::Heartbeat(Heartbeat { echo: n, members: n, heads }),
            Control::Reset(n),
        ];
        let bytes: Vec<u8> = samples.iter().flat_map(Control::encode).collect();
        prop_assert_eq!(decode_all(BytesMut::from(&bytes[..])).unwrap(), samples);
    }
}
