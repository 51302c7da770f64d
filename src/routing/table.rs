//! Static routes by host.
