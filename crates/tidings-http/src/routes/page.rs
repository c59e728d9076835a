//! Pages: plain, without scripts, everything in them escaped. This one says how the node is.

mod streams;

use std::fmt::{self, Write};

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName};
use axum::response::IntoResponse;
use tidings::MemberInfo;

use crate::access::{Caller, Means};
use crate::app::App;
use crate::doubt;
use crate::problem::{Answer, Problem};
use crate::quantity::show_duration;

/// Its style, which its policy names by hash.
const STYLE: &str = include_str!("page.css");

/// What a page may do in a browser: show itself with [`STYLE`], and send its forms to where it came from.
const POLICY: &str = "default-src 'none'; style-src 'sha256-mNiseyxAqdj0TfBSE3hFLUH11vk1ohdESyJ3tQM3uXw='; \
    frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

/// What goes with every page.
pub(super) const HEADERS: [(HeaderName, &str); 2] =
    [(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, POLICY)];

/// Pause until the page is loaded anew.
const REFRESH_SECONDS: u32 = 5;

/// Text made harmless for HTML.
pub(super) struct Text<T>(pub(super) T);

impl<T: fmt::Display> fmt::Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escape<'a, 'b>(&'a mut fmt::Formatter<'b>);

        impl Write for Escape<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                text.chars().try_for_each(|c| match c {
                    '&' => self.0.write_str("&amp;"),
                    '<' => self.0.write_str("&lt;"),
                    '>' => self.0.write_str("&gt;"),
                    '"' => self.0.write_str("&quot;"),
                    '\'' => self.0.write_str("&#39;"),
                    c => self.0.write_char(c),
                })
            }
        }

        write!(Escape(f), "{}", self.0)
    }
}

/// `GET /`
pub(crate) async fn page(State(app): State<App>, caller: Option<Extension<Caller>>) -> Answer {
    let origin = app.node().origin();
    let title = format!("{} · {}", origin.node, app.node().cluster());
    let mut html = String::new();
    let seen = streams::look(&app).await;
    write(&app, &title, seen.as_ref(), &mut html).map_err(|_| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the page could not be written")
    })?;
    if let Some(Extension(caller)) = caller.filter(|caller| caller.means != Means::Loopback) {
        let _ = writeln!(
            html,
            "<form method=\"post\" action=\"logout\"><p>{} ({}) <button>Log out</button></p></form>",
            Text(&caller.name),
            caller.role
        );
    }
    Ok(document(&title, Some(REFRESH_SECONDS), &html).into_response())
}

/// What a page that loads itself anew asks for. That nobody looks for an hour ends a session all the same.
pub(crate) const RELOAD: &str = "reload";

/// A whole page, loaded anew after so many seconds.
pub(super) fn document(title: &str, refresh: Option<u32>, body: &str) -> impl IntoResponse + use<> {
    let refresh =
        refresh.map(|seconds| format!("<meta http-equiv=\"refresh\" content=\"{seconds}; url=?{RELOAD}\">"));
    let html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">{}\
         <title>{}</title><style>{STYLE}</style></head><body>\n{body}</body></html>\n",
        refresh.unwrap_or_default(),
        Text(title)
    );
    (HEADERS, html)
}

fn write(app: &App, title: &str, streams: Option<&streams::Seen>, html: &mut String) -> fmt::Result {
    let node = app.node();
    writeln!(html, "<h1>{}</h1>", Text(title))?;
    let reasons = app.readiness().unready();
    let (class, readiness) =
        if reasons.is_empty() { ("good", "ready".to_owned()) } else { ("bad", reasons.join("; ")) };
    write!(html, "<p class=\"{class}\">{}</p>\n<p>", Text(readiness))?;
    match node.freshness_age() {
        Some(age) => write!(html, "Everything done up to {} ms ago is applied here. ", age.as_millis())?,
        None => html.push_str("Not everything that was done elsewhere is known here. "),
    }
    let doubts = node.doubts();
    if doubts.is_empty() {
        html.push_str("Every hit counts.</p>\n");
    } else {
        let bound = show_duration(node.bounds().max_staleness);
        let reasons: Vec<String> = doubts.iter().map(doubt::text).collect();
        writeln!(html, "Hits count for {} only: {}.</p>", Text(bound), Text(reasons.join("; ")))?;
    }
    members(html, &node.members())?;
    caches(html, app)?;
    if let Some(seen) = streams {
        seen.write(html)?;
    }
    html.push_str(
        "<p><a href=\"metrics\">metrics</a> <a href=\"v1/cluster\">cluster</a> <a href=\"v1/caches\">caches</a> ",
    );
    if streams.is_some() {
        html.push_str("<a href=\"v1/streams\">streams</a> ");
    }
    html.push_str("<a href=\"openapi.json\">API</a></p>\n");
    Ok(())
}

fn members(html: &mut String, members: &[MemberInfo]) -> fmt::Result {
    html.push_str(
        "<h2>Members</h2>\n<table><tr><th>Node<th>State<th>Address<th>Zone<th>Version<th>Round trip<th>In step\
         <th>Lag</tr>\n",
    );
    for member in members {
        let rtt =
            member.rtt.map_or_else(|| "-".to_owned(), |rtt| format!("{:.2} ms", rtt.as_secs_f64() * 1e3));
        writeln!(
            html,
            "<tr><td>{}{}<td>{}<td>{}<td>{}<td>{}<td>{rtt}<td>{}<td>{}</tr>",
            Text(&member.node),
            if member.this_node { " (this node)" } else { "" },
            Text(member.state),
            Text(member.address),
            Text(&member.zone),
            Text(&member.release),
            if member.synced() { "yes" } else { "no" },
            member.lag_events
        )?;
    }
    html.push_str("</table>\n");
    Ok(())
}

fn caches(html: &mut String, app: &App) -> fmt::Result {
    html.push_str(
        "<h2>Caches</h2>\n<table><tr><th>Name<th>Entries<th>Hits<th>Misses<th>Changes here<th>Invalidated\
         <th>Subscribers</tr>\n",
    );
    for cache in app.node().caches() {
        let counts = cache.counts();
        writeln!(
            html,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
            Text(cache.name()),
            cache.entries(),
            counts.hits + counts.coalesced,
            counts.misses + counts.limited + counts.stale,
            counts.mutations,
            counts.invalidated(),
            cache.subscribers()
        )?;
    }
    html.push_str("</table>\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use base64::Engine;

    use super::*;

    #[test]
    fn the_policy_names_the_style_that_is_there() {
        let hash = ring::digest::digest(&ring::digest::SHA256, STYLE.as_bytes());
        let hash = base64::engine::general_purpose::STANDARD.encode(hash);
        assert!(POLICY.contains(&format!("'sha256-{hash}'")), "{hash}");
        assert!(!STYLE.contains('<'));
    }

    #[test]
    fn text_is_harmless() {
        assert_eq!(
            Text("<a href='x' b=\"y\">&").to_string(),
            "&lt;a href=&#39;x&#39; b=&quot;y&quot;&gt;&amp;"
        );
    }
}
