//! SPDY/3.1 header blocks: pairs of name and value, compressed by one zlib stream per direction of a connection.
//!
//! ```text
//! block, before compression:  count (32) | { name length (32) | name | value length (32) | value }
//! ```
//!
//! Source: SPDY Protocol, draft 3.1, section 2.6.10. The encoder does not compress: it writes stored deflate blocks,
//! which every server accepts. The decoder takes the blocks of Go's client, which use the dictionary of the
//! specification.

use std::sync::OnceLock;

use bytes::BytesMut;
use miniz_oxide::inflate::{
    TINFLStatus,
    core::{DecompressorOxide, decompress, inflate_flags::TINFL_FLAG_HAS_MORE_INPUT},
};

/// Header pairs, in order.
pub type Headers = Vec<(String, String)>;

/// Maximum length of a block, uncompressed. Those of Kubernetes are under 200 bytes.
const LONGEST_BLOCK: usize = 64 * 1024;
const MOST_HEADERS: usize = 128;

/// Size of deflate's window (RFC 1951, section 2).
const WINDOW: usize = 32 * 1024;

/// Encoder of the header blocks in one direction of a connection.
#[derive(Debug, Default)]
pub struct Encoder {
    started: bool,
}

impl Encoder {
    /// Appends a block. The first call writes the zlib header. Then follow a stored deflate block, and an empty one
    /// that aligns the stream to a byte, like a sync flush (RFC 1951, section 3.2.4).
    pub fn encode(&mut self, headers: &[(&str, &str)], out: &mut BytesMut) {
        if !self.started {
            out.extend_from_slice(&[0x78, 0x01]);
            self.started = true;
        }
        let length = 4 + headers.iter().map(|(name, value)| 8 + name.len() + value.len()).sum::<usize>();
        let stored = u16::try_from(length).expect("our own headers fit into one stored block");
        out.extend_from_slice(&[0]);
        out.extend_from_slice(&stored.to_le_bytes());
        out.extend_from_slice(&(!stored).to_le_bytes());
        put_text_count(out, headers.len());
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            put_text_count(out, text.len());
            out.extend_from_slice(text.as_bytes());
        }
        out.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
    }
}

fn put_text_count(out: &mut BytesMut, count: usize) {
    out.extend_from_slice(&(count as u32).to_be_bytes());
}

/// Decoder of the header blocks in one direction of a connection.
pub struct Decoder {
    inflate: Box<DecompressorOxide>,
    /// The last 32 KiB of decompressed bytes, as a ring buffer: back references point into it.
    window: Box<[u8]>,
    at: usize,
    started: bool,
}

/// Why a header block cannot be decoded. The compression is stateful, so the connection is unusable afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadersError {
    #[error("the header block is not zlib with the SPDY dictionary")]
    Zlib,
    #[error("the header block does not inflate")]
    Deflate,
    #[error("the header block is longer than {LONGEST_BLOCK} bytes")]
    TooLong,
    #[error("the header block is malformed")]
    Malformed,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { inflate: Box::default(), window: vec![0; WINDOW].into(), at: 0, started: false }
    }
}

impl Decoder {
    /// Decodes the next block of the connection. An empty block has no headers.
    ///
    /// # Errors
    /// See [`HeadersError`].
    pub fn decode(&mut self, block: &[u8]) -> Result<Headers, HeadersError> {
        if block.is_empty() {
            return Ok(Headers::new());
        }
        let deflate = if self.started { block } else { self.start(block)? };
        parse(&self.inflate(deflate)?)
    }

    /// Reads the zlib header, and sets up the dictionary if the header announces it (RFC 1950, section 2.2).
    fn start<'a>(&mut self, block: &'a [u8]) -> Result<&'a [u8], HeadersError> {
        let [method, flags, rest @ ..] = block else { return Err(HeadersError::Zlib) };
        if method & 0x0f != 8 || (u16::from(*method) << 8 | u16::from(*flags)) % 31 != 0 {
            return Err(HeadersError::Zlib);
        }
        self.started = true;
        if flags & 0x20 == 0 {
            return Ok(rest);
        }
        let Some((id, rest)) = rest.split_first_chunk::<4>() else { return Err(HeadersError::Zlib) };
        let dictionary = dictionary();
        if u32::from_be_bytes(*id) != adler32(dictionary) {
            return Err(HeadersError::Zlib);
        }
        self.window[..dictionary.len()].copy_from_slice(dictionary);
        self.at = dictionary.len();
        Ok(rest)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, HeadersError> {
        let mut block = Vec::new();
        loop {
            let (status, read, written) =
                decompress(&mut self.inflate, input, &mut self.window, self.at, TINFL_FLAG_HAS_MORE_INPUT);
            block.extend_from_slice(&self.window[self.at..self.at + written]);
            self.at = (self.at + written) % WINDOW;
            input = &input[read..];
            if block.len() > LONGEST_BLOCK {
                return Err(HeadersError::TooLong);
            }
            match status {
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput => return Ok(block),
                _ => return Err(HeadersError::Deflate),
            }
        }
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("started", &self.started).finish_non_exhaustive()
    }
}

fn parse(block: &[u8]) -> Result<Headers, HeadersError> {
    fn number(rest: &mut &[u8]) -> Option<usize> {
        let (number, after) = rest.split_first_chunk::<4>()?;
        *rest = after;
        usize::try_from(u32::from_be_bytes(*number)).ok()
    }
    fn text(rest: &mut &[u8]) -> Option<String> {
        let length = number(rest)?;
        let (text, after) = rest.split_at_checked(length)?;
        *rest = after;
        String::from_utf8(text.to_vec()).ok()
    }
    let mut rest = block;
    let count = number(&mut rest).filter(|count| *count <= MOST_HEADERS).ok_or(HeadersError::Malformed)?;
    let headers = (0..count).map(|_| Some((text(&mut rest)?, text(&mut rest)?))).collect::<Option<Headers>>();
    headers.filter(|_| rest.is_empty()).ok_or(HeadersError::Malformed)
}

/// Returns the Adler-32 checksum (RFC 1950, section 8.2).
fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    b << 16 | a
}

/// Returns the dictionary of SPDY/3, section 2.6.10.1: words with their lengths before them, then text without lengths.
fn dictionary() -> &'static [u8] {
    const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age \
        allow authorization cache-control connection content-base content-encoding content-language content-length content-location \
        content-md5 content-range content-type date etag expect expires from host if-match if-modified-since if-none-match if-range \
        if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization range referer \
        retry-after server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get status \
        200|OK version HTTP/1.1 url public set-cookie keep-alive origin";
    const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative \
        Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server \
        Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, \
        Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
        text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    static DICTIONARY: OnceLock<Vec<u8>> = OnceLock::new();
    DICTIONARY.get_or_init(|| {
        let mut bytes = Vec::new();
        for word in WORDS.split(' ') {
            let word = word.replace('|', " ");
            bytes.extend((word.len() as u32).to_be_bytes());
            bytes.extend(word.as_bytes());
        }
        bytes.extend(TEXT.as_bytes());
        bytes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_one_that_the_specification_names() {
        assert_eq!(dictionary().len(), 1423);
        // The DICTID in the first header block of every spdystream client.
        assert_eq!(adler32(dictionary()), 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_are_read_as_they_were_written_through_one_connection() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        for id in 0..200 {
            let id = id.to_string();
            let headers = [("streamtype", "data"), ("port", "5432"), ("requestid", &id)];
            let mut block = BytesMut::new();
            encoder.encode(&headers, &mut block);
            let wanted = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(decoder.decode(&block).unwrap(), wanted);
        }
    }

    #[test]
    fn hostile_blocks_are_errors() {
        let decode = |block: &[u8]| Decoder::default().decode(block);
        assert_eq!(decode(b"\x78"), Err(HeadersError::Zlib));
        assert_eq!(decode(b"\x79\x01abc"), Err(HeadersError::Zlib));
        assert_eq!(decode(b"\x78\x01\x07\x00"), Err(HeadersError::Deflate));
        assert_eq!(decode(b"\x78\x01\x00\x04\x00\xfb\xff\xff\xff\xff\xff"), Err(HeadersError::Malformed));
        assert_eq!(
            decode(b"\x78\x01\x00\x08\x00\xf7\xff\x00\x00\x00\x01\x00\x00\x00\x09"),
            Err(HeadersError::Malformed)
        );
        assert_eq!(decode(b"\x78\x01"), Err(HeadersError::Malformed));
    }
}
