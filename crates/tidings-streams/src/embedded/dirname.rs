//! Names of topics as names of directories.

use crate::name::Name;

/// Every byte but small letters, digits, `_`, `-` and inner dots as `%XX`: it is told apart also where file names do
/// not tell capitals from small letters.
pub(super) fn encode(name: &Name) -> String {
    let mut out = String::new();
    for (place, byte) in name.as_str().bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => out.push(char::from(byte)),
            b'.' if place > 0 => out.push('.'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn decode(text: &str) -> Option<Name> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let plain = match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        };
        bytes.push(plain);
    }
    Name::new(std::str::from_utf8(&bytes).ok()?).ok()
}

/// The topics that have a directory there.
pub(super) fn listed(names: &[(String, u64)]) -> Vec<Name> {
    names.iter().filter_map(|(name, _)| decode(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_being_directories() {
        for text in ["orders", "Orders", "orders.created", "..", ".x", "заказы", "a:b", &"é".repeat(40)]
        {
            let name = Name::new(text).unwrap();
            let encoded = encode(&name);
            assert!(encoded.len() <= 255 && !encoded.starts_with('.'), "{encoded}");
            assert_eq!(decode(&encoded), Some(name));
        }
        assert_ne!(encode(&Name::new("A").unwrap()), encode(&Name::new("a").unwrap()));
    }
}
