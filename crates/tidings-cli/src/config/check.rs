//! What single values cannot show: missing ones, contradictions, files, and what this release cannot do.

mod http;

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tidings::Domain;
use tidings_proto::id::{Lanes, NodeId};
use tidings_transport::{Identity, IdentityError};

use super::finding::Finding;
use super::settings::State;
use super::source::{Origin, Values};
use super::streams;
use super::value::{Value, is_loopback, is_unspecified};
use crate::exit::chain;
use crate::{logging, setup};

/// Least size of a lane's log: one sealed segment, so that a follower can be served from it at all.
const LOG_BYTES_MIN: u64 = 64 << 10;

/// Least that is copied in a second: in the five minutes that one member may take, that is about 19 MB.
const COPY_BYTES_MIN: u64 = 64 << 10;

/// Judges a configuration as a whole.
pub(super) fn whole(values: &Values, directory: &Path, findings: &mut Vec<Finding>) {
    let mut judge = Judge { values, findings };
    judge.cluster();
    judge.identity(directory);
    judge.http(directory);
    judge.coherence();
    for index in 0..values.count("cache") {
        judge.cache(index);
    }
    judge.streams();
    judge.log();
    judge.availability();
    judge.openings();
}

struct Judge<'a> {
    values: &'a Values,
    findings: &'a mut Vec<Finding>,
}

impl<'a> Judge<'a> {
    fn cluster(&mut self) {
        self.required("cluster.name", "the nodes of a cluster know each other by it");
        self.required(
            "cluster.node_id",
            "every node needs one of its own, equal to the one in its certificate",
        );
        self.above_zero("cluster.gossip_interval");
        self.above_zero("cluster.ready_timeout");
        let listen = self.text("cluster.listen");
        match (self.text("cluster.advertise"), listen) {
            (Some(advertise), _) if is_unspecified(advertise) || advertise.ends_with(":0") => {
                self.error("cluster.advertise", "others cannot reach this address", "name one that they can");
            }
            (None, Some(listen)) if is_unspecified(listen) => {
                let message = format!("is needed, for others cannot reach {listen}");
                self.error("cluster.advertise", &message, "set the address by which they can");
            }
            _ => {}
        }
    }

    fn identity(&mut self, directory: &Path) {
        const FILES: [&str; 3] = ["tls.ca", "tls.cert", "tls.key"];
        let development = self.values.get("tls.development") == Some(&Value::Flag(true));
        let given = FILES.into_iter().filter(|path| self.values.get(path).is_some()).count();
        if development {
            if given > 0 {
                let message = "contradicts the certificate files given beside it";
                self.error("tls.development", message, "keep one of the two");
            }
            for path in ["cluster.listen", "cluster.advertise"] {
                if let Some(address) = self.text(path).filter(|address| !is_loopback(address)) {
                    let message = format!("is for loopback addresses only, and {path} is {address}");
                    self.error(
                        "tls.development",
                        &message,
                        "make certificates: `tidings certs init`, `tidings certs issue`",
                    );
                }
            }
        } else if given == 0 {
            let help = "set ca, cert and key (`tidings certs` makes them), or development = true on loopback";
            self.error("tls", "a node needs an identity", help);
        } else {
            let before = self.findings.len();
            for path in FILES {
                self.file(path, directory);
            }
            if self.findings.len() == before {
                self.certificates(directory);
            }
        }
    }

    /// Reads the identity as a start does.
    fn certificates(&mut self, directory: &Path) {
        let values = self.values;
        let file = |path: &str| text_of(values, path).map(|name| directory.join(name)).unwrap_or_default();
        let identity = Identity::from_pem_files(file("tls.ca"), file("tls.cert"), file("tls.key"));
        let node = self.text("cluster.node_id").and_then(|id| NodeId::new(id).ok());
        let judged = match (self.text("cluster.name"), node) {
            (Some(cluster), Some(node)) => {
                identity.and_then(|identity| identity.of_node(cluster, &node).map(drop))
            }
            _ => identity.map(drop),
        };
        if let Err(error) = judged {
            let path = match &error {
                IdentityError::NoKey | IdentityError::Key(_) => "tls.key",
                IdentityError::Root(_) => "tls.ca",
                _ => "tls.cert",
            };
            let help =
                "`tidings certs inspect` shows what a certificate says, `tidings certs issue` makes one";
            self.error(path, &chain(&error), help);
        }
        self.private("tls.key", &file("tls.key"));
    }

    /// A warning, if others than its owner can read a private key.
    fn private(&mut self, path: &str, key: &Path) {
        if key.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0) {
            self.warning(path, "others than its owner can read the private key", &chmod(key));
        }
    }

    fn file(&mut self, path: &str, directory: &Path) {
        let Some(name) = self.text(path) else {
            self.error(path, "is needed beside the other certificate files", "`tidings certs` makes them");
            return;
        };
        self.readable(path, name, directory);
    }

    fn readable(&mut self, path: &str, name: &str, directory: &Path) {
        let file = directory.join(name);
        // Opening is the only honest test of whether it can be read.
        if let Err(error) = File::open(&file).and_then(|file| file.metadata()).and_then(|metadata| {
            if metadata.is_file() { Ok(()) } else { Err(std::io::Error::other("not a file")) }
        }) {
            let message = format!("cannot read {}: {error}", file.display());
            self.error(path, &message, "relative paths start at the configuration file's directory");
        }
    }

    fn http(&mut self, directory: &Path) {
        let Some(listen) = self.text("http.listen") else {
            if self.values.has_table("http") {
                let finding = Finding::warning("http.listen", "is not set: there will be no HTTP API");
                self.findings
                    .push(finding.at(self.values.line("http")).help("set it, or leave the section out"));
            }
            return;
        };
        http::judge(self, listen, directory);
    }

    fn coherence(&mut self) {
        self.above_zero("coherence.max_staleness");
        self.above_zero("coherence.lost_grace");
        self.above_zero("coherence.max_clock_offset");
        if let Some(Value::Count(lanes)) = self.values.get("coherence.lanes")
            && u8::try_from(*lanes).ok().and_then(Lanes::new).is_none()
        {
            let message = format!("{lanes} is not a power of two");
            self.error("coherence.lanes", &message, "use 1, 2, 4, 8, 16, 32 or 64");
        }
        if let Some(Value::Bytes(..LOG_BYTES_MIN)) = self.values.get("coherence.log_bytes") {
            let message = "is too small to keep anything for a follower";
            self.error("coherence.log_bytes", message, "use 64KiB or more");
        }
        if let Some(Value::Bytes(..COPY_BYTES_MIN)) = self.values.get("coherence.copy_bytes_per_second") {
            let message = "is too little for a node ever to have copied what others hold";
            self.error("coherence.copy_bytes_per_second", message, "use 64KiB or more");
        }
        let duration = |path| match self.values.get(path) {
            Some(Value::Duration(duration)) => Some(*duration),
            _ => None,
        };
        if let (Some(grace), Some(bound)) =
            (duration("coherence.lost_grace"), duration("coherence.max_staleness"))
            && grace < bound
        {
            let message = "is shorter than max_staleness";
            self.error("coherence.lost_grace", message, "give a lost member at least that long");
        }
    }

    fn log(&mut self) {
        if let Some(Err(why)) = self.text("telemetry.log").map(logging::parse) {
            self.error("telemetry.log", &why, "write a level, or directives such as info,tidings=debug");
        }
    }

    fn cache(&mut self, index: usize) {
        let at = |key: &str| format!("cache[{index}].{key}");
        self.required(&at("name"), "events and requests name the cache by it");
        let name = self.text(&at("name"));
        if name.is_some() && (0..index).any(|other| self.text(&format!("cache[{other}].name")) == name) {
            self.error(&at("name"), "an earlier cache has the same name", "give each its own");
        }
        if let Some(Value::Bytes(0) | Value::Count(0)) = self.values.get(&at("max_capacity")) {
            self.error(
                &at("max_capacity"),
                "a cache of this size holds nothing",
                "give it room, or leave the cache out",
            );
        }
        self.above_zero(&at("time_to_live"));
        self.above_zero(&at("time_to_idle"));
        if let Some(Value::Share(share)) = self.values.get(&at("ttl_jitter"))
            && !(*share > 0.0 && *share < 1.0)
        {
            self.error(
                &at("ttl_jitter"),
                "shortens nothing, or leaves nothing",
                "use a share between 0 and 1",
            );
        }
        for key in ["fail_safe", "eager_refresh", "negative_ttl"] {
            if self.values.get(&at(key)).is_some() {
                self.error(
                    &at(key),
                    tidings_http::NEEDS_LOADER,
                    "remove it, or set it where the service opens its cache",
                );
            }
        }
    }

    fn streams(&mut self) {
        for finding in streams::findings(self.values) {
            // What could not be read has its finding already.
            if !self.findings.iter().any(|other| other.key == finding.key) {
                let line = self.values.line(&finding.key);
                self.findings.push(finding.at(line));
            }
        }
    }

    /// Opens every cache as a start does, apart from any node: what single values cannot show.
    fn openings(&mut self) {
        let domain = Domain::standalone();
        for index in 0..self.values.count("cache") {
            let judged =
                self.findings.iter().any(|finding| finding.key.starts_with(&format!("cache[{index}].")));
            let Some(cache) = super::typed::cache(self.values, index).filter(|_| !judged) else { continue };
            if let Err(error) = tidings_http::open(&domain, &cache.name, &setup::settings(&cache)) {
                let help = "`tidings config default` explains every setting there is";
                self.error(&format!("cache[{index}]"), &chain(&error), help);
            }
        }
    }

    /// A finding for each setting that differs from its default and that this release does not know to follow.
    fn availability(&mut self) {
        for (path, entry) in &self.values.entries {
            let same = entry.setting.default.is_some_and(|default| default == entry.value.to_string());
            if entry.origin == Origin::Default || same {
                continue;
            }
            let line = self.values.line(path);
            match entry.setting.state {
                State::Works => {}
                State::Later => {
                    let message = "not available in this release: it has no effect";
                    self.findings.push(Finding::warning(path.as_str(), message).at(line));
                }
            }
        }
    }

    fn required(&mut self, path: &str, why: &str) {
        // A value that was there but could not be read has its finding already.
        let judged = self.findings.iter().any(|finding| finding.key == path);
        if self.values.get(path).is_none() && !judged {
            self.error(path, "is required", why);
        }
    }

    fn above_zero(&mut self, path: &str) {
        if self.values.get(path) == Some(&Value::Duration(Duration::ZERO)) {
            self.error(path, "must be longer than nothing", "write a number and its unit, such as 3s");
        }
    }

    fn warning(&mut self, path: &str, message: &str, help: &str) {
        self.findings.push(Finding::warning(path, message).at(self.values.line(path)).help(help));
    }

    fn error(&mut self, path: &str, message: &str, help: &str) {
        self.findings.push(Finding::error(path, message).at(self.values.line(path)).help(help));
    }

    fn text(&self, path: &str) -> Option<&'a str> {
        text_of(self.values, path)
    }
}

fn chmod(file: &Path) -> String {
    format!("chmod 600 {}", file.display())
}

fn text_of<'a>(values: &'a Values, path: &str) -> Option<&'a str> {
    match values.get(path)? {
        Value::Text(text) => Some(text),
        _ => None,
    }
}
