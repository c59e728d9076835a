//! Every route there is, in one table, which the OpenAPI document is checked against.
#![allow(clippy::unused_async, reason = "axum calls asynchronous functions only")]

mod acked;
mod admin;
mod audit;
mod caches;
mod cluster;
mod coherence;
mod documents;
mod entries;
mod events;
mod health;
mod holders;
mod invalidate;
mod page;
mod streams;

use axum::Router;
use axum::extract::State;
use axum::handler::Handler;
use axum::http::{StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::MethodRouter;

use crate::app::App;
use crate::guard::guard;
use crate::problem::Problem;

/// Beginnings of paths that belong to parts which this node does not have.
const NOT_CONFIGURED: [&str; 9] = [
    "/v1/audit",
    "/v1/debug",
    "/cluster",
    "/caches",
    "/streams",
    "/groups",
    "/dead-letters",
    "/live",
    "/audit",
];

struct Route {
    path: &'static str,
    methods: Vec<&'static str>,
    handlers: MethodRouter<App>,
}

impl Route {
    fn at(path: &'static str) -> Self {
        Self { path, methods: Vec::new(), handlers: MethodRouter::new() }
    }

    fn get<H: Handler<T, App>, T: 'static>(mut self, handler: H) -> Self {
        self.methods.push("get");
        self.handlers = self.handlers.get(handler);
        self
    }

    fn put<H: Handler<T, App>, T: 'static>(mut self, handler: H) -> Self {
        self.methods.push("put");
        self.handlers = self.handlers.put(handler);
        self
    }

    fn post<H: Handler<T, App>, T: 'static>(mut self, handler: H) -> Self {
        self.methods.push("post");
        self.handlers = self.handlers.post(handler);
        self
    }

    fn delete<H: Handler<T, App>, T: 'static>(mut self, handler: H) -> Self {
        self.methods.push("delete");
        self.handlers = self.handlers.delete(handler);
        self
    }
}

fn table() -> Vec<Route> {
    let entry = |path| Route::at(path).get(entries::get).put(entries::put).delete(entries::delete);
    vec![
        Route::at("/livez").get(health::live),
        Route::at("/readyz").get(health::ready),
        Route::at("/startupz").get(health::started),
        Route::at("/metrics").get(documents::metrics),
        Route::at("/openapi.json").get(documents::openapi),
        Route::at("/").get(page::page),
        Route::at("/v1/cluster").get(cluster::show),
        Route::at("/v1/cluster/forget").post(cluster::forget),
        Route::at("/v1/coherence").get(coherence::show),
        Route::at("/v1/coherence/audit").post(audit::begin),
        Route::at("/v1/caches").get(caches::list),
        Route::at("/v1/caches/{cache}").get(caches::show).put(caches::open).delete(caches::close),
        entry("/v1/caches/{cache}/entries/{key}"),
        // The empty key: a parameter of a path is never empty.
        entry("/v1/caches/{cache}/entries/"),
        Route::at("/v1/caches/{cache}/entries/{key}/where").get(holders::show),
        Route::at("/v1/caches/{cache}/entries//where").get(holders::show),
        Route::at("/v1/caches/{cache}/invalidate").post(invalidate::invalidate),
        Route::at("/v1/caches/{cache}/events").get(events::events),
        Route::at("/v1/drain").post(admin::drain),
        Route::at("/v1/log-level").get(admin::log_level).put(admin::set_log_level),
        Route::at("/v1/configuration").get(admin::configuration),
    ]
    .into_iter()
    .chain(of_streams())
    .collect()
}

fn of_streams() -> Vec<Route> {
    use streams::{browse, dead_letters, deliveries, groups, transfer};
    vec![
        Route::at("/v1/streams").get(browse::list),
        Route::at("/v1/streams/{topic}").get(browse::show),
        Route::at("/v1/streams/{topic}/events").get(browse::events).post(browse::publish),
        Route::at("/v1/streams/{topic}/events/{id}").get(browse::event),
        Route::at("/v1/streams/{topic}/trim").post(browse::trim),
        Route::at("/v1/streams/{topic}/export").get(transfer::export),
        Route::at("/v1/streams/{topic}/import").post(transfer::import),
        Route::at("/v1/streams/{topic}/groups").get(groups::list),
        Route::at("/v1/streams/{topic}/groups/{group}")
            .get(groups::show)
            .put(groups::make)
            .delete(groups::remove),
        Route::at("/v1/streams/{topic}/groups/{group}/receive").post(deliveries::receive),
        Route::at("/v1/streams/{topic}/groups/{group}/ack").post(deliveries::ack),
        Route::at("/v1/streams/{topic}/groups/{group}/fail").post(deliveries::fail),
        Route::at("/v1/streams/{topic}/groups/{group}/extend").post(deliveries::extend),
        Route::at("/v1/streams/{topic}/groups/{group}/claim").post(deliveries::claim),
        Route::at("/v1/streams/{topic}/groups/{group}/pending").get(groups::pending),
        Route::at("/v1/streams/{topic}/groups/{group}/seek").post(groups::seek),
        Route::at("/v1/streams/{topic}/groups/{group}/pause").post(groups::pause),
        Route::at("/v1/streams/{topic}/groups/{group}/resume").post(groups::resume),
        Route::at("/v1/dead-letters").get(dead_letters::list).delete(dead_letters::purge),
        Route::at("/v1/dead-letters/retry").post(dead_letters::retry_many),
        Route::at("/v1/dead-letters/{id}").get(dead_letters::show).delete(dead_letters::remove),
        Route::at("/v1/dead-letters/{id}/retry").post(dead_letters::retry),
        Route::at("/v1/stream-store/verify").post(transfer::verify),
    ]
}

/// All routes, guarded.
pub(crate) fn router(app: App) -> Router {
    let all = |router: Router<App>, Route { path, handlers, .. }| router.route(path, handlers);
    table()
        .into_iter()
        .fold(Router::new(), all)
        .fallback(missing)
        .method_not_allowed_fallback(not_allowed)
        .layer(from_fn_with_state(app.clone(), guard))
        .with_state(app)
}

async fn missing(State(app): State<App>, uri: Uri) -> Problem {
    let below = |part: &str| {
        uri.path().strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    // The dashboard's page of this name; the API's is below `/v1`.
    let of_streams = ["/v1/streams", "/v1/dead-letters", "/v1/stream-store"];
    let without = app.node().streams().is_none() && of_streams.iter().any(|part| below(part));
    if without || NOT_CONFIGURED.iter().any(|part| below(part)) || uri.path() == "/configuration" {
        return Problem::not_configured();
    }
    Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
}

async fn not_allowed() -> Problem {
    let detail = "this path does not know that method";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value as Json;

    use super::*;

    #[test]
    fn the_openapi_document_names_exactly_the_routes_that_exist() {
        let document: Json = serde_json::from_str(documents::OPENAPI).unwrap();
        let named: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().unwrap().keys().filter(|name| *name != "parameters");
                methods.map(|method| (path.clone(), method.clone()))
            })
            .collect();
        let there: BTreeSet<(String, String)> = table()
            .iter()
            .filter(|route| !route.path.ends_with("/entries/") && !route.path.contains("//"))
            .flat_map(|route| {
                route.methods.iter().map(|method| (route.path.to_owned(), (*method).to_owned()))
            })
            .collect();
        assert_eq!(named, there);
    }

    #[test]
    fn every_reference_of_the_openapi_document_leads_somewhere() {
        fn references(json: &Json, found: &mut Vec<String>) {
            match json {
                Json::Object(members) => members.iter().for_each(|(name, value)| match value {
                    Json::String(text) if name == "$ref" => found.push(text.clone()),
                    value => references(value, found),
                }),
                Json::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let document: Json = serde_json::from_str(documents::OPENAPI).unwrap();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
    }
}
