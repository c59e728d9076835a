//! The table, and what is said to a database about it. Both databases are asked the same.

use std::sync::Arc;

use crate::event::ROW_BYTES_MAX;

/// Where databases differ.
#[derive(Debug)]
pub struct Dialect {
    /// A column that numbers rows, never with a number again.
    pub(crate) id: &'static str,
    /// The type of bytes.
    pub(crate) bytes: &'static str,
    /// No bytes.
    pub(crate) no_bytes: &'static str,
    /// Now, in milliseconds since 1970.
    pub(crate) now: &'static str,
    /// The numbers of a JSON list that is the first parameter.
    pub(crate) ids: &'static str,
    /// The texts of a JSON list that is the first parameter.
    pub(crate) texts: &'static str,
}

/// What is said about one table.
#[derive(Debug)]
pub struct Table {
    pub(crate) name: String,
    pub(crate) schema: Vec<Arc<str>>,
    pub(crate) insert: Arc<str>,
    /// By passed over topics, most rows, most bytes.
    pub(crate) waiting: Arc<str>,
    /// By ids, where the topic ended.
    pub(crate) mark: Arc<str>,
    /// By ids.
    pub(crate) remove: Arc<str>,
    /// By ids.
    pub(crate) published: Arc<str>,
    /// By id, error, 1 where its topic does not have it for sure.
    pub(crate) set_aside: Arc<str>,
    /// By age in milliseconds, most rows.
    pub(crate) forget: Arc<str>,
    pub(crate) backlog: Arc<str>,
    /// By the id before, most rows.
    pub(crate) failed: Arc<str>,
    /// By id; all for -1.
    pub(crate) retry: Arc<str>,
    /// By id.
    pub(crate) discard: Arc<str>,
}

/// A row that is to be published.
const WAITS: &str = "published_at IS NULL AND error IS NULL";

impl Table {
    pub(crate) fn new(prefix: &str, dialect: &Dialect) -> Self {
        let name = format!("{prefix}outbox");
        let Dialect { now, ids, texts, no_bytes, .. } = dialect;
        Self {
            schema: schema(&name, dialect),
            insert: format!(
                "INSERT INTO {name} (topic, payload, attributes, idempotency_key, keyed, created_at) \
                 VALUES ($1, $2, $3, $4, $5, {now}) ON CONFLICT (topic, idempotency_key) DO NOTHING RETURNING id"
            )
            .into(),
            waiting: waiting(&name, texts),
            mark: format!("UPDATE {name} SET after_id = $2 WHERE id IN ({ids})").into(),
            remove: format!("DELETE FROM {name} WHERE id IN ({ids})").into(),
            published: format!(
                "UPDATE {name} SET published_at = {now}, payload = {no_bytes}, attributes = '{{}}' \
                 WHERE id IN ({ids})"
            )
            .into(),
            set_aside: format!(
                "UPDATE {name} SET error = $2, failed_at = {now}, \
                 after_id = CASE WHEN $3 = 1 THEN NULL ELSE after_id END WHERE id = $1"
            )
            .into(),
            forget: format!(
                "DELETE FROM {name} WHERE id IN (SELECT id FROM {name} \
                 WHERE published_at < {now} - $1 ORDER BY published_at LIMIT $2)"
            )
            .into(),
            backlog: format!(
                "SELECT (SELECT COUNT(*) FROM {name} WHERE {WAITS}) AS waiting, \
                 {now} - (SELECT MIN(created_at) FROM {name} WHERE {WAITS}) AS oldest, \
                 (SELECT COUNT(*) FROM {name} WHERE error IS NOT NULL) AS failed"
            )
            .into(),
            failed: format!(
                "SELECT id, topic, error, created_at, failed_at FROM {name} \
                 WHERE error IS NOT NULL AND id > $1 ORDER BY id LIMIT $2"
            )
            .into(),
            retry: format!(
                "UPDATE {name} SET error = NULL, failed_at = NULL \
                 WHERE error IS NOT NULL AND (id = $1 OR $1 = -1)"
            )
            .into(),
            discard: format!("DELETE FROM {name} WHERE error IS NOT NULL AND id = $1").into(),
            name,
        }
    }
}

fn schema(name: &str, dialect: &Dialect) -> Vec<Arc<str>> {
    let Dialect { id, bytes, .. } = dialect;
    let table = format!(
        "CREATE TABLE IF NOT EXISTS {name} (\
         id {id}, \
         topic TEXT NOT NULL, \
         payload {bytes} NOT NULL, \
         attributes TEXT NOT NULL, \
         idempotency_key {bytes} NOT NULL, \
         keyed BIGINT NOT NULL, \
         created_at BIGINT NOT NULL, \
         after_id TEXT, \
         error TEXT, \
         failed_at BIGINT, \
         published_at BIGINT)"
    );
    // What was published with a key stays for a day, and must not be walked through to find what waits.
    let index = |what: &str, columns: &str, condition: &str| {
        format!("CREATE INDEX IF NOT EXISTS {name}_{what} ON {name} ({columns}) WHERE {condition}")
    };
    [
        table,
        format!("CREATE UNIQUE INDEX IF NOT EXISTS {name}_key ON {name} (topic, idempotency_key)"),
        index("waiting", "id", WAITS),
        index("failed", "id", "error IS NOT NULL"),
        index("published", "published_at", "published_at IS NOT NULL"),
    ]
    .map(Arc::from)
    .into()
}

/// The oldest rows that wait, as many as the bytes of those before one are within the bound.
fn waiting(name: &str, texts: &str) -> Arc<str> {
    format!(
        "SELECT one.id AS id, one.topic AS topic, one.idempotency_key AS idempotency_key, one.keyed AS keyed, \
         one.after_id AS after_id, \
         CASE WHEN sized.size <= {ROW_BYTES_MAX} THEN one.payload END AS payload, \
         CASE WHEN sized.size <= {ROW_BYTES_MAX} THEN one.attributes END AS attributes \
         FROM (SELECT id, size, SUM(size) OVER (ORDER BY id) - size AS ahead FROM \
         (SELECT id, octet_length(payload) + octet_length(attributes) AS size FROM {name} \
         WHERE {WAITS} AND topic NOT IN ({texts}) ORDER BY id LIMIT $2) AS oldest) AS sized \
         JOIN {name} AS one ON one.id = sized.id \
         WHERE sized.ahead < $3 ORDER BY one.id"
    )
    .into()
}
