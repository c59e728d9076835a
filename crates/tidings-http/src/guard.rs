//! Which requests a browser may have been tricked into sending, and what every answer says to browsers.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, COOKIE, HOST, HeaderName, HeaderValue, ORIGIN, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::uri::{Authority, Uri};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::problem::Problem;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What answers may do in a browser unless they say otherwise: nothing.
const POLICY: &str = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Host names that requests may be for. A page of another site that makes its own name resolve to this machine names
/// itself, and is refused.
#[derive(Debug)]
pub(crate) struct Hosts {
    listen: IpAddr,
    /// Lower-case; with a port only where that is wanted.
    allowed: Vec<String>,
}

impl Hosts {
    pub(crate) fn new(listen: IpAddr, allowed: &[String]) -> Self {
        Self { listen, allowed: allowed.iter().map(|host| normal(host)).collect() }
    }

    fn allow(&self, authority: &str) -> bool {
        if authority.contains('@') {
            return false;
        }
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        let host = normal(authority.host());
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || bare.parse() == Ok(self.listen)
            || self.allowed.iter().any(|allowed| *allowed == host || *allowed == normal(authority.as_str()))
    }

    /// The one host that a request is for.
    fn of<'a>(&self, uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
        let mut named = headers.get_all(HOST).iter();
        let (host, more) = (named.next()?.to_str().ok()?, named.next());
        let absolute = uri.authority().map_or(host, Authority::as_str);
        (more.is_none() && self.allow(host) && self.allow(absolute)).then_some(host)
    }
}

fn normal(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

/// Whether a request that may change something comes from another site's page. Programs send neither of the headers
/// that say so; a browser without them would still send its cookies, of which this server sets none.
fn is_cross_site(method: &Method, host: &str, headers: &HeaderMap) -> bool {
    if method.is_safe() {
        return false;
    }
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        return site != "same-origin" && site != "none";
    }
    match headers.get(ORIGIN) {
        Some(origin) => {
            let same = |origin: &str| Some(normal(origin.strip_prefix("http://")?) == normal(host));
            !origin.to_str().ok().and_then(same).unwrap_or(false)
        }
        None => headers.contains_key(COOKIE),
    }
}

/// Refuses what a browser was tricked into, and tells browsers to make nothing of the answers.
pub(crate) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut response = match app.hosts().of(request.uri(), request.headers()) {
        None => {
            let detail = "this node is not known by that host name: see http.allowed_hosts";
            Problem::new(StatusCode::MISDIRECTED_REQUEST, "foreign_host", detail).into_response()
        }
        Some(host) if is_cross_site(request.method(), host, request.headers()) => {
            let detail = "pages of other sites may not change anything here";
            Problem::new(StatusCode::FORBIDDEN, "cross_site", detail).into_response()
        }
        Some(_) => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_hosts_are_allowed() {
        let hosts =
            Hosts::new([127, 0, 0, 1].into(), &["Tidings.internal".to_owned(), "proxy:8080".to_owned()]);
        for host in
            ["127.0.0.1:7480", "127.0.0.1", "LOCALHOST:1", "localhost.", "tidings.internal:9", "proxy:8080"]
        {
            assert!(hosts.allow(host), "{host}");
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
            assert!(!hosts.allow(host), "{host}");
        }
        assert!(Hosts::new("::1".parse().unwrap(), &[]).allow("[::1]:7480"));
    }

    #[test]
    fn a_request_names_one_host() {
        let hosts = Hosts::new([127, 0, 0, 1].into(), &[]);
        let with = |names: &[&'static str], uri: &'static str| {
            let mut headers = HeaderMap::new();
            names.iter().for_each(|name| {
                headers.append(HOST, HeaderValue::from_static(name));
            });
            hosts.of(&Uri::from_static(uri), &headers).is_some()
        };
        assert!(with(&["localhost"], "/"));
        assert!(with(&["localhost"], "http://localhost/"));
        assert!(!with(&[], "/"));
        assert!(!with(&["localhost", "localhost"], "/"));
        assert!(!with(&["localhost"], "http://evil.example/"));
    }

    #[test]
    fn writes_from_other_sites_are_told_apart() {
        let cross = |method: Method, named: &[(HeaderName, &'static str)]| {
            let headers =
                named.iter().map(|(name, text)| (name.clone(), HeaderValue::from_static(text))).collect();
            is_cross_site(&method, "localhost:7480", &headers)
        };
        for (named, expected) in [
            (&[][..], false),
            (&[(SEC_FETCH_SITE, "same-origin")], false),
            (&[(SEC_FETCH_SITE, "none")], false),
            (&[(SEC_FETCH_SITE, "same-site")], true),
            (&[(SEC_FETCH_SITE, "cross-site")], true),
            (&[(SEC_FETCH_SITE, "cross-site"), (ORIGIN, "http://localhost:7480")], true),
            (&[(ORIGIN, "http://localhost:7480")], false),
            (&[(ORIGIN, "http://localhost:3000")], true),
            (&[(ORIGIN, "https://localhost:7480")], true),
            (&[(ORIGIN, "null")], true),
            (&[(COOKIE, "a=b")], true),
        ] {
            assert_eq!(cross(Method::POST, named), expected, "{named:?}");
            assert!(!cross(Method::GET, named), "{named:?}");
        }
    }
}
