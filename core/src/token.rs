//! The token that a request shows, if it shows one that Synapse would accept.

/// An access token in the only form in which one is looked up, sent or digested: 1 to 4096 bytes of visible ASCII.
///
/// It has no `Display`, and `Debug` shows nothing of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token<'a>(&'a [u8]);

impl std::fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl<'a> Token<'a> {
    /// The longest token that is looked up, in bytes.
    pub const MAX: usize = 4096;

    /// `None` if empty, longer than [`Self::MAX`] bytes, or with a byte outside `!` to `~`.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let fits = (1..=Self::MAX).contains(&bytes.len());
        (fits && bytes.iter().all(u8::is_ascii_graphic)).then_some(Self(bytes))
    }

    /// The token itself: for the digest and for the request to whoami, for nothing else.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}
