//! The few fields of an X.509 certificate that the path verifier does not hand out: validity, names, whether it
//! is an authority. For people and for reports; trust never rests on what is read here.

use std::net::IpAddr;

use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time};

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

const OID_COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const OID_SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const OID_BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

/// What could be read of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fields {
    pub(crate) serial: String,
    pub(crate) issuer: String,
    pub(crate) subject: String,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) is_ca: bool,
    pub(crate) uris: Vec<String>,
    pub(crate) names: Vec<String>,
}

/// Reads a certificate's fields; `None` if it is not one.
pub(crate) fn fields(certificate: &[u8]) -> Option<Fields> {
    let mut certificate = Reader(Reader(certificate).take(SEQUENCE)?);
    let mut body = Reader(certificate.take(SEQUENCE)?);
    body.take_optional(VERSION);
    let serial = serial_hex(body.take(INTEGER)?);
    body.take(SEQUENCE)?;
    let issuer = common_name(body.take(SEQUENCE)?);
    let mut validity = Reader(body.take(SEQUENCE)?);
    let (not_before, not_after) = (instant(validity.next()?)?, instant(validity.next()?)?);
    let subject = common_name(body.take(SEQUENCE)?);
    let mut fields = Fields {
        serial,
        issuer,
        subject,
        not_before,
        not_after,
        is_ca: false,
        uris: Vec::new(),
        names: Vec::new(),
    };
    while let Some((tag, content)) = body.next() {
        if tag == EXTENSIONS {
            read_extensions(content, &mut fields);
        }
    }
    Some(fields)
}

/// A serial number as people write it: lower-case hexadecimal digits without leading zero bytes.
pub(crate) fn serial_hex(serial: &[u8]) -> String {
    let start = serial.iter().position(|byte| *byte != 0).unwrap_or_else(|| serial.len().saturating_sub(1));
    serial[start..].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Cuts tag-length-value elements off the front of what is left.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], rest) = self.0.split_first_chunk::<2>()?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if digits.is_empty() || digits.len() > 4 {
                return None;
            }
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    fn take(&mut self, expected: u8) -> Option<&'a [u8]> {
        self.next().filter(|(tag, _)| *tag == expected).map(|(_, content)| content)
    }

    fn take_optional(&mut self, expected: u8) -> Option<&'a [u8]> {
        if self.0.first() == Some(&expected) { self.take(expected) } else { None }
    }
}

fn common_name(name: &[u8]) -> String {
    let mut name = Reader(name);
    while let Some((_, set)) = name.next() {
        let Some(mut attribute) = Reader(set).take(SEQUENCE).map(Reader) else { continue };
        if attribute.take(OID) == Some(OID_COMMON_NAME)
            && let Some((_, value)) = attribute.next()
        {
            return String::from_utf8_lossy(value).into_owned();
        }
    }
    String::new()
}

fn instant((tag, text): (u8, &[u8])) -> Option<OffsetDateTime> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.is_ascii())?;
    let number = |digits: &str| digits.parse::<u8>().ok();
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year = i32::from(number(year)?);
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    if rest.len() != 11 || !rest.ends_with('Z') {
        return None;
    }
    let month = Month::try_from(number(&rest[0..2])?).ok()?;
    let date = Date::from_calendar_date(year, month, number(&rest[2..4])?).ok()?;
    let time = Time::from_hms(number(&rest[4..6])?, number(&rest[6..8])?, number(&rest[8..10])?).ok()?;
    Some(PrimitiveDateTime::new(date, time).assume_utc())
}

fn read_extensions(content: &[u8], fields: &mut Fields) {
    let Some(mut extensions) = Reader(content).take(SEQUENCE).map(Reader) else { return };
    while let Some((_, extension)) = extensions.next() {
        let mut extension = Reader(extension);
        let Some(oid) = extension.take(OID) else { continue };
        // The optional `critical` flag stands between the name and the value.
        let mut value = extension.next();
        while let Some((tag, content)) = value {
            if tag == OCTET_STRING {
                read_extension(oid, content, fields);
            }
            value = extension.next();
        }
    }
}

fn read_extension(oid: &[u8], value: &[u8], fields: &mut Fields) {
    let Some(mut content) = Reader(value).take(SEQUENCE).map(Reader) else { return };
    if oid == OID_BASIC_CONSTRAINTS {
        fields.is_ca = content.next() == Some((0x01, &[0xff]));
    } else if oid == OID_SUBJECT_ALT_NAME {
        while let Some((tag, name)) = content.next() {
            let text = || String::from_utf8_lossy(name).into_owned();
            match tag {
                0x82 => fields.names.push(text()),
                0x86 => fields.uris.push(text()),
                0x87 => fields.names.extend(ip(name).map(|ip| ip.to_string())),
                _ => {}
            }
        }
    }
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from).ok();
    v4.or_else(|| <[u8; 16]>::try_from(octets).map(IpAddr::from).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_time_forms_are_read() {
        let date = Date::from_calendar_date(2031, Month::February, 3).unwrap();
        let expected = PrimitiveDateTime::new(date, Time::from_hms(4, 5, 6).unwrap()).assume_utc();
        assert_eq!(instant((UTC_TIME, b"310203040506Z")), Some(expected));
        assert_eq!(instant((GENERALIZED_TIME, b"20310203040506Z")), Some(expected));
        assert_eq!(instant((GENERALIZED_TIME, b"20310203040506")), None);
        assert_eq!(instant((UTC_TIME, b"311303040506Z")), None);
    }

    #[test]
    fn serials_lose_their_sign_byte() {
        assert_eq!(serial_hex(&[0, 0xab, 1]), "ab01");
        assert_eq!(serial_hex(&[0]), "00");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            fields(&bytes);
        }

        #[test]
        fn a_damaged_certificate_never_panics(at in 0usize..400, to in any::<u8>()) {
            let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
            let params = rcgen::CertificateParams::new(vec!["a.b".to_owned(), "127.0.0.1".to_owned()]).unwrap();
            let mut der = params.self_signed(&key).unwrap().der().to_vec();
            let at = at % der.len();
            der[at] = to;
            fields(&der);
        }
    }
}
