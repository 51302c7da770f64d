//! Fields of an X.509 certificate (RFC 5280, section 4.1) that are needed for certificates which webpki rejects.
//!
//! ```text
//! Certificate     ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signature BIT STRING }
//! tbsCertificate  ::= SEQUENCE { [0] version, serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo, ... }
//! ```

use jiff::civil::DateTime;

use crate::printable::printable;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// A certificate of any version, without its extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certificate<'a> {
    /// The signed part, with its DER header.
    pub signed: &'a [u8],
    /// Content of the AlgorithmIdentifier.
    pub signature_algorithm: &'a [u8],
    pub signature: &'a [u8],
    /// Contents of the Names.
    pub issuer: &'a [u8],
    pub subject: &'a [u8],
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
    /// Content of the AlgorithmIdentifier.
    pub key_algorithm: &'a [u8],
    pub key: &'a [u8],
}

impl<'a> Certificate<'a> {
    /// Returns the common name of the issuer, or else its organization.
    pub fn issuer_name(&self) -> Option<String> {
        name(self.issuer)
    }

    /// Returns the common name of the subject, or else its organization. `None`: it has only alternative names.
    pub fn subject_name(&self) -> Option<String> {
        name(self.subject)
    }

    /// Parses a certificate. `None`: `der` is not a certificate.
    pub fn parse(der: &'a [u8]) -> Option<Self> {
        let mut outer = Fields(der);
        let mut whole = Fields(outer.take(SEQUENCE)?);
        let (signed, mut body) = whole.take_with_header(SEQUENCE)?;
        let signature_algorithm = whole.take(SEQUENCE)?;
        let signature = whole.bits()?;
        if !outer.0.is_empty() || !whole.0.is_empty() {
            return None;
        }
        if body.0.first() == Some(&VERSION) {
            body.take(VERSION)?;
        }
        body.take(INTEGER)?;
        body.take(SEQUENCE)?;
        let issuer = body.take(SEQUENCE)?;
        let mut validity = Fields(body.take(SEQUENCE)?);
        let (not_before, not_after) = (validity.time()?, validity.time()?);
        let subject = body.take(SEQUENCE)?;
        let mut public = Fields(body.take(SEQUENCE)?);
        let (key_algorithm, key) = (public.take(SEQUENCE)?, public.bits()?);
        Some(Self {
            signed,
            signature_algorithm,
            signature,
            issuer,
            subject,
            not_before,
            not_after,
            key_algorithm,
            key,
        })
    }
}

/// Returns the common name of a Name, or else its organization (X.520: 2.5.4.3 and 2.5.4.10).
fn name(of: &[u8]) -> Option<String> {
    let value = |oid: &[u8]| {
        let at = of.windows(oid.len()).position(|found| found == oid)? + oid.len();
        // Tag of the string, its length (below 128), its bytes.
        let length = usize::from(*of.get(at + 1)?);
        let bytes = of.get(at + 2..at + 2 + length)?;
        Some(printable(&String::from_utf8_lossy(bytes)))
    };
    value(&[0x06, 3, 0x55, 4, 3]).or_else(|| value(&[0x06, 3, 0x55, 4, 10]))
}

/// DER values that are not parsed yet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.take_with_header(tag).map(|(_, content)| content.0)
    }

    fn take_with_header(&mut self, tag: u8) -> Option<(&'a [u8], Fields<'a>)> {
        let (&found, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        // Below 128 the byte is the length, else the number of length bytes. A certificate is shorter than 2^24 bytes.
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x83 => {
                let (length, rest) = rest.split_at_checked(usize::from(first & 0x0f))?;
                (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        let (whole, _) = self.0.split_at(self.0.len() - rest.len());
        self.0 = rest;
        (found == tag).then_some((whole, Fields(content)))
    }

    /// Takes a BIT STRING of whole bytes.
    fn bits(&mut self) -> Option<&'a [u8]> {
        self.take(BIT_STRING)?.strip_prefix(&[0])
    }

    /// Takes `YYMMDDHHMMSSZ` (1950 to 2049) or `YYYYMMDDHHMMSSZ`.
    fn time(&mut self) -> Option<i64> {
        let text = match *self.0.first()? {
            UTC_TIME => {
                let short = std::str::from_utf8(self.take(UTC_TIME)?).ok()?;
                let century = if short < "50" { "20" } else { "19" };
                format!("{century}{short}")
            }
            _ => std::str::from_utf8(self.take(GENERALIZED_TIME)?).ok()?.to_owned(),
        };
        let time = DateTime::strptime("%Y%m%d%H%M%SZ", text).ok()?;
        Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_a_certificate_are_read_and_prefixes_are_none() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["a.test".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2024, 2, 29);
        params.not_after = rcgen::date_time_ymd(2051, 1, 1);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let certificate = Certificate::parse(&der).unwrap();
        assert_eq!(certificate.issuer, certificate.subject);
        assert_eq!((certificate.not_before, certificate.not_after), (1_709_164_800, 2_556_144_000));
        assert_eq!(certificate.key, key.public_key_raw());
        for cut in 0..der.len() {
            assert_eq!(Certificate::parse(&der[..cut]), None, "byte {cut}");
        }
        for position in 0..der.len() {
            let mut other = der.clone();
            other[position] ^= 0xff;
            let _ = Certificate::parse(&other);
        }
    }
}
