//! From a request to the hash of its user: everything that needs no nginx.
