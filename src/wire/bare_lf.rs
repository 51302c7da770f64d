//! Chunked bodies of answers whose lines end with a bare LF. RFC 9112, section 7.1, demands CRLF, but some old servers and CGI
//! programs write LF, and curl, browsers and nginx accept that.
//!
//! Only for answers: in a request, a bare LF can hide another request.

use bytes::{BufMut, BytesMut};

/// Gives the lines around the chunks of one body their CRLF. If the first line has one, all bytes pass unchanged.
#[derive(Debug, Default)]
pub struct BareLf {
    state: State,
    /// A line that has ended was a bare one.
    is_bare: bool,
    /// The byte before was a CR.
    is_after_cr: bool,
}

#[derive(Debug, Default)]
enum State {
    /// Nothing is left to do.
    #[default]
    Over,
    /// In the line before a chunk: its size, then its extensions.
    Size { size: u64, is_extension: bool },
    /// Bytes of a chunk that are left.
    Data(u64),
    /// In the line end after a chunk.
    DataEnd,
    /// In the trailers.
    Trailer { is_empty: bool },
}

impl BareLf {
    /// Returns the state before the first byte of a chunked body.
    pub fn new() -> Self {
        Self { state: State::Size { size: 0, is_extension: false }, ..Self::default() }
    }

    /// Returns whether all following bytes stay as they are.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Appends the next bytes of the body to `out`, at most twice as many.
    pub fn pass(&mut self, mut bytes: &[u8], out: &mut BytesMut) {
        while let Some(&byte) = bytes.first() {
            match &mut self.state {
                State::Over => return out.extend_from_slice(bytes),
                State::Data(left) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    out.extend_from_slice(&bytes[..count]);
                    bytes = &bytes[count..];
                    *left -= count as u64;
                    if *left == 0 {
                        self.state = State::DataEnd;
                    }
                    continue;
                }
                _ if byte == b'\n' => self.end_line(out),
                _ if byte == b'\r' => {}
                // A CR in the middle of a line.
                _ if self.is_after_cr => self.state = State::Over,
                State::Size { size, is_extension } => match char::from(byte).to_digit(16) {
                    Some(digit) if !*is_extension && *size >> 60 == 0 => *size = (*size << 4) | u64::from(digit),
                    None => *is_extension = true,
                    // Too large for any parser.
                    Some(_) if !*is_extension => self.state = State::Over,
                    Some(_) => {}
                },
                State::DataEnd => self.state = State::Over,
                State::Trailer { is_empty } => *is_empty = false,
            }
            self.is_after_cr = byte == b'\r';
            out.put_u8(byte);
            bytes = &bytes[1..];
        }
    }

    /// Handles the LF of a line.
    fn end_line(&mut self, out: &mut BytesMut) {
        if !self.is_after_cr {
            out.put_u8(b'\r');
            self.is_bare = true;
        }
        self.state = match self.state {
            // The server writes CRLF.
            _ if !self.is_bare => State::Over,
            State::Size { size: 0, .. } | State::Trailer { is_empty: false } => State::Trailer { is_empty: true },
            State::Size { size, .. } => State::Data(size),
            State::DataEnd => State::Size { size: 0, is_extension: false },
            State::Over | State::Data(_) | State::Trailer { .. } => State::Over,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
        let (mut lines, mut out) = (BareLf::new(), BytesMut::new());
        pieces.into_iter().for_each(|piece| lines.pass(piece, &mut out));
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn lines_around_chunks_get_their_cr_and_data_stay_as_they_are() {
        for (body, wanted) in [
            ("5\nhello\n0\n\n", "5\r\nhello\r\n0\r\n\r\n"),
            (
                "a;x=\"y\"\nab\ncd\r\nef\n\n0;z\nT: v\nU: w\n\n",
                "a;x=\"y\"\r\nab\ncd\r\nef\n\r\n0;z\r\nT: v\r\nU: w\r\n\r\n",
            ),
            ("5\nhello\r\n0\r\n\nnext\n", "5\r\nhello\r\n0\r\n\r\nnext\n"),
            // The first line is right, so nothing is changed.
            ("5\r\nhello\n0\n\n", "5\r\nhello\n0\n\n"),
            // Not chunks.
            ("5\nhello!\n0\n\n", "5\r\nhello!\n0\n\n"),
            ("11111111111111111\nx\n", "11111111111111111\nx\n"),
            ("5\rx\nhello\n", "5\rx\nhello\n"),
        ] {
            let bytes = body.as_bytes();
            assert_eq!(passed(bytes.chunks(1)), wanted, "{body:?} byte by byte");
            for end in 0..=bytes.len() {
                assert_eq!(passed([&bytes[..end], &bytes[end..]]), wanted, "{body:?} to {end}");
            }
        }
    }
}
