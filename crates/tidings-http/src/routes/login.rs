//! Logging in with a browser: a token is exchanged for a session's cookie.

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HeaderValue, LOCATION, SET_COOKIE};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::time::Instant;

use super::page::{Text, document};
use crate::access::{Caller, SESSION_COOKIE, SessionId};
use crate::app::App;
use crate::extract::{Params, Peer, read};
use crate::guard::Noted;
use crate::limits::LOGIN_BYTES_MAX;
use crate::problem::{Answer, Problem};
use crate::server::random;

/// What the cookie says beside its value: no script may read it, it goes over TLS and never with what another site asks
/// for. How long the session lasts is the server's to say.
const ATTRIBUTES: &str = "Path=/; Secure; HttpOnly; SameSite=Strict";

/// Where to go on.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Next {
    next: Option<String>,
}

/// Sends a browser to where it can log in.
pub(crate) fn to_login(from: &Uri) -> Response {
    let next: String = form_urlencoded::byte_serialize(from.path().as_bytes()).collect();
    let location = if from.path() == "/" { "/login".to_owned() } else { format!("/login?next={next}") };
    see_other(&location)
}

fn see_other(location: &str) -> Response {
    let location = HeaderValue::from_str(location).unwrap_or(HeaderValue::from_static("/"));
    (StatusCode::SEE_OTHER, [(LOCATION, location)]).into_response()
}

/// A path of this server, or its root: a link to the login page must not lead anywhere else.
fn own_path(next: Option<&str>) -> &str {
    let is_own = |next: &&str| {
        let rest = next.strip_prefix('/').unwrap_or("//");
        !rest.starts_with(['/', '\\']) && next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
    };
    next.filter(is_own).unwrap_or("/")
}

/// `GET /login`
pub(crate) async fn form(State(app): State<App>, Params(Next { next }): Params<Next>) -> Answer {
    if !app.access().has_tokens() {
        return Err(Problem::not_configured());
    }
    Ok(page(own_path(next.as_deref()), None).into_response())
}

/// Strangers see it: it says neither which node this is nor of which cluster.
fn page(next: &str, problem: Option<&Problem>) -> impl IntoResponse + use<> {
    const TITLE: &str = "tidings";
    let wrong = problem.map(|problem| format!("<p class=\"bad\">{}</p>\n", Text(problem.detail())));
    let body = format!(
        "<h1>{TITLE}</h1>\n{}<form method=\"post\" action=\"login\">\
         <p><label for=\"token\">Token</label> <input id=\"token\" name=\"token\" type=\"password\" \
         autocomplete=\"current-password\" required autofocus size=\"60\">\
         <input type=\"hidden\" name=\"next\" value=\"{}\"> <button>Log in</button></p></form>\n",
        wrong.unwrap_or_default(),
        Text(next)
    );
    document(TITLE, None, &body)
}

/// `POST /login`
pub(crate) async fn log_in(
    State(app): State<App>,
    Peer(peer): Peer,
    before: Option<Extension<Caller>>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    if !app.access().has_tokens() {
        return Err(Problem::not_configured());
    }
    let form = headers.get(CONTENT_TYPE).and_then(|of| of.to_str().ok()).unwrap_or_default();
    if !form.starts_with("application/x-www-form-urlencoded") {
        let detail = "log in with a form: token=TOKEN, as application/x-www-form-urlencoded";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail));
    }
    let body = read(&headers, body, LOGIN_BYTES_MAX).await?;
    let field = |name: &str| {
        let mut fields = form_urlencoded::parse(&body);
        fields.find(|(field, _)| field == name).map(|(_, value)| value.into_owned())
    };
    let (token, next) = (field("token").unwrap_or_default(), field("next"));
    let next = own_path(next.as_deref());
    let id = random()
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string()))?;
    let id = SessionId::new(id);
    match app.access().log_in(token.trim(), peer, Instant::now(), id) {
        Ok(caller) => {
            // The browser forgets the cookie of the session that it had.
            if let Some(Extension(before)) = before {
                app.access().log_out(&before);
            }
            let mut response = see_other(next);
            response.headers_mut().insert(SET_COOKIE, cookie(&id.encode(), ""));
            response.extensions_mut().insert(Noted { caller: Some(caller), detail: None });
            Ok(response)
        }
        Err(problem) => {
            if problem.code() == "invalid_token" {
                tracing::warn!(address = %peer, "a login is refused");
            }
            let page = page(next, Some(&problem)).into_response();
            let mut response = problem.into_response();
            *response.body_mut() = page.into_body();
            // The page tells of the problem instead of its document.
            response.extensions_mut().clear();
            for (name, value) in page_headers() {
                response.headers_mut().insert(name, value);
            }
            Ok(response)
        }
    }
}

/// `POST /logout`
pub(crate) async fn log_out(State(app): State<App>, caller: Option<Extension<Caller>>) -> Answer {
    if !app.access().has_tokens() {
        return Err(Problem::not_configured());
    }
    if let Some(Extension(caller)) = caller {
        app.access().log_out(&caller);
    }
    let mut response = see_other("/login");
    response.headers_mut().insert(SET_COOKIE, cookie("", "; Max-Age=0"));
    Ok(response)
}

fn cookie(value: &str, more: &str) -> HeaderValue {
    let text = format!("{SESSION_COOKIE}={value}; {ATTRIBUTES}{more}");
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
}

fn page_headers() -> [(axum::http::HeaderName, HeaderValue); 2] {
    super::page::HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_login_nobody_is_sent_elsewhere() {
        for (next, expected) in [
            (None, "/"),
            (Some("/caches/users"), "/caches/users"),
            (Some("/a?b=c"), "/a?b=c"),
            (Some("//evil.example"), "/"),
            (Some("/\\evil.example"), "/"),
            (Some("https://evil.example"), "/"),
            (Some("evil"), "/"),
            (Some(""), "/"),
            (Some("/\tevil"), "/"),
            (Some("/a\\b"), "/"),
            (Some("/a\r\nset-cookie: b"), "/"),
        ] {
            assert_eq!(own_path(next), expected, "{next:?}");
        }
    }
}
