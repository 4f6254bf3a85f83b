//! Values that both formats share: sizes as Synapse writes them, times, and what may stand in nginx's file unquoted.

/// Bytes, as Synapse's `parse_size` reads them: a number with K, M, G or T (powers of 1024) or without.
/// nginx's small letters are taken too.
pub(super) fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, shift) = match text.char_indices().next_back()? {
        (at, 'K' | 'k') => (&text[..at], 10),
        (at, 'M' | 'm') => (&text[..at], 20),
        (at, 'G' | 'g') => (&text[..at], 30),
        (at, 'T' | 't') => (&text[..at], 40),
        _ => (text, 0),
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Seconds, of `90s`, `5m`, `1h` or a plain number.
pub(super) fn seconds(text: &str) -> Option<u32> {
    let text = text.trim();
    let (number, factor) = match text.char_indices().next_back()? {
        (at, 's') => (&text[..at], 1),
        (at, 'm') => (&text[..at], 60),
        (at, 'h') => (&text[..at], 3600),
        _ => (text, 1),
    };
    number.parse::<u32>().ok()?.checked_mul(factor)
}

/// Whether it can stand in nginx's file as one word: nothing in it ends a word, a directive or a block, or is a variable.
pub(super) fn is_one_word(text: &str) -> bool {
    !text.is_empty()
        && !text
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || "{};\"'\\#$".contains(c))
}

/// Whether it is a name that DNS may have or an address.
pub(super) fn is_host(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok()
        || (!text.is_empty()
            && text.len() <= 253
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)))
}

/// Whether a worker's name matches a pattern in which `*` stands for anything.
pub(super) fn glob(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len())
                .filter(|at| rest.is_char_boundary(*at))
                .any(|at| glob(tail, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_synapse_reads_them() {
        assert_eq!(size("50M"), Some(52_428_800));
        assert_eq!(size("1048576"), Some(1_048_576));
        assert_eq!(size("50MB"), None);
        assert_eq!(size(""), None);
    }

    #[test]
    fn times_are_read_as_nginx_reads_them() {
        assert_eq!(seconds("10m"), Some(600));
        assert_eq!(seconds("90"), Some(90));
        assert_eq!(seconds("soon"), None);
    }

    #[test]
    fn nothing_that_ends_a_directive_is_one_word() {
        assert!(is_one_word("/run/nginx.pid"));
        assert!(!is_one_word("/run/nginx.pid; user root"));
        assert!(!is_one_word("$host"));
    }

    #[test]
    fn a_star_stands_for_anything() {
        assert!(glob("sync*", "sync_worker1"));
        assert!(glob("*_reader", "client_reader"));
        assert!(!glob("sync*", "resync"));
    }
}
