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
    let golden: [(Question<'_>, &[u8]); 4] = [
        (Question::Digests, b"\x01\x01\x02\x03\x04"),
        (list, b"\x02\x01\x02\x03\x04\x05\0\0\0\0\0\0\0\x07\x01\x09\0\0\0\0\0\0\0"),
        (Question::Fetch(vec![b"k1", b""]), b"\x03\x01\x02\x03\x04\x02\x02k1\x00"),
        (
            Question::Refused { stamp: at(1, 2), wall_ms: 3, key: b"k" },
            b"\x04\x01\x02\x03\x04\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0k",
        ),
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
    assert_eq!(end_of(CACHE, &listed), Some(key_hash(CACHE, expected[LISTED_MAX - 1])));
    assert!(Answer::List(listed).encode().len() <= ANSWER_BYTES_MAX);
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
