//! How nodes name their caches to each other: by name, and by schema where one is stated.

use tidings_cache::AnyCache;
use tidings_proto::frame::TEXT_BYTES_MAX;

/// What no name of a cache has.
const SEPARATOR: char = '#';

/// How a cache is named to others. One whose name leaves no room for its schema is named without: nobody is shown it
/// then, and its changes still state it.
pub(crate) fn announced(cache: &dyn AnyCache) -> String {
    let (name, schema) = (cache.name().to_string(), cache.settings().schema);
    let stated = format!("{name}{SEPARATOR}{schema}");
    if schema == 0 || stated.len() > TEXT_BYTES_MAX { name } else { stated }
}

/// Name and schema of a cache that another node has named so. What a newer release may add is passed over.
pub(crate) fn read(named: &str) -> (String, u32) {
    let mut parts = named.split(SEPARATOR);
    let name = parts.next().unwrap_or_default().to_owned();
    (name, parts.next().and_then(|schema| schema.parse().ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use tidings_cache::{CacheBuilder, Domain};

    use super::*;

    fn announcement(name: &str, schema: u32) -> String {
        let domain = Domain::standalone();
        announced(&*CacheBuilder::<String, u64>::new(&domain, name).schema(schema).open().unwrap().erased())
    }

    #[test]
    fn a_schema_is_read_back() {
        for schema in [0, 1, u32::MAX] {
            assert_eq!(read(&announcement("users", schema)), ("users".to_owned(), schema));
        }
        assert_eq!(announcement("users", 0), "users", "as releases name it that state no schema");
        assert_eq!(read("users#x#y"), ("users".to_owned(), 0));
    }

    #[test]
    fn no_announcement_is_longer_than_a_peer_accepts() {
        let longest = "n".repeat(tidings_proto::id::NAME_BYTES_MAX);
        assert_eq!(announcement(&longest, u32::MAX), longest);
    }
}
