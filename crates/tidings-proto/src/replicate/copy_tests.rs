use proptest::prelude::*;

use super::*;

const CACHE: CacheId = CacheId(0x0403_0201);

fn at(time: u64, author: u64) -> WriteStamp {
    WriteStamp { at: Stamp(time), author }
}

fn question(body: &[u8]) -> Result<Question<'_>, Unsound> {
    let (cache, question) = Question::decode(body)?;
    assert_eq!(cache, CACHE);
    Ok(question)
}

#[test]
fn bytes_of_questions_are_the_same_in_every_release() {
    let list = Question::List { slots: SlotSet::from_bits(5), part: 7, after: Some(9) };
    let refused = |of| Question::Refused { stamp: at(1, 2), of };
    let golden: [(Question<'_>, &[u8]); 6] = [
        (Question::Digests, b"\x01\x01\x02\x03\x04"),
        (list, b"\x02\x01\x02\x03\x04\x05\0\0\0\0\0\0\0\x07\x01\x09\0\0\0\0\0\0\0"),
        (Question::Fetch(vec![b"k1", b""]), b"\x03\x01\x02\x03\x04\x02\x02k1\x00"),
        (refused(Changed::Key(b"k")), b"\x04\x01\x02\x03\x04\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x00k"),
        (refused(Changed::Prefix("p")), b"\x04\x01\x02\x03\x04\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x02p"),
        (refused(Changed::All), b"\x04\x01\x02\x03\x04\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03"),
    ];
    for (asked, bytes) in golden {
        assert_eq!(asked.encode(CACHE)[..], *bytes, "{asked:?}");
        assert_eq!(question(bytes), Ok(asked));
    }
}

#[test]
fn bytes_of_answers_are_the_same_in_every_release() {
    let listing = Listing { stamp: at(1, 2), removed: true, key: b"k" };
    let fetched = Fetched { stamp: at(1, 2), key: b"k", value: b"v" };
    let golden: [(Answer<'_>, &[u8]); 4] = [
        (
            Answer::List(Listed { more: true, writes: vec![listing] }),
            b"\x02\x01\x01\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01\x01k",
        ),
        (
            Answer::Fetch { schema: 300, values: vec![fetched] },
            b"\x03\xac\x02\x01\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01k\x01v",
        ),
        (Answer::Noted, b"\x04"),
        (Answer::Absent, b"\x05"),
    ];
    for (answer, bytes) in golden {
        assert_eq!(answer.encode()[..], *bytes, "{answer:?}");
        assert_eq!(Answer::decode(bytes), Ok(answer));
    }
    let mut digests = Digests { sums: [2; SLOTS], floors: [at(3, 4); SLOTS] };
    digests.sums[63] = 5;
    let answer = Answer::Digests(Box::new(digests));
    let bytes = answer.encode();
    assert_eq!(bytes.len(), 1 + 24 * SLOTS);
    let first = b"\x01\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0";
    assert_eq!(bytes[..25], first[..]);
    assert_eq!(Answer::decode(&bytes), Ok(answer));
}

#[test]
fn a_list_has_the_first_writes_by_hash_and_says_whether_there_are_more() {
    let keys: Vec<_> = (0..2 * LISTED_MAX as u64).map(|number| number.to_le_bytes()).collect();
    let mut list = ListOf::default();
    for (number, key) in keys.iter().enumerate().rev() {
        list.add(number as u64, Listing { stamp: at(number as u64, 1), removed: false, key });
    }
    let Answer::List(listed) = list.finish() else { panic!("a list") };
    assert!(listed.more);
    let expected: Vec<&[u8]> = keys[..LISTED_MAX].iter().map(|key| &key[..]).collect();
    assert_eq!(listed.writes.iter().map(|write| write.key).collect::<Vec<_>>(), expected);
    assert_eq!(listed.end(CACHE), Some(key_hash(CACHE, expected[LISTED_MAX - 1])));
    assert!(Answer::List(listed).encode().len() <= ANSWER_BYTES_MAX);
}

#[test]
fn keys_of_one_hash_are_listed_together_in_the_order_of_their_bytes() {
    let keys: Vec<_> = (0..2 * LISTED_MAX as u32).map(u32::to_be_bytes).collect();
    let list_of = |hash: &dyn Fn(usize) -> usize| {
        let mut list = ListOf::default();
        for (number, key) in keys.iter().enumerate().rev() {
            list.add(hash(number) as u64, Listing { stamp: at(1, 1), removed: false, key });
        }
        let Answer::List(listed) = list.finish() else { panic!("a list") };
        listed
    };
    // Three have one hash each, so that the last three that would fit are not all of theirs.
    let listed = list_of(&|number| number / 3);
    assert!(listed.more);
    let expected: Vec<&[u8]> = keys[..LISTED_MAX / 3 * 3].iter().map(|key| &key[..]).collect();
    assert_eq!(listed.writes.iter().map(|write| write.key).collect::<Vec<_>>(), expected);
    // All that there are have one: they do not fit, and nobody takes that for the end.
    let listed = list_of(&|_| 7);
    assert!(listed.more && listed.writes.is_empty() && !listed.is_sound(CACHE, None));
}

#[test]
fn a_list_is_sound_in_the_order_of_hashes_and_keys_alone() {
    // Made to have one hash.
    let twins: [&[u8]; 3] = [b"\x01twin-one", b"\x02\x2b\xfb\x2a\xee-one", b"\x03\x1e\x7f\xe0\x6b-one"];
    let hash = key_hash(CACHE, twins[0]);
    assert!(twins.iter().all(|key| key_hash(CACHE, key) == hash));
    let listed = |keys: &[&'static [u8]]| {
        let writes = keys.iter().map(|key| Listing { stamp: at(1, 1), removed: false, key }).collect();
        Listed { more: true, writes }
    };
    let both = listed(&twins[..2]);
    assert!(both.is_sound(CACHE, None) && both.is_sound(CACHE, Some(hash - 1)));
    assert!(!both.is_sound(CACHE, Some(hash)), "it does not lead on");
    assert!(!listed(&[twins[1], twins[0]]).is_sound(CACHE, None));
    assert!(!listed(&[twins[0], twins[0]]).is_sound(CACHE, None), "a key twice");
    assert!(!listed(&[]).is_sound(CACHE, None) && Listed::default().is_sound(CACHE, Some(hash)));
    let found = twins.map(|bytes| both.get(CACHE, Sought { hash, bytes }).map(|listing| listing.key));
    assert_eq!(found, [Some(twins[0]), Some(twins[1]), None], "the third is not in it");
    assert_eq!((both.end(CACHE), Listed { more: false, ..both }.end(CACHE)), (Some(hash), None));
}

#[test]
fn lists_and_fetches_of_the_longest_keys_fit() {
    let key = [b'k'; KEY_BYTES_MAX];
    let mut list = ListOf::default();
    (0..100).for_each(|hash| list.add(hash, Listing { stamp: at(1, 1), removed: false, key: &key }));
    let Answer::List(listed) = list.finish() else { panic!("a list") };
    assert!(listed.more && !listed.writes.is_empty());
    let keys = [&key[..]; 100];
    let (question, some) = Question::fetch(&keys);
    assert!(0 < some && some < 100 && question.encode(CACHE).len() <= QUESTION_BYTES_MAX);
}

#[test]
fn counts_beyond_what_there_is_are_refused_before_anything_is_allocated() {
    let claims = u64::from(u32::MAX);
    for head in [&b"\x02\x00"[..], b"\x03\x00"] {
        let mut body = BytesMut::from(head);
        put_varint(&mut body, claims);
        assert_eq!(Answer::decode(&body), Err(Unsound("count")));
    }
    let mut body = BytesMut::from(&b"\x03\x01\x02\x03\x04"[..]);
    put_varint(&mut body, claims);
    assert_eq!(question(&body), Err(Unsound("count")));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = Question::decode(&bytes);
        let _ = Answer::decode(&bytes);
    }
}
