//! Files that people write.

use crate::program::{requests, settings::SETTINGS, source::Values};

/// A trace of requests, plain or compressed.
pub(crate) fn trace(bytes: &[u8]) -> bool {
    requests(bytes.to_vec()) > 0
}

pub(crate) fn traces() -> Vec<Vec<u8>> {
    let plain =
        b"time_s,key,size_bytes\n# a comment\n0.5,user:1,204\n1,a,b,c,0\n1e2,user:2,4294967295\n".to_vec();
    let compressed = zstd::bulk::compress(&plain, 3).expect("it can be compressed");
    vec![plain, compressed]
}

/// A configuration, and what is wrong with it.
pub(crate) fn config(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let mut findings = Vec::new();
    let _ = Values::read(text, &[], &mut findings);
    let variables = [("TIDINGS_NODE__ID".to_owned(), text.to_owned())];
    let _ = Values::read("", &variables, &mut Vec::new());
    findings.is_empty()
}

/// Every setting once, and what is likely to be written wrong.
pub(crate) fn configs() -> Vec<Vec<u8>> {
    let mut samples = vec![
        b"[node]\nid = \"a\"\nlisten = \"0.0.0.0:7400\"\n\n[[caches]]\nname = \"users\"\n".to_vec(),
        b"[node\nid = 1\n\"a\".b = [1, {c = 2}]\n".to_vec(),
        b"a = '''\nx'''\nb = 1979-05-27T07:32:00Z\nc = 0x_1\nd = inf\n".to_vec(),
    ];
    samples.extend(SETTINGS.iter().map(|setting| {
        let (table, name) = setting.path.rsplit_once('.').unwrap_or(("", setting.path));
        let head = match table.split_once("[]") {
            _ if table.is_empty() => String::new(),
            Some((list, _)) => format!("[[{list}]]\n"),
            None => format!("[{table}]\n"),
        };
        format!("{head}{name} = \"10s\"\n").into_bytes()
    }));
    samples
}
