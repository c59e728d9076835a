use super::*;

const SWITCHES: Switches =
    Switches { open_health_and_metrics: true, allow_payloads: true, allow_destructive_actions: false };

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Access with a token of every role, with and without payloads, and the texts of those tokens.
fn access(switches: Switches) -> (Access, Vec<(Role, bool, String)>) {
    let (mut lines, mut texts) = (String::new(), Vec::new());
    for (index, role) in Role::ALL.into_iter().enumerate() {
        for payloads in [false, true] {
            let entropy = [u8::try_from(2 * index).unwrap() + u8::from(payloads); 32];
            let new = NewToken::new(&format!("{role}-{payloads}"), role, payloads, entropy).unwrap();
            lines += &format!("{}\n", new.line());
            texts.push((role, payloads, new.text().to_owned()));
        }
    }
    (Access::new(Some(Tokens::parse(&lines).unwrap()), switches), texts)
}

fn headers(name: axum::http::HeaderName, value: &str) -> HeaderMap {
    HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
}

fn status(judged: Result<(), Problem>) -> u16 {
    judged.err().map_or(200, |problem| axum::response::IntoResponse::into_response(problem).status().as_u16())
}

#[tokio::test]
async fn every_role_may_do_what_it_may_and_nothing_above() {
    let (access, texts) = access(SWITCHES);
    for (role, payloads, text) in texts {
        let shown = headers(AUTHORIZATION, &format!("Bearer {text}"));
        let caller = access.caller(&shown, HERE, Instant::now(), true).unwrap().unwrap();
        for needed in Role::ALL {
            let expected = if role >= needed { 200 } else { 403 };
            let needs = Needs::of(Audience::Role(needed));
            assert_eq!(status(access.judge(Some(&caller), needs)), expected, "{role} for {needed}");
            let expected = if role >= needed && payloads { 200 } else { 403 };
            assert_eq!(
                status(access.judge(Some(&caller), needs.payloads())),
                expected,
                "{role} for {needed}"
            );
        }
    }
    assert_eq!(status(access.judge(None, Needs::VIEWER)), 401);
    assert_eq!(status(access.judge(None, Needs::PROBES)), 200);
    assert_eq!(status(access.judge(None, Needs::ANYBODY)), 200);
}

#[tokio::test]
async fn switches_take_away_and_never_give() {
    let closed = Switches { open_health_and_metrics: false, allow_payloads: false, ..SWITCHES };
    let (access, texts) = access(closed);
    assert_eq!(status(access.judge(None, Needs::PROBES)), 401);
    let (_, _, admin) = texts.last().unwrap();
    let caller =
        access.caller(&headers(AUTHORIZATION, &format!("bearer {admin}")), HERE, Instant::now(), true);
    let caller = caller.unwrap().unwrap();
    assert_eq!(status(access.judge(Some(&caller), Needs::VIEWER.payloads())), 403);
    assert_eq!(status(access.judge(Some(&caller), Needs::ADMIN.destroys())), 200);

    let now = Instant::now();
    let session = access.log_in(admin, HERE, now, SessionId::new([1; 32])).unwrap();
    assert_eq!(status(access.judge(Some(&session), Needs::ADMIN)), 200);
    assert_eq!(status(access.judge(Some(&session), Needs::ADMIN.destroys())), 403);
}

#[tokio::test]
async fn a_session_ends_with_its_token_and_when_it_is_ended() {
    let (access, texts) = access(SWITCHES);
    let (now, id) = (Instant::now(), SessionId::new([1; 32]));
    access.log_in(&texts[0].2, HERE, now, id).unwrap();
    let cookie = headers(COOKIE, &format!("a=b; {SESSION_COOKIE}={}", id.encode()));
    let caller = |access: &Access| access.caller(&cookie, HERE, now, true).unwrap();
    assert_eq!(&*caller(&access).unwrap().name, "viewer-false");
    let other = NewToken::new("other", Role::Admin, false, [99; 32]).unwrap();
    access.replace(Tokens::parse(other.line()).unwrap());
    assert!(caller(&access).is_none());

    access.log_in(other.text(), HERE, now, id).unwrap();
    access.log_out(&caller(&access).unwrap());
    assert!(caller(&access).is_none());
}

#[tokio::test]
async fn what_is_no_token_is_refused_and_counted() {
    let (access, texts) = access(SWITCHES);
    let sound = &texts[0].2;
    for value in ["", "Bearer", "Bearer ", &format!("Basic {sound}"), sound, "Bearer x"] {
        assert!(
            access.caller(&headers(AUTHORIZATION, value), HERE, Instant::now(), true).is_err(),
            "{value}"
        );
    }
    let mut twice = headers(AUTHORIZATION, &format!("Bearer {sound}"));
    twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
    assert!(access.caller(&twice, HERE, Instant::now(), true).is_err());
    assert_eq!(access.refused()[Refusal::Invalid as usize], ("invalid", 7));
}

#[tokio::test(start_paused = true)]
async fn who_counts_no_more_is_told_at_once() {
    let (access, texts) = access(SWITCHES);
    let start = Instant::now();
    let of = |text: &str| {
        let shown = headers(AUTHORIZATION, &format!("Bearer {text}"));
        access.caller(&shown, HERE, start, true).unwrap().unwrap()
    };
    let (viewer, admin) = (of(&texts[0].2), of(&texts.last().unwrap().2));
    let log_in = |number: u8| access.log_in(&texts[0].2, HERE, start, SessionId::new([number; 32])).unwrap();
    let (left, idle) = (log_in(1), log_in(2));
    let ended = async |caller: &Caller| {
        let over = tokio::time::timeout(Duration::from_secs(1), access.revoked(caller)).await.is_ok();
        assert_eq!(over, !access.counts(caller));
        over
    };
    for caller in [&viewer, &admin, &left, &idle] {
        assert!(!ended(caller).await, "{caller:?}");
    }
    access.log_out(&left);
    assert!(ended(&left).await && !ended(&idle).await);
    // It is over by itself, and to wait for that is no use of it.
    access.revoked(&idle).await;
    assert_eq!(start.elapsed().as_secs(), crate::limits::SESSION_IDLE_TIME.as_secs());

    let watched = async {
        access.revoked(&admin).await;
        assert!(access.counts(&viewer));
    };
    let demoted = NewToken::new("admin-true", Role::Operator, true, [5; 32]).unwrap();
    let kept = NewToken::new("viewer", Role::Viewer, true, [0; 32]).unwrap();
    let lines = format!("{}\n{}\n", demoted.line(), kept.line());
    tokio::join!(watched, async { access.replace(Tokens::parse(&lines).unwrap()) });
    assert_eq!(demoted.text(), texts.last().unwrap().2);
}
