//! nginx in Rust, and nothing of Matrix: requests, connections, upstreams, timers, shared memory, log lines, versions, each in one
//! place.

#[macro_use]
pub(crate) mod log;

pub(crate) mod buffer;
pub(crate) mod built_for;
pub(crate) mod clock;
pub(crate) mod compat;
pub(crate) mod conf;
pub(crate) mod connection;
pub(crate) mod detached;
pub(crate) mod event;
pub(crate) mod guard;
pub(crate) mod keepalive;
pub(crate) mod library;
pub(crate) mod memory;
pub(crate) mod modules;
pub(crate) mod phases;
pub(crate) mod pool;
pub(crate) mod process;
pub(crate) mod request;
pub(crate) mod reserve;
pub(crate) mod response;
pub(crate) mod shared;
#[cfg(ngx_feature = "http_ssl")]
pub(crate) mod ssl;
pub(crate) mod upstream;
pub(crate) mod url;
