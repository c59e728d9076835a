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
mod login;
mod page;
mod streams;
mod trail;

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, State};
use axum::handler::Handler;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::MethodRouter;

pub(crate) use self::login::to_login;
pub(crate) use self::page::RELOAD;
use crate::access::Needs;
use crate::app::App;
use crate::guard::{Gate, guard};
use crate::problem::Problem;

/// Beginnings of paths that belong to parts which this node does not have.
const NOT_CONFIGURED: [&str; 8] =
    ["/v1/debug", "/cluster", "/caches", "/streams", "/groups", "/dead-letters", "/live", "/audit"];

struct Route {
    path: &'static str,
    methods: Vec<(Method, Needs)>,
    handlers: MethodRouter<App>,
}

impl Route {
    fn at(path: &'static str) -> Self {
        Self { path, methods: Vec::new(), handlers: MethodRouter::new() }
    }

    fn get<H: Handler<T, App>, T: 'static>(mut self, needs: Needs, handler: H) -> Self {
        self.methods.push((Method::GET, needs));
        self.handlers = self.handlers.get(handler);
        self
    }

    fn put<H: Handler<T, App>, T: 'static>(mut self, needs: Needs, handler: H) -> Self {
        self.methods.push((Method::PUT, needs));
        self.handlers = self.handlers.put(handler);
        self
    }

    fn post<H: Handler<T, App>, T: 'static>(mut self, needs: Needs, handler: H) -> Self {
        self.methods.push((Method::POST, needs));
        self.handlers = self.handlers.post(handler);
        self
    }

    fn delete<H: Handler<T, App>, T: 'static>(mut self, needs: Needs, handler: H) -> Self {
        self.methods.push((Method::DELETE, needs));
        self.handlers = self.handlers.delete(handler);
        self
    }
}

const ANYBODY: Needs = Needs::ANYBODY;
const PROBES: Needs = Needs::PROBES;
const VIEWER: Needs = Needs::VIEWER;
const OPERATOR: Needs = Needs::OPERATOR;
const ADMIN: Needs = Needs::ADMIN;
/// What services do all the time.
const TRAFFIC: Needs = Needs::OPERATOR.traffic();

fn table() -> Vec<Route> {
    let entry = |path| {
        let route = Route::at(path).get(VIEWER.payloads(), entries::get);
        route.put(TRAFFIC, entries::put).delete(TRAFFIC, entries::delete)
    };
    vec![
        Route::at("/livez").get(PROBES, health::live),
        Route::at("/readyz").get(PROBES, health::ready),
        Route::at("/startupz").get(PROBES, health::started),
        Route::at("/metrics").get(PROBES, documents::metrics),
        Route::at("/openapi.json").get(VIEWER, documents::openapi),
        Route::at("/login").get(ANYBODY, login::form).post(ANYBODY, login::log_in),
        Route::at("/logout").post(ANYBODY, login::log_out),
        Route::at("/").get(VIEWER, page::page),
        Route::at("/v1/audit").get(ADMIN, trail::list),
        Route::at("/v1/cluster").get(VIEWER, cluster::show),
        Route::at("/v1/cluster/forget").post(ADMIN.destroys(), cluster::forget),
        Route::at("/v1/coherence").get(VIEWER, coherence::show),
        Route::at("/v1/coherence/audit").post(OPERATOR, audit::begin),
        Route::at("/v1/caches").get(VIEWER, caches::list),
        Route::at("/v1/caches/{cache}")
            .get(VIEWER, caches::show)
            .put(OPERATOR, caches::open)
            .delete(ADMIN.destroys(), caches::close),
        entry("/v1/caches/{cache}/entries/{key}"),
        // The empty key: a parameter of a path is never empty.
        entry("/v1/caches/{cache}/entries/"),
        Route::at("/v1/caches/{cache}/entries/{key}/where").get(VIEWER, holders::show),
        Route::at("/v1/caches/{cache}/entries//where").get(VIEWER, holders::show),
        Route::at("/v1/caches/{cache}/invalidate").post(TRAFFIC.destroys(), invalidate::invalidate),
        Route::at("/v1/caches/{cache}/events").get(VIEWER, events::events),
        Route::at("/v1/drain").post(OPERATOR.destroys(), admin::drain),
        Route::at("/v1/log-level").get(VIEWER, admin::log_level).put(ADMIN, admin::set_log_level),
        Route::at("/v1/configuration").get(OPERATOR, admin::configuration),
    ]
    .into_iter()
    .chain(of_streams())
    .collect()
}

fn of_streams() -> Vec<Route> {
    use streams::{browse, dead_letters, deliveries, groups, transfer};
    vec![
        Route::at("/v1/streams").get(VIEWER, browse::list),
        Route::at("/v1/streams/{topic}").get(VIEWER, browse::show),
        Route::at("/v1/streams/{topic}/events")
            .get(VIEWER.payloads(), browse::events)
            .post(TRAFFIC, browse::publish),
        Route::at("/v1/streams/{topic}/events/{id}").get(VIEWER.payloads(), browse::event),
        Route::at("/v1/streams/{topic}/trim").post(ADMIN.destroys(), browse::trim),
        Route::at("/v1/streams/{topic}/export").get(VIEWER.payloads(), transfer::export),
        Route::at("/v1/streams/{topic}/import").post(OPERATOR, transfer::import),
        Route::at("/v1/streams/{topic}/groups").get(VIEWER, groups::list),
        Route::at("/v1/streams/{topic}/groups/{group}")
            .get(VIEWER, groups::show)
            .put(OPERATOR, groups::make)
            .delete(ADMIN.destroys(), groups::remove),
        Route::at("/v1/streams/{topic}/groups/{group}/receive").post(TRAFFIC.payloads(), deliveries::receive),
        Route::at("/v1/streams/{topic}/groups/{group}/ack").post(TRAFFIC, deliveries::ack),
        Route::at("/v1/streams/{topic}/groups/{group}/fail").post(TRAFFIC, deliveries::fail),
        Route::at("/v1/streams/{topic}/groups/{group}/extend").post(TRAFFIC, deliveries::extend),
        Route::at("/v1/streams/{topic}/groups/{group}/claim").post(TRAFFIC.payloads(), deliveries::claim),
        Route::at("/v1/streams/{topic}/groups/{group}/pending").get(VIEWER, groups::pending),
        Route::at("/v1/streams/{topic}/groups/{group}/seek").post(OPERATOR.destroys(), groups::seek),
        Route::at("/v1/streams/{topic}/groups/{group}/pause").post(OPERATOR, groups::pause),
        Route::at("/v1/streams/{topic}/groups/{group}/resume").post(OPERATOR, groups::resume),
        Route::at("/v1/dead-letters")
            .get(VIEWER.payloads(), dead_letters::list)
            .delete(ADMIN.destroys(), dead_letters::purge),
        Route::at("/v1/dead-letters/retry").post(OPERATOR, dead_letters::retry_many),
        Route::at("/v1/dead-letters/{id}")
            .get(VIEWER.payloads(), dead_letters::show)
            .delete(ADMIN.destroys(), dead_letters::remove),
        Route::at("/v1/dead-letters/{id}/retry").post(OPERATOR, dead_letters::retry),
        Route::at("/v1/stream-store/verify").post(OPERATOR, transfer::verify),
    ]
}

/// What each route asks of its callers, by path.
#[derive(Debug)]
pub(crate) struct Policy(HashMap<&'static str, Vec<(Method, Needs)>>);

impl Policy {
    fn of_table(table: &[Route]) -> Self {
        Self(table.iter().map(|route| (route.path, route.methods.clone())).collect())
    }

    /// What a request has to be allowed to. What is not in the table, a path that is none among it, takes a viewer: a
    /// stranger learns nothing by trying paths.
    pub(crate) fn of(&self, path: Option<&MatchedPath>, method: &Method) -> Needs {
        // A HEAD is a GET whose answer is left out.
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let methods = path.and_then(|path| self.0.get(path.as_str()));
        let needs = methods.and_then(|methods| methods.iter().find(|(known, _)| known == method));
        needs.map_or(VIEWER, |(_, needs)| *needs)
    }
}

/// All routes, guarded.
pub(crate) fn router(app: App) -> Router {
    let all = |router: Router<App>, Route { path, handlers, .. }| router.route(path, handlers);
    let table = table();
    let policy = Arc::new(Policy::of_table(&table));
    table
        .into_iter()
        .fold(Router::new(), all)
        .fallback(missing)
        .method_not_allowed_fallback(not_allowed)
        .layer(from_fn_with_state(Gate { app: app.clone(), policy }, guard))
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
    use crate::access::{Audience, Role};

    /// OpenAPI has no parameters that are empty.
    fn is_of_the_empty_key(route: &Route) -> bool {
        route.path.ends_with("/entries/") || route.path.contains("//")
    }

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
            .filter(|route| !is_of_the_empty_key(route))
            .flat_map(|route| {
                route
                    .methods
                    .iter()
                    .map(|(method, _)| (route.path.to_owned(), method.as_str().to_ascii_lowercase()))
            })
            .collect();
        assert_eq!(named, there);
    }

    #[test]
    fn the_openapi_document_says_of_every_route_what_its_callers_need() {
        let document: Json = serde_json::from_str(documents::OPENAPI).unwrap();
        let mut wrong = Vec::new();
        for route in table().iter().filter(|route| !is_of_the_empty_key(route)) {
            for (method, needs) in &route.methods {
                let operation = &document["paths"][route.path][method.as_str().to_ascii_lowercase()];
                let (role, is_open) = match needs.audience {
                    Audience::Anybody => ("anybody", true),
                    Audience::Probes => ("probe", true),
                    Audience::Role(role) => (role.as_str(), false),
                };
                let said = operation["x-tidings-role"] == role
                    && (operation["x-tidings-payloads"] == true) == needs.payloads
                    && (operation["x-tidings-destructive"] == true) == needs.destroys
                    && (operation["security"] == serde_json::json!([])) == is_open;
                if !said {
                    wrong.push(format!("{method} {}: {needs:?}", route.path));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn whoever_only_looks_changes_nothing_and_who_changes_something_is_no_viewer() {
        for route in table() {
            for (method, needs) in &route.methods {
                let Audience::Role(role) = needs.audience else { continue };
                assert_eq!(method.is_safe() && !needs.destroys, method.is_safe(), "{method} {}", route.path);
                assert!(method.is_safe() || role > Role::Viewer, "{method} {}", route.path);
            }
        }
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
