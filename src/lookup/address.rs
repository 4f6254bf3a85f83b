//! The address of a server of a group: connections, TLS sessions and servers that hang are kept by it.

use core::ptr;

use nginx_sys::{ngx_peer_connection_t, sockaddr};

/// The address of a server, to compare it with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    len: usize,
    bytes: [u8; size_of::<libc::sockaddr_storage>()],
}

impl Address {
    /// A copy of an address.
    ///
    /// # Safety
    ///
    /// `address` is NULL or has `len` bytes.
    unsafe fn new(address: *const sockaddr, len: u32) -> Self {
        let mut bytes = [0; size_of::<libc::sockaddr_storage>()];
        let len = if address.is_null() {
            0
        } else {
            bytes.len().min(len as usize)
        };
        // SAFETY: the caller's; both have `len` bytes.
        unsafe { ptr::copy_nonoverlapping(address.cast(), bytes.as_mut_ptr(), len) };
        Self { len, bytes }
    }

    /// The address of the server that a peer stands for.
    ///
    /// # Safety
    ///
    /// The peer is live.
    pub(super) unsafe fn of(peer: *const ngx_peer_connection_t) -> Self {
        // SAFETY: the caller's; the balancer sets both together.
        unsafe { Self::new((*peer).sockaddr, (*peer).socklen) }
    }
}
