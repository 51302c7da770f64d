//! The WebSocket envelope (RFC 6455).
