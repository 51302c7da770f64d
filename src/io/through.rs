//! Macros for streams that wrap another one in a field `inner`. Each macro passes on some calls unchanged.

/// Passes on all of `AsyncWrite`.
macro_rules! write_through {
    () => {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.inner).poll_write(cx, buf)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
        }

        fn is_write_vectored(&self) -> bool {
            self.inner.is_write_vectored()
        }

        $crate::io::through::flush_through!();
    };
}

/// Passes on `poll_flush` and `poll_shutdown`, for a wrapper that handles writes itself.
macro_rules! flush_through {
    () => {
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.inner).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.inner).poll_shutdown(cx)
        }
    };
}

/// Passes on all of [`Io`](super::Io).
macro_rules! said_through {
    () => {
        fn reset(&mut self) {
            self.inner.reset();
        }

        fn abandon(&mut self) {
            self.inner.abandon();
        }
    };
}

pub(crate) use {flush_through, said_through, write_through};
