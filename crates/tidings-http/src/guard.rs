//! What every request goes through before its route: which host it is for, whether a browser was tricked into sending it,
//! who asks and whether that may be, and the trail of what was done.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, COOKIE, HOST, HeaderName, HeaderValue,
    ORIGIN, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::uri::{Authority, Uri};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;
use tracing::Instrument;

use crate::access::{Caller, Needs};
use crate::app::App;
use crate::lobby::Connection;
use crate::problem::{Problem, Told, name_request};
use crate::request_id::{REQUEST_ID, RequestId};
use crate::routes::{Policy, RELOAD, to_login};
use crate::trail::{Asked, Kind, Outcome, shown};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// What answers may do in a browser unless they say otherwise: nothing.
const POLICY: &str = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Host names that requests may be for. A page of another site that makes its own name resolve to this machine names
/// itself, and is refused. An address is no name that anybody could make resolve to something else.
#[derive(Debug)]
pub(crate) struct Hosts {
    /// Lower-case; with a port only where that is wanted.
    allowed: Vec<String>,
}

impl Hosts {
    pub(crate) fn new(allowed: &[String]) -> Self {
        Self { allowed: allowed.iter().map(|host| normal(host)).collect() }
    }

    /// `here` is the address that the connection came to.
    fn allow(&self, authority: &str, here: IpAddr) -> bool {
        if authority.contains('@') {
            return false;
        }
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        let host = normal(authority.host());
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || bare.parse() == Ok(here)
            || self.allowed.iter().any(|allowed| *allowed == host || *allowed == normal(authority.as_str()))
    }

    /// The one host that a request is for.
    fn of<'a>(&self, uri: &'a Uri, headers: &'a HeaderMap, here: IpAddr) -> Option<&'a str> {
        let mut named = headers.get_all(HOST).iter();
        let (host, more) = (named.next()?.to_str().ok()?, named.next());
        let absolute = uri.authority().map_or(host, Authority::as_str);
        (more.is_none() && self.allow(host, here) && self.allow(absolute, here)).then_some(host)
    }
}

fn normal(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

/// Whether a request comes from another site's page, which may only lead here: looking takes places and leases, too.
/// Programs send neither of the headers that say so; a browser without them would still send its cookies, and counts
/// where something may be changed. `scheme` is the one that this server speaks.
fn is_cross_site(method: &Method, (scheme, host): (&str, &str), headers: &HeaderMap) -> bool {
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        let is_foreign = site != "same-origin" && site != "none";
        return is_foreign && !(method.is_safe() && is_link(headers));
    }
    if method.is_safe() {
        return false;
    }
    match headers.get(ORIGIN) {
        Some(origin) => {
            let same = |origin: &str| {
                let (of, named) = origin.split_once("://")?;
                Some(of == scheme && normal(named) == normal(host))
            };
            !origin.to_str().ok().and_then(same).unwrap_or(false)
        }
        None => headers.contains_key(COOKIE),
    }
}

/// Whether a browser goes to the answer, and shows it by itself.
fn is_link(headers: &HeaderMap) -> bool {
    headers.get(SEC_FETCH_MODE).is_some_and(|mode| mode == "navigate")
        && headers.get(SEC_FETCH_DEST).is_none_or(|dest| dest == "document")
}

/// What the guard works with.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    pub(crate) app: App,
    pub(crate) policy: Arc<Policy>,
}

/// Whom a handler has found out to be asking, or what else of a request belongs into the trail.
#[derive(Clone, Debug, Default)]
pub(crate) struct Noted {
    pub(crate) caller: Option<Caller>,
    pub(crate) detail: Option<String>,
}

impl Noted {
    /// An answer with something about its request for the trail, which callers may have chosen.
    pub(crate) fn detail(detail: &str, response: impl IntoResponse) -> Response {
        let mut response = response.into_response();
        response.extensions_mut().insert(Self { detail: Some(shown(detail)), caller: None });
        response
    }
}

/// Lets requests through that may be, and tells browsers to make nothing of the answers.
pub(crate) async fn guard(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let id = gate.app.request_ids().of(request.headers());
    let span = tracing::info_span!("http", request_id = %id);
    let mut response = match admitted(&gate, request, &id) {
        Ok((request, caller, needs)) => {
            let answered = async {
                match caller.filter(|_| !request.method().is_safe()) {
                    Some(caller) => changed(&gate, request, next, (caller, needs, id.clone())).await,
                    None if !request.method().is_safe() => {
                        unnamed(&gate, request, next, (needs, id.clone())).await
                    }
                    None => next.run(request).await,
                }
            };
            answered.instrument(span).await
        }
        Err(refused) => {
            let (refused, noted) = *refused;
            match noted {
                Some((caller, asked)) => {
                    let outcome = outcome_of(&refused);
                    gate.app.trail().note(&caller, asked, outcome).instrument(span).await;
                }
                None => span
                    .in_scope(|| tracing::debug!(status = refused.status().as_u16(), "a request is refused")),
            }
            refused
        }
    };
    name_request(&mut response, &id);
    finish(response.headers_mut(), &id);
    response
}

type Admitted = (Request, Option<Caller>, Needs);
type Refused = Box<(Response, Option<(Caller, Asked)>)>;

/// Decides about a request before anything of it is done.
fn admitted(gate: &Gate, mut request: Request, id: &RequestId) -> Result<Admitted, Refused> {
    let app = &gate.app;
    let refused = |problem: Problem| Box::new((problem.into_response(), None));
    let Some(connection) = request.extensions().get::<Arc<Connection>>().cloned() else {
        let detail = "the request has no connection";
        return Err(refused(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)));
    };
    let here = connection.here().ip().to_canonical();
    let Some(host) = app.hosts().of(request.uri(), request.headers(), here) else {
        let detail = "this node is not known by that host name: see http.allowed_hosts";
        return Err(refused(Problem::new(StatusCode::MISDIRECTED_REQUEST, "foreign_host", detail)));
    };
    let scheme = if app.options().tls.is_some() { "https" } else { "http" };
    if is_cross_site(request.method(), (scheme, host), request.headers()) {
        let detail = "pages of other sites may neither look at anything here nor change it";
        return Err(refused(Problem::new(StatusCode::FORBIDDEN, "cross_site", detail)));
    }
    let address = connection.peer().ip().to_canonical();
    let needs = gate.policy.of(request.extensions().get::<MatchedPath>(), request.method());
    let renews = !is_reload(request.uri());
    let judged = match app.access().caller(request.headers(), address, Instant::now(), renews) {
        Ok(caller) => {
            app.access().judge(caller.as_ref(), needs).map(|()| caller.clone()).map_err(|why| (why, caller))
        }
        Err(problem) => Err((problem, None)),
    };
    let caller = match judged {
        Ok(caller) => caller,
        Err((problem, Some(caller))) => {
            tracing::info!(
                request_id = %id, who = &*caller.name, %address, code = problem.code(),
                "a request is refused"
            );
            let noted = (!request.method().is_safe()).then(|| (caller, asked(&request, address, needs, id)));
            return Err(Box::new((problem.into_response(), noted)));
        }
        Err((problem, None)) => {
            match problem.code() {
                "unauthenticated" if wants_page(&request) => {
                    return Err(Box::new((to_login(request.uri()), None)));
                }
                // Some in a minute from each address; of the others a metric tells.
                "invalid_token" => tracing::warn!(request_id = %id, %address, "a token is refused"),
                _ => {}
            }
            return Err(refused(problem));
        }
    };
    if let Some(caller) = &caller {
        connection.admit(caller, app.room()).map_err(|problem| {
            let mut response = problem.into_response();
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            Box::new((response, None))
        })?;
        request.extensions_mut().insert(caller.clone());
        request.extensions_mut().insert(needs);
    }
    Ok((request, caller, needs))
}

/// Whether a page asks by itself, without anybody who uses it.
fn is_reload(uri: &Uri) -> bool {
    uri.path() == "/" && uri.query() == Some(RELOAD)
}

/// Whether a person looks at the answer.
fn wants_page(request: &Request) -> bool {
    let accepts = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    request.method() == Method::GET && accepts.is_some_and(|accept| accept.contains("text/html"))
}

/// A change that somebody asks for: whatever comes of it is in the trail before it is answered.
async fn changed(
    gate: &Gate,
    request: Request,
    next: Next,
    (caller, needs, id): (Caller, Needs, RequestId),
) -> Response {
    let address = peer_of(&request);
    let mut pending = Pending { gate, of: Some((caller, asked(&request, address, needs, &id))) };
    let response = next.run(request).await;
    if let Some((caller, asked)) = pending.of.take() {
        // Who logs in is whom the new token names, whatever the browser was before.
        let named = response.extensions().get::<Noted>().and_then(|noted| noted.caller.clone());
        let caller = named.unwrap_or(caller);
        gate.app.trail().note(&caller, asked, outcome_of(&response)).await;
    }
    response
}

/// The same, of somebody who is known only once the handler says so, if then.
async fn unnamed(gate: &Gate, request: Request, next: Next, (needs, id): (Needs, RequestId)) -> Response {
    let address = peer_of(&request);
    let asked = asked(&request, address, needs, &id);
    let response = next.run(request).await;
    if let Some(caller) = response.extensions().get::<Noted>().and_then(|noted| noted.caller.clone()) {
        gate.app.trail().note(&caller, asked, outcome_of(&response)).await;
    }
    response
}

fn peer_of(request: &Request) -> IpAddr {
    let connection = request.extensions().get::<Arc<Connection>>();
    connection.map_or_else(|| IpAddr::from([0; 4]), |connection| connection.peer().ip().to_canonical())
}

fn asked(request: &Request, address: IpAddr, needs: Needs, id: &RequestId) -> Asked {
    let uri = request.uri();
    let target = uri.path_and_query().map_or_else(|| uri.path(), |both| both.as_str());
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    Asked {
        address,
        action: format!("{} {route}", request.method()).trim_end().to_owned(),
        target: shown(target),
        request: id.clone(),
        kind: if needs.is_of_nothing() {
            Kind::Nothing
        } else if needs.traffic {
            Kind::Traffic
        } else {
            Kind::Act
        },
    }
}

fn outcome_of(response: &Response) -> Outcome {
    let code = response.extensions().get::<Told>().map(|told| told.code);
    let detail = response.extensions().get::<Noted>().and_then(|noted| noted.detail.clone());
    Outcome { status: Some(response.status()), code, detail }
}

/// A change under way. If its caller goes away, that is in the trail.
struct Pending<'a> {
    gate: &'a Gate,
    of: Option<(Caller, Asked)>,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some((caller, asked)) = self.of.take() {
            self.gate.app.trail().note_unfinished(&caller, asked);
        }
    }
}

fn finish(headers: &mut HeaderMap, id: &RequestId) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REQUEST_ID, id.header());
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn only_known_hosts_are_allowed() {
        let hosts = Hosts::new(&["Tidings.internal".to_owned(), "proxy:8080".to_owned()]);
        for host in
            ["127.0.0.1:7480", "127.0.0.1", "LOCALHOST:1", "localhost.", "tidings.internal:9", "proxy:8080"]
        {
            assert!(hosts.allow(host, HERE), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "proxy:8081",
            "proxy",
            "127.0.0.2",
            "a@localhost",
            "[::1]",
        ] {
            assert!(!hosts.allow(host, HERE), "{host}");
        }
        assert!(Hosts::new(&[]).allow("[::1]:7480", "::1".parse().unwrap()));
    }

    #[test]
    fn a_request_names_one_host() {
        let hosts = Hosts::new(&[]);
        let with = |names: &[&'static str], uri: &'static str| {
            let mut headers = HeaderMap::new();
            names.iter().for_each(|name| {
                headers.append(HOST, HeaderValue::from_static(name));
            });
            hosts.of(&Uri::from_static(uri), &headers, HERE).is_some()
        };
        assert!(with(&["localhost"], "/"));
        assert!(with(&["localhost"], "http://localhost/"));
        assert!(!with(&[], "/"));
        assert!(!with(&["localhost", "localhost"], "/"));
        assert!(!with(&["localhost"], "http://evil.example/"));
    }

    #[test]
    fn only_the_page_that_loads_itself_anew_is_no_use_of_a_session() {
        for (uri, expected) in
            [("/?reload", true), ("/", false), ("/?reload=1", false), ("/v1/cluster?reload", false)]
        {
            assert_eq!(is_reload(&Uri::from_static(uri)), expected, "{uri}");
        }
    }

    #[test]
    fn what_other_sites_send_is_told_apart() {
        for scheme in ["http", "https"] {
            let (own, other) = if scheme == "http" { ("http", "https") } else { ("https", "http") };
            let cross = |method: Method, named: &[(HeaderName, String)]| {
                let value = |text: &String| HeaderValue::from_str(text).unwrap();
                let headers = named.iter().map(|(name, text)| (name.clone(), value(text))).collect();
                is_cross_site(&method, (scheme, "localhost:7480"), &headers)
            };
            let site = |text: &str| (SEC_FETCH_SITE, text.to_owned());
            let origin = |of: &str, host: &str| (ORIGIN, format!("{of}://{host}"));
            let fetched = |name: HeaderName, text: &str| (name, text.to_owned());
            let mode = |text| fetched(SEC_FETCH_MODE, text);
            let dest = |text| fetched(SEC_FETCH_DEST, text);
            for (named, expected) in [
                (vec![], false),
                (vec![site("same-origin")], false),
                (vec![site("none")], false),
                (vec![site("same-site")], true),
                (vec![site("cross-site")], true),
                (vec![site("cross-site"), origin(own, "localhost:7480")], true),
                (vec![origin(own, "localhost:7480")], false),
                (vec![origin(own, "localhost:3000")], true),
                (vec![origin(other, "localhost:7480")], true),
                (vec![(ORIGIN, "null".to_owned())], true),
                (vec![(COOKIE, "a=b".to_owned())], true),
            ] {
                assert_eq!(cross(Method::POST, &named), expected, "{scheme} {named:?}");
                let is_fetched = named.iter().any(|(name, _)| name == SEC_FETCH_SITE);
                assert_eq!(cross(Method::GET, &named), expected && is_fetched, "{scheme} {named:?}");
            }
            for (named, expected) in [
                (vec![site("cross-site"), mode("navigate"), dest("document")], false),
                (vec![site("cross-site"), mode("navigate")], false),
                (vec![site("cross-site"), mode("navigate"), dest("iframe")], true),
                (vec![site("same-site"), mode("cors"), dest("empty")], true),
                (vec![site("cross-site"), mode("no-cors"), dest("image")], true),
                (vec![site("same-origin"), mode("cors"), dest("empty")], false),
            ] {
                assert_eq!(cross(Method::GET, &named), expected, "{scheme} {named:?}");
                assert_eq!(
                    cross(Method::POST, &named),
                    named[0] != site("same-origin"),
                    "{scheme} {named:?}"
                );
            }
        }
    }
}
