//! The bytes that ask whoami.
//!
//! In go validated parts (and a few header values of the client's request, validated here), out comes a complete
//! HTTP/1.1 request without body. Nothing else of the client's request goes along (docs/requests.md, 3).

use crate::query;
use crate::token::Token;
use crate::user::UserId;

/// The longest header value of the client's that is passed on, in bytes.
const VALUE_MAX: usize = 8192;

/// The longest request. Twisted closes the connection without an answer when the request line and all header lines
/// together have over 16,384 bytes (twisted/web/http.py, `HTTPChannel.totalHeadersSize`), so without this limit a
/// client with a long agent could make the homeserver look dead.
const REQUEST_MAX: usize = 16_000;

/// The longest device id that is passed along, in bytes: Synapse makes none longer (synapse/rest/client/login.py).
pub const DEVICE_MAX: usize = 512;

/// What is asked, and in whose name.
///
/// Synapse writes the caller's address and agent into the user's session list at every whoami, so they must be the
/// user's.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Path as configured, possibly with a query. The configuration vouches that it fits a request line.
    pub path: &'a [u8],
    /// `Host`, as configured.
    pub host: &'a [u8],
    /// Who is meant; sent as `Authorization: Bearer`, wherever the client had it.
    pub token: &'a Token<'a>,
    /// The client's `User-Agent`.
    pub user_agent: Option<&'a [u8]>,
    /// The client's chain of addresses, as `$proxy_add_x_forwarded_for` gives it.
    pub forwarded_for: &'a [u8],
    /// The client's address alone, for a chain that cannot be passed along: whoami must not take the proxy for the client.
    pub remote_addr: &'a [u8],
    /// `http` or `https`, as the client sees it.
    pub forwarded_proto: &'a [u8],
    /// For tokens of application services: in whose name they want to speak.
    pub masquerade: Option<Masquerade<'a>>,
}

/// The user, and perhaps the device, that an application service wants to be taken for.
#[derive(Clone, Copy, Debug)]
pub struct Masquerade<'a> {
    /// The `user_id` argument.
    pub user_id: UserId<'a>,
    /// The device argument with its value, decoded. It is passed along because Synapse answers 400 to a device that
    /// the user does not have.
    pub device_id: Option<(DeviceParam, &'a [u8])>,
}

/// By which name the device was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceParam {
    /// `device_id` (Matrix specification 1.17, MSC4326).
    Stable,
    /// `org.matrix.msc3202.device_id`, from before.
    Msc3202,
}

impl DeviceParam {
    /// The name of the argument.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stable => "device_id",
            Self::Msc3202 => "org.matrix.msc3202.device_id",
        }
    }
}

impl Request<'_> {
    /// The exact number of bytes that [`Self::write`] and [`Self::pieces`] give.
    #[expect(clippy::len_without_is_empty, reason = "a request is never empty")]
    pub fn len(&self) -> usize {
        let mut len = 0;
        self.pieces(&mut |piece| len += piece.len());
        len
    }

    /// Appends the request to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.pieces(&mut |piece| out.extend_from_slice(piece));
    }

    /// Gives the request's bytes to `put`, piece by piece in order: for memory that is not a `Vec`.
    ///
    /// A client's header is left out if its value is empty, over 8192 bytes, has a control character other than TAB,
    /// or would make the request longer than 16,000 bytes; a device id, if it is empty, over 512 bytes, not UTF-8 or
    /// has a NUL (Synapse answers 500 to the last two).
    pub fn pieces(&self, put: &mut dyn FnMut(&[u8])) {
        let mut written = 0;
        let mut line = |parts: &[&[u8]]| {
            for part in parts {
                written += part.len();
                put(part);
            }
            written
        };
        line(&[b"GET ", self.path]);
        self.arguments(&mut |piece| {
            line(&[piece]);
        });
        line(&[b" HTTP/1.1\r\n"]);
        line(&[b"Host: ", self.host, b"\r\n"]);
        line(&[b"Authorization: Bearer ", self.token.as_bytes(), b"\r\n"]);
        let mut size = line(&[b"Accept: application/json\r\nAccept-Encoding: identity\r\n"]);
        for (name, value) in self.client_headers() {
            let header: [&[u8]; 4] = [name, b": ", value, b"\r\n"];
            let len: usize = header.iter().map(|part| part.len()).sum();
            if size + len + 2 <= REQUEST_MAX {
                size = line(&header);
            }
        }
        line(&[b"\r\n"]);
    }

    /// What of the client's headers goes along, the dearest first: the address is what the session list is for.
    fn client_headers(&self) -> impl Iterator<Item = (&'static [u8], &[u8])> {
        // Synapse decodes the address as ASCII and answers 500 if it is not (synapse/http/site.py,
        // `_process_forwarded_headers`); an agent may have any bytes.
        let ascii = |value: &[u8]| is_field_value(value) && value.is_ascii();
        let proto = Some(self.forwarded_proto).filter(|value| ascii(value));
        let addresses = [self.forwarded_for, self.remote_addr];
        let address = addresses.into_iter().find(|value| ascii(value));
        let agent = self.user_agent.filter(|value| is_field_value(value));
        [
            (&b"X-Forwarded-Proto"[..], proto),
            (b"X-Forwarded-For", address),
            (b"User-Agent", agent),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }

    /// Gives what is appended to the configured path: nothing, or the masquerade as arguments with their `?` or `&`.
    fn arguments(&self, put: &mut dyn FnMut(&[u8])) {
        let Some(masquerade) = &self.masquerade else {
            return;
        };
        let has_arguments = self.path.contains(&b'?');
        put(if has_arguments { b"&" } else { b"?" });
        put(b"user_id=");
        query::encode(masquerade.user_id.as_str().as_bytes(), put);
        if let Some((param, value)) = masquerade.device_id.filter(|(_, value)| is_device(value)) {
            put(b"&");
            put(param.name().as_bytes());
            put(b"=");
            query::encode(value, put);
        }
    }
}

/// Whether `value` can stand in a header without becoming another one (RFC 9110, 5.5), and is worth sending.
fn is_field_value(value: &[u8]) -> bool {
    let visible = |&byte: &u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
    (1..=VALUE_MAX).contains(&value.len()) && value.iter().all(visible)
}

/// Whether `value` can be the id of a device.
fn is_device(value: &[u8]) -> bool {
    let fits = (1..=DEVICE_MAX).contains(&value.len()) && !value.contains(&0);
    fits && std::str::from_utf8(value).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wipe::Room;
    use proptest::prelude::*;

    const TOKEN: &[u8] = b"syt_YWxpY2U_kQzPvXwRtYuIoPlKjHgF_3fQx1a";

    /// The request as text, after `change` was made to an ordinary one.
    fn with(change: impl FnOnce(&mut Request<'_>)) -> String {
        let token = Token::new(TOKEN).unwrap();
        let mut request = Request {
            path: b"/_matrix/client/v3/account/whoami",
            host: b"synapse",
            token: &token,
            user_agent: Some(b"Element/1.11.80 (Linux)"),
            forwarded_for: b"203.0.113.7",
            remote_addr: b"203.0.113.7",
            forwarded_proto: b"https",
            masquerade: None,
        };
        change(&mut request);
        let mut bytes = Vec::new();
        request.write(&mut bytes);
        assert_eq!(request.len(), bytes.len());
        String::from_utf8(bytes).unwrap()
    }

    fn ghost(device_id: Option<(DeviceParam, &'static [u8])>) -> Masquerade<'static> {
        let user_id = UserId::try_from("@irc_björn:example.org").unwrap();
        Masquerade { user_id, device_id }
    }

    fn target(request: &str) -> &str {
        request.split(' ').nth(1).unwrap()
    }

    #[test]
    fn it_is_a_get_with_these_headers_and_no_other() {
        let expected = "GET /_matrix/client/v3/account/whoami HTTP/1.1\r\n\
            Host: synapse\r\n\
            Authorization: Bearer syt_YWxpY2U_kQzPvXwRtYuIoPlKjHgF_3fQx1a\r\n\
            Accept: application/json\r\n\
            Accept-Encoding: identity\r\n\
            X-Forwarded-Proto: https\r\n\
            X-Forwarded-For: 203.0.113.7\r\n\
            User-Agent: Element/1.11.80 (Linux)\r\n\
            \r\n";
        assert_eq!(with(|_| ()), expected);
    }

    #[test]
    fn a_masquerade_is_percent_encoded_into_the_query() {
        let request = with(|r| r.masquerade = Some(ghost(None)));
        let path = "/_matrix/client/v3/account/whoami?user_id=%40irc_bj%C3%B6rn%3Aexample.org";
        assert_eq!(target(&request), path);
        let request = with(|r| {
            r.path = b"/whoami?via=nginx";
            r.masquerade = Some(ghost(Some((DeviceParam::Msc3202, b"A&B"))));
        });
        let path = "/whoami?via=nginx&user_id=%40irc_bj%C3%B6rn%3Aexample.org&org.matrix.msc3202.device_id=A%26B";
        assert_eq!(target(&request), path);
    }

    #[test]
    fn a_device_that_synapse_cannot_have_made_is_left_out() {
        const LONG: &[u8] = &[b'D'; DEVICE_MAX + 1];
        let longest = with(|r| r.masquerade = Some(ghost(Some((DeviceParam::Stable, &LONG[1..])))));
        assert!(longest.contains("&device_id=DDD"));
        for device in [&b""[..], b"\xff", b"A\0B", LONG] {
            let request = with(|r| r.masquerade = Some(ghost(Some((DeviceParam::Stable, device)))));
            assert!(!request.contains("device_id"), "{device:?}");
        }
    }

    #[test]
    fn a_value_that_would_be_a_header_of_its_own_is_left_out() {
        for value in [
            &b"x\r\nX-Admin: 1"[..],
            b"x\nX-Admin: 1",
            b"x\rX-Admin: 1",
            b"x\0y",
            b"x\x7fy",
            b"x\x1by",
            b"",
        ] {
            let request = with(|r| r.user_agent = Some(value));
            assert!(!request.contains("User-Agent"), "{value:?}");
            let request = with(|r| (r.forwarded_for, r.remote_addr) = (value, b""));
            assert!(!request.contains("X-Forwarded-For"), "{value:?}");
            let request = with(|r| r.forwarded_proto = value);
            assert!(!request.contains("X-Forwarded-Proto"), "{value:?}");
        }
    }

    #[test]
    fn an_agent_may_have_tabs_and_any_alphabet_but_an_address_is_ascii() {
        let request = with(|r| r.user_agent = Some("Schildi\tchat/ä".as_bytes()));
        assert!(request.contains("User-Agent: Schildi\tchat/ä\r\n"));
        assert!(!with(|r| r.user_agent = None).contains("User-Agent"));
    }

    #[test]
    fn no_chain_of_addresses_leaves_the_session_list_without_the_client() {
        const LONG: &[u8] = &[b'1'; VALUE_MAX + 1];
        for chain in ["ä, 203.0.113.7".as_bytes(), b"", b"\x01", LONG] {
            let request = with(|r| (r.forwarded_for, r.remote_addr) = (chain, b"198.51.100.9"));
            assert!(request.contains("X-Forwarded-For: 198.51.100.9\r\n"));
        }
        let request = with(|r| r.remote_addr = b"198.51.100.9");
        assert!(request.contains("X-Forwarded-For: 203.0.113.7\r\n"));
    }

    #[test]
    fn a_client_cannot_make_the_request_too_long_for_synapse() {
        const LONG: &[u8] = &[b'x'; VALUE_MAX + 1];
        assert!(with(|r| r.user_agent = Some(&LONG[1..])).contains("User-Agent"));
        assert!(!with(|r| r.user_agent = Some(LONG)).contains("User-Agent"));
        let both = with(|r| {
            r.user_agent = Some(&LONG[1..]);
            r.forwarded_for = &LONG[1..];
        });
        assert!(both.len() <= REQUEST_MAX);
        assert!(both.contains("X-Forwarded-For") && !both.contains("User-Agent"));
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_the_request_has_one_head_and_known_lines(
            agent: Vec<u8>, address: Vec<u8>, user in "@[^:\0]{0,40}:[ -~]{1,40}", device: Vec<u8>,
        ) {
            let token = Token::new(TOKEN).unwrap();
            let user_id = UserId::try_from(user.as_str()).unwrap();
            let request = Request {
                path: b"/whoami",
                host: b"synapse",
                token: &token,
                user_agent: Some(&agent),
                forwarded_for: &address,
                remote_addr: b"203.0.113.7",
                forwarded_proto: b"https",
                masquerade: Some(Masquerade { user_id, device_id: Some((DeviceParam::Stable, &device)) }),
            };
            let mut bytes = Vec::new();
            request.write(&mut bytes);
            prop_assert_eq!(bytes.len(), request.len());

            let mut headers = [httparse::EMPTY_HEADER; 16];
            let mut parsed = httparse::Request::new(&mut headers);
            prop_assert_eq!(parsed.parse(&bytes), Ok(httparse::Status::Complete(bytes.len())));
            let known = [
                "Host", "Authorization", "Accept", "Accept-Encoding", "X-Forwarded-Proto", "X-Forwarded-For", "User-Agent",
            ];
            let names: Vec<_> = parsed.headers.iter().map(|header| header.name).collect();
            let expected: Vec<_> = known.into_iter().filter(|name| names.contains(name)).collect();
            prop_assert_eq!(names, expected);

            let (_, args) = parsed.path.unwrap().split_once('?').unwrap();
            let mut room = Room::<1024>::new();
            prop_assert_eq!(query::first(args.as_bytes(), b"user_id", &mut room), Some(user.as_bytes()));
            let asked = query::first(args.as_bytes(), b"device_id", &mut room);
            prop_assert_eq!(asked, Some(&device[..]).filter(|device| is_device(device)));
        }
    }
}
