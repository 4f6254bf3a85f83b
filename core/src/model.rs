//! Twisted's and Synapse's rules as they are written there, without regard to cost: what [`crate::query`] and
//! [`crate::token`] are held against by their tests and, included by path, by the fuzz target `find`.

/// The arguments of a query in their order, decoded: twisted/web/http.py, `parse_qs(query, keep_blank_values=1)`.
pub(crate) fn parse_qs(query: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let items = query
        .split(|&byte| byte == b'&')
        .flat_map(|part| part.split(|&byte| byte == b';'));
    items
        .filter_map(|item| {
            let equals = item.iter().position(|&byte| byte == b'=')?;
            Some((unquote(&item[..equals]), unquote(&item[equals + 1..])))
        })
        .collect()
}

/// `unquote_to_bytes(quoted.replace(b"+", b" "))` of Python's urllib.parse.
fn unquote(quoted: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = quoted
        .iter()
        .map(|&byte| if byte == b'+' { b' ' } else { byte })
        .collect();
    let mut bits = spaced.split(|&byte| byte == b'%');
    let mut bytes = bits.next().unwrap_or_default().to_vec();
    for bit in bits {
        let two = bit
            .get(..2)
            .filter(|two| two.iter().all(u8::is_ascii_hexdigit));
        let escaped = two
            .and_then(|two| std::str::from_utf8(two).ok())
            .and_then(|two| u8::from_str_radix(two, 16).ok());
        bytes.push(escaped.unwrap_or(b'%'));
        bytes.extend_from_slice(if escaped.is_some() { &bit[2..] } else { bit });
    }
    bytes
}

/// synapse/api/auth/base.py, `get_access_token_from_request`, on header values as twisted/web/http.py strips them;
/// and `None` for a token that this project does not take.
pub(crate) fn access_token(headers: &[Vec<u8>], args: &[(Vec<u8>, Vec<u8>)]) -> Option<Vec<u8>> {
    let mut of_args = args.iter().filter(|(name, _)| name == b"access_token");
    let token = if headers.is_empty() {
        of_args.next()?.1.clone()
    } else {
        if of_args.next().is_some() || headers.len() > 1 {
            return None;
        }
        let blank = |byte: &u8| *byte == b' ' || *byte == b'\t';
        let start = headers[0].iter().position(|byte| !blank(byte))?;
        let end = headers[0].iter().rposition(|byte| !blank(byte))? + 1;
        let parts: Vec<_> = headers[0][start..end].split(|&byte| byte == b' ').collect();
        if parts[0] != b"Bearer" || parts.len() != 2 {
            return None;
        }
        parts[1].to_vec()
    };
    let usable = (1..=4096).contains(&token.len());
    (usable && token.iter().all(|byte| (0x21..=0x7e).contains(byte))).then_some(token)
}
