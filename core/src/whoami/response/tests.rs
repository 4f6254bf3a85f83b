use super::*;
use proptest::prelude::*;
use proptest::sample::Index;

/// The default of `matrix_user_hash_buffer_size` on most machines.
const LIMIT: usize = 4096;

const ALICE: &str = r#"{"user_id":"@alice:example.org","is_guest":false,"device_id":"GHTYAJCE"}"#;

/// As a Synapse 1.163.2 sends it.
fn synapse() -> String {
    format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nServer: Synapse/1.163.2\r\n\
         Date: Mon, 23 Nov 2026 21:14:05 GMT\r\nContent-Type: application/json\r\n\
         Cache-Control: no-cache, no-store, must-revalidate\r\nAccess-Control-Allow-Origin: *\r\n\r\n\
         {:x}\r\n{ALICE}\r\n0\r\n\r\n",
        ALICE.len()
    )
}

/// What a whole response of these bytes is.
fn whole(response: &str) -> Response<'_> {
    match parse(response.as_bytes(), LIMIT, false) {
        Ok(Progress::Complete(response)) => response,
        other => panic!("{other:?} for {response:?}"),
    }
}

/// What is wrong with these bytes, with or without more to come.
fn wrong(response: &str) -> Malformed {
    let open = parse(response.as_bytes(), LIMIT, false).expect_err(response);
    assert_eq!(
        parse(response.as_bytes(), LIMIT, true),
        Err(open),
        "{response:?}"
    );
    open
}

#[test]
fn synapses_own_answer_is_read_and_its_connection_kept() {
    let response = synapse();
    let read = whole(&response);
    assert_eq!((read.status, read.keepalive), (200, true));
    assert!(matches!(read.body, Cow::Borrowed(body) if body == ALICE.as_bytes()));
}

#[test]
fn a_connection_is_kept_only_if_both_versions_of_http_would() {
    for (head, keepalive) in [
        ("HTTP/1.1 200 OK\r\n", true),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n", false),
        ("HTTP/1.1 200 OK\r\nconnection: X-Y , CLOSE\r\n", false),
        (
            "HTTP/1.1 200 OK\r\nConnection: keep-alive, close\r\n",
            false,
        ),
        ("HTTP/1.1 200 OK\r\nConnection: closed\r\n", true),
        ("HTTP/1.0 200 OK\r\n", false),
        ("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n", true),
        (
            "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nConnection: close\r\n",
            false,
        ),
    ] {
        let response = format!("{head}Content-Length: 2\r\n\r\n{{}}");
        assert_eq!(whole(&response).keepalive, keepalive, "{head:?}");
        let eof = parse(response.as_bytes(), LIMIT, true).unwrap();
        assert!(matches!(eof, Progress::Complete(read) if !read.keepalive));
    }
}

#[test]
fn bytes_after_the_response_are_not_read_and_end_the_connection() {
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
    ] {
        let longer = format!("{response}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]");
        let (alone, followed) = (whole(response), whole(&longer));
        assert_eq!(
            (alone.status, &alone.body),
            (followed.status, &followed.body)
        );
        assert_eq!((alone.keepalive, followed.keepalive), (true, false));
    }
}

#[test]
fn a_body_without_length_ends_with_the_connection() {
    for head in [
        "HTTP/1.0 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n",
    ] {
        let response = format!("{head}{ALICE}");
        assert_eq!(
            parse(response.as_bytes(), LIMIT, false),
            Ok(Progress::UntilClose(200))
        );
        let body = Cow::Borrowed(ALICE.as_bytes());
        let read = Response {
            status: 200,
            keepalive: false,
            body,
        };
        assert_eq!(
            parse(response.as_bytes(), LIMIT, true),
            Ok(Progress::Complete(read))
        );
    }
}

#[test]
fn interim_responses_are_skipped_and_an_upgrade_is_not() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
    let response = format!("{interim}{}", synapse());
    assert_eq!(whole(&response), whole(&synapse()));
    assert_eq!(
        parse(interim.as_bytes(), LIMIT, false),
        Ok(Progress::Incomplete)
    );
    let upgrade = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(wrong(upgrade), Malformed::Head);
}

#[test]
fn statuses_that_have_no_body_have_none() {
    for status in ["204 No Content", "304 Not Modified"] {
        for header in [
            "",
            "Content-Length: 70\r\n",
            "Transfer-Encoding: chunked\r\n",
        ] {
            let response = format!("HTTP/1.1 {status}\r\n{header}\r\n");
            let read = whole(&response);
            assert!(read.body.is_empty() && read.keepalive, "{response:?}");
        }
    }
}

#[test]
fn what_is_not_http_1_is_a_bad_head() {
    for response in [
        "<html><body>Welcome</body></html>",
        "\x16\x03\x01\x02\0\x01",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "+PONG\r\n",
        "HTTP/2 200\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "HTTP/1.1 2x0 OK\r\n\r\n",
        "HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
    ] {
        assert_eq!(wrong(response), Malformed::Head, "{response:?}");
    }
    let many = "X-Pad: 1\r\n".repeat(HEADERS_MAX);
    assert!(whole(&format!("HTTP/1.1 204 No Content\r\n{many}\r\n")).keepalive);
    assert_eq!(
        wrong(&format!("HTTP/1.1 204 No Content\r\n{many}X: 1\r\n\r\n")),
        Malformed::Head
    );
}

#[test]
fn a_length_is_digits_and_said_once_or_the_same_each_time() {
    for (value, body) in [
        ("Content-Length: 2\r\n", Ok("{}")),
        ("content-length:002\r\n", Ok("{}")),
        ("Content-Length: 2\r\nContent-Length: 2\r\n", Ok("{}")),
        ("Content-Length: 2, 2\r\n", Ok("{}")),
        (
            "Content-Length: 2\r\nContent-Length: 3\r\n",
            Err(Malformed::Head),
        ),
        ("Content-Length: 2, 3\r\n", Err(Malformed::Head)),
        ("Content-Length: \r\n", Err(Malformed::Head)),
        ("Content-Length: 2,\r\n", Err(Malformed::Head)),
        ("Content-Length: +2\r\n", Err(Malformed::Head)),
        ("Content-Length: -2\r\n", Err(Malformed::Head)),
        ("Content-Length: 0x2\r\n", Err(Malformed::Head)),
        ("Content-Length: 2 2\r\n", Err(Malformed::Head)),
        (
            "Content-Length: 18446744073709551618\r\n",
            Err(Malformed::TooLarge),
        ),
        (
            "Content-Length: 99999999999999999999999999999999999\r\n",
            Err(Malformed::TooLarge),
        ),
    ] {
        let response = format!("HTTP/1.1 200 OK\r\n{value}\r\n{{}}");
        match body {
            Ok(body) => assert_eq!(whole(&response).body, body.as_bytes(), "{value:?}"),
            Err(malformed) => assert_eq!(wrong(&response), malformed, "{value:?}"),
        }
    }
}

#[test]
fn chunked_is_the_only_coding_and_is_applied_once() {
    let body = "2\r\n{}\r\n0\r\n\r\n";
    for value in ["chunked", "CHUNKED"] {
        let response = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {value}\r\n\r\n{body}");
        assert_eq!(&*whole(&response).body, b"{}");
    }
    for value in [
        "gzip, chunked",
        "gzip",
        "identity",
        "chunked, chunked",
        "xchunked",
        "",
        "\"chunked\"",
    ] {
        let response = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {value}\r\n\r\n{body}");
        assert_eq!(wrong(&response), Malformed::Head, "{value:?}");
    }
    let twice = "Transfer-Encoding: chunked\r\n".repeat(2);
    assert_eq!(
        wrong(&format!("HTTP/1.1 200 OK\r\n{twice}\r\n{body}")),
        Malformed::Head
    );
    let old = format!("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    assert_eq!(wrong(&old), Malformed::Head);
}

#[test]
fn a_response_with_length_and_chunks_is_none() {
    for head in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 12",
    ] {
        let response = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n");
        assert_eq!(wrong(&response), Malformed::Head, "{head}");
    }
}

#[test]
fn a_body_in_a_coding_that_was_not_asked_for_is_no_answer() {
    let with = |status, coding: &str| {
        format!(
            "HTTP/1.1 {status} X\r\nContent-Encoding: {coding}\r\nContent-Length: 2\r\n\r\n{{}}"
        )
    };
    for coding in ["gzip", "br", "identity, gzip", "GZIP", "\"identity\"", ""] {
        assert_eq!(wrong(&with(200, coding)), Malformed::Body, "{coding:?}");
        assert_eq!(wrong(&with(401, coding)), Malformed::Body, "{coding:?}");
        // What counts of any other status is the status: it may say that the next server is to be tried.
        assert_eq!(whole(&with(503, coding)).status, 503, "{coding:?}");
    }
    assert_eq!(&*whole(&with(200, "Identity")).body, b"{}");
}

/// The body of a response whose chunked form is `chunks`.
fn dechunked(chunks: &str) -> Result<String, Malformed> {
    let response = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
    match parse(response.as_bytes(), LIMIT, false)? {
        Progress::Complete(read) => Ok(String::from_utf8(read.body.into_owned()).unwrap()),
        progress => panic!("{progress:?} for {chunks:?}"),
    }
}

#[test]
fn chunks_may_have_any_size_extensions_and_trailers() {
    for (chunks, body) in [
        ("0\r\n\r\n", ""),
        ("000\r\n\r\n", ""),
        ("5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("1\r\nh\r\n0004\r\nello\r\n0\r\n\r\n", "hello"),
        (
            "a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n",
            "01234567890123456789",
        ),
        (
            "5;name=value;other=\"x;y\"\r\nhello\r\n0;last\r\n\r\n",
            "hello",
        ),
        ("5 ; name\r\nhello\r\n0\r\n\r\n", "hello"),
        ("5\r\n0\r\n\r\n\r\n0\r\n\r\n", "0\r\n\r\n"),
        (
            "5\r\nhello\r\n0\r\nX-Digest: abc\r\nX-Cost: 1\r\n\r\n",
            "hello",
        ),
    ] {
        assert_eq!(dechunked(chunks).as_deref(), Ok(body), "{chunks:?}");
    }
}

#[test]
fn broken_chunks_are_a_bad_body() {
    for chunks in [
        "\r\n",
        ";ext\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\r\n\r\n0\r\n\r\n",
        "0\r\nno colon\r\n\r\n",
    ] {
        assert_eq!(dechunked(chunks), Err(Malformed::Body), "{chunks:?}");
    }
    for chunks in [
        "ffffffffffffffff\r\n",
        "10000000000000000\r\n",
        "fffffffffffffffffffffffff5\r\nhello",
    ] {
        assert_eq!(dechunked(chunks), Err(Malformed::TooLarge), "{chunks:?}");
    }
}

#[test]
fn a_response_may_be_as_long_as_the_limit_and_not_longer() {
    for framed in [
        synapse(),
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{ALICE}",
            ALICE.len()
        ),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n".into(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-A: 1\r\n\r\n".into(),
        format!("HTTP/1.1 200 OK\r\n\r\n{ALICE}"),
    ] {
        let buf = framed.as_bytes();
        assert!(
            matches!(parse(buf, buf.len(), true), Ok(Progress::Complete(_))),
            "{framed:?}"
        );
        assert_eq!(
            parse(buf, buf.len() - 1, true),
            Err(Malformed::TooLarge),
            "{framed:?}"
        );
        assert_eq!(parse(buf, 10, true), Err(Malformed::TooLarge), "{framed:?}");
    }
}

#[test]
fn too_large_is_said_as_soon_as_it_is_known() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n";
    assert_eq!(wrong(head), Malformed::TooLarge);
    let chunk = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n";
    assert_eq!(wrong(chunk), Malformed::TooLarge);
    // Two bytes of data would fit; what must follow them would not.
    let chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n";
    let least = chunk.len() + b"{}\r\n0\r\n\r\n".len();
    assert_eq!(parse(chunk, least, false), Ok(Progress::Incomplete));
    assert_eq!(parse(chunk, least - 1, false), Err(Malformed::TooLarge));
    let line = format!("HTTP/1.1 200 OK\r\nX-Pad: {}", "x".repeat(LIMIT));
    assert_eq!(wrong(&line[..LIMIT]), Malformed::TooLarge);
    assert_eq!(
        parse(&line.as_bytes()[..LIMIT - 1], LIMIT, false),
        Ok(Progress::Incomplete)
    );
    let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(200);
    assert_eq!(wrong(&interim), Malformed::TooLarge);
}

#[test]
fn a_connection_that_ends_early_says_in_which_part() {
    let response = synapse();
    let body = response.find("\r\n\r\n").unwrap() + 4;
    for len in 0..response.len() {
        let part = if len < body {
            Malformed::Head
        } else {
            Malformed::Body
        };
        let cut = &response.as_bytes()[..len];
        assert_eq!(parse(cut, LIMIT, false), Ok(Progress::Incomplete), "{len}");
        assert_eq!(parse(cut, LIMIT, true), Err(part), "{len}");
    }
}

/// A response in one of the framings, with its body and whether only the end of the connection ends it.
#[derive(Clone, Debug)]
struct Framed {
    bytes: Vec<u8>,
    status: u16,
    body: Vec<u8>,
    until_close: bool,
}

fn header_lines() -> impl Strategy<Value = String> {
    let line =
        "(Server: [A-Za-z/. ]{0,12}|X-[A-Z]{1,8}:[ -~]{0,20}|cache-control: no-store|Date:)\r\n";
    prop::collection::vec(line, 0..6).prop_map(|lines| lines.concat())
}

fn any_case(name: &'static str) -> impl Strategy<Value = String> {
    prop::collection::vec(any::<bool>(), name.len()).prop_map(move |upper| {
        let cased = name.chars().zip(upper);
        cased
            .map(|(c, upper)| {
                if upper {
                    c.to_ascii_uppercase()
                } else {
                    c.to_ascii_lowercase()
                }
            })
            .collect()
    })
}

/// `body` cut at those places, as chunks of those looks.
fn chunks(body: &[u8], cuts: &[Index], looks: &[String], trailers: &str) -> Vec<u8> {
    let mut places: Vec<_> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
    places.extend([0, body.len()]);
    places.sort_unstable();
    places.dedup();
    let mut bytes = Vec::new();
    for (pair, look) in places.windows(2).zip(looks.iter().cycle()) {
        let data = &body[pair[0]..pair[1]];
        bytes.extend(format!("{:x}{look}\r\n", data.len()).into_bytes());
        bytes.extend_from_slice(data);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend(format!("0\r\n{trailers}\r\n").into_bytes());
    bytes
}

fn framed() -> impl Strategy<Value = Framed> {
    let framing = prop_oneof![
        any_case("content-length").prop_map(Some),
        Just(None),
        any_case("transfer-encoding").prop_map(Some),
    ];
    let looks = prop::collection::vec("(;[a-z]{1,3}(=[a-z\"]{1,3})?){0,2}", 1..4);
    (
        prop::collection::vec(
            "HTTP/1\\.1 10[0234] [A-Za-z ]{0,9}\r\n(X-Hint: [a-z]{1,4}\r\n)?\r\n",
            0..3,
        ),
        prop_oneof![
            Just(200_u16),
            Just(401),
            200..=203_u16,
            205..=303_u16,
            305..=599_u16
        ],
        (header_lines(), header_lines(), framing),
        prop::collection::vec(any::<u8>(), 0..120),
        (
            prop::collection::vec(any::<Index>(), 0..8),
            looks,
            header_lines(),
        ),
    )
        .prop_map(
            |(interim, status, (before, after, framing), body, (cuts, looks, trailers))| {
                let chunked = framing
                    .as_ref()
                    .is_some_and(|name| name.len() > "content-length".len());
                let (line, payload) = match &framing {
                    Some(name) if chunked => (
                        format!("{name}: chunked\r\n"),
                        chunks(&body, &cuts, &looks, &trailers),
                    ),
                    Some(name) => (format!("{name}: {}\r\n", body.len()), body.clone()),
                    None => (String::new(), body.clone()),
                };
                let head = format!(
                    "{}HTTP/1.1 {status} Why\r\n{before}{line}{after}\r\n",
                    interim.concat()
                );
                let mut bytes = head.into_bytes();
                bytes.extend(payload);
                Framed {
                    bytes,
                    status,
                    body,
                    until_close: framing.is_none(),
                }
            },
        )
}

proptest! {
    #[test]
    fn in_every_framing_each_beginning_is_incomplete_and_the_whole_has_its_body(response in framed()) {
        let Framed { bytes, status, body, until_close } = response;
        let limit = bytes.len();
        let mut closing = false;
        for len in 0..bytes.len() {
            match parse(&bytes[..len], limit, false) {
                Ok(Progress::Incomplete) => prop_assert!(!closing, "no way back at {}", len),
                Ok(Progress::UntilClose(_)) => closing = true,
                other => prop_assert!(false, "{:?} at {}", other, len),
            }
            prop_assert!(until_close || !closing);
        }
        let read = Response { status, keepalive: !until_close, body: body.into() };
        if until_close {
            prop_assert_eq!(parse(&bytes, limit, false), Ok(Progress::UntilClose(status)));
            prop_assert_eq!(parse(&bytes, limit, true), Ok(Progress::Complete(read)));
        } else {
            prop_assert_eq!(parse(&bytes, limit, false), Ok(Progress::Complete(read)));
        }
        prop_assert_eq!(parse(&bytes, limit - 1, true), Err(Malformed::TooLarge));
    }

    #[test]
    fn bytes_that_follow_never_change_the_body(response in framed(), more in prop::collection::vec(any::<u8>(), 1..40)) {
        prop_assume!(!response.until_close);
        let mut longer = response.bytes.clone();
        longer.extend(more);
        let read = Response { status: response.status, keepalive: false, body: response.body.into() };
        prop_assert_eq!(parse(&longer, LIMIT, false), Ok(Progress::Complete(read)));
    }

    #[test]
    fn a_damaged_response_never_panics_and_an_ended_one_is_decided(
        response in framed(), damage in prop::collection::vec((any::<Index>(), any::<u8>()), 0..4), limit in 0..400_usize,
    ) {
        let mut bytes = response.bytes;
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(Progress::Complete(read)) = parse(&bytes, limit, false) {
            prop_assert!(read.body.len() <= limit);
        }
        let decided = matches!(parse(&bytes, limit, true), Err(_) | Ok(Progress::Complete(_)));
        prop_assert!(decided);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, limit in 0..400_usize, eof: bool) {
        let after_head = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &bytes[..]].concat();
        for buf in [&bytes, &after_head] {
            if let Ok(Progress::Complete(read)) = parse(buf, limit, eof) {
                prop_assert!(read.body.len() <= limit.min(buf.len()));
            }
        }
    }
}
