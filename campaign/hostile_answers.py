"""Answers of whoami that misbehave: what a broken or hostile homeserver, or something between, could send.

Each kind is a function from `Asked` to steps: bytes to send, seconds to wait, and at last what becomes of the connection.
The dice in `Asked` choose where an answer breaks and what else is random, so one kind is many answers. USER, FALLBACK and EITHER
say what the request must get: its user, the fallback, or one of both. Wherever an answer has room for it, it names another user
as well (`decoy`), in a place where nobody may read one.

A lie that is a flawless answer is not among them: nobody could tell it from the truth. Nor is the beginning of one that comes
late, for it may come when the next question has been sent, and is then the beginning of the answer to that. (The campaign has such
ones come while nginx sleeps, when it is certain that they come before the question.)
"""

import gzip
import json
import zlib
from dataclasses import dataclass, field
from random import Random

# What becomes of the connection. Without one of these it waits for the next request.
CLOSE, RESET, HANG = "close", "reset", "hang"
# It ends for writing alone; it ends, without a word, when the next request comes.
HALF_CLOSE, CLOSE_LATER = "half-close", "close later"

# matrix_user_hash_buffer_size of the campaign; nothing that is larger can be an answer.
BUFFER = 4096
UNKNOWN = {"errcode": "M_UNKNOWN_TOKEN", "error": "Invalid access token passed.", "soft_logout": False}


def compact(value):
    return json.dumps(value).encode()


def head(*lines, status="200 OK", version="HTTP/1.1"):
    return "\r\n".join((f"{version} {status}", "Server: Synapse/1.163.2", "Content-Type: application/json", *lines,
                        "", "")).encode("latin-1")


def sized(body, *lines, status="200 OK"):
    return head(f"Content-Length: {len(body)}", *lines, status=status) + body


def chunk(data, extension=b""):
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


def exactly(length, body):
    """An answer of that length, head and all."""
    body = body[:-1] + b" " * (length - len(head("Content-Length: 1000")) - len(body)) + b"}"
    return sized(body)


def in_chunks(body, *lines, last=b"0\r\n\r\n"):
    return head("Transfer-Encoding: chunked", *lines) + chunk(body) + last


@dataclass
class Asked:
    """What an honest homeserver would say, and dice."""

    who: dict
    other: str
    dice: Random
    raw: bytes = field(init=False)
    decoy: bytes = field(init=False)

    def __post_init__(self):
        self.raw = compact(self.who)
        self.decoy = compact({**self.who, "user_id": self.other})

    @property
    def user(self):
        return self.who["user_id"]

    def with_user(self, json_text):
        """The answer, with that in place of the user."""
        return self.raw.replace(compact(self.user), json_text, 1)

    def with_more(self, json_text, first=True):
        """The answer with one more member."""
        return b"{" + json_text + b"," + self.raw[1:] if first else self.raw[:-1] + b"," + json_text + b"}"

    def forms(self):
        """The answer by length, in chunks, and with the connection's end."""
        return {"length": sized(self.raw), "chunks": in_chunks(self.raw),
                "until-close": head(version="HTTP/1.0") + self.raw}

    def cut(self, form):
        """An answer of that form without its end, of any length from 0."""
        whole = self.forms()[form]
        return whole[:self.dice.randrange(len(whole))]

    def pieces(self, whole):
        """A whole answer in up to 8 pieces."""
        at = sorted(self.dice.sample(range(1, len(whole)), 7))
        return [whole[a:b] for a, b in zip([0, *at], [*at, len(whole)], strict=True)]

    def noise(self, length):
        return self.dice.randbytes(length)

    def escaped(self, text, share=1.0):
        r"""A JSON string in which that share of the characters is \uXXXX."""
        return b'"' + b"".join(b"\\u%04x" % ord(c) if self.dice.random() < share else c.encode() for c in text) + b'"'


def waits(pieces, seconds):
    return [step for piece in pieces for step in (piece, seconds)]


# --- answers that are odd, and answers all the same ---

USER = {
    "length": lambda a: [sized(a.raw)],
    "chunks": lambda a: [in_chunks(a.raw)],
    "until-close": lambda a: [a.forms()["until-close"], CLOSE],
    "pieces": lambda a: waits(a.pieces(a.dice.choice([sized(a.raw), in_chunks(a.raw)])), 0.001),
    "half-close-after": lambda a: [sized(a.raw), HALF_CLOSE],
    "closes-after": lambda a: [sized(a.raw), CLOSE],
    "closes-at-the-next": lambda a: [sized(a.raw), CLOSE_LATER],
    "says-close": lambda a: [sized(a.raw, "Connection: close"), HANG],
    "equal-lengths": lambda a: [head(f"Content-Length: {len(a.raw)}, {len(a.raw)}", f"Content-Length: {len(a.raw)}") + a.raw],
    "length-with-zeros": lambda a: [head(f"Content-Length: {'0' * 30}{len(a.raw)}") + a.raw],
    "old-with-length": lambda a: [head(f"Content-Length: {len(a.raw)}", "Connection: keep-alive", version="HTTP/1.0") + a.raw],
    "chunk-for-each-byte": lambda a: [head("Transfer-Encoding: chunked")
                                      + b"".join(chunk(bytes([b])) for b in a.raw) + b"0\r\n\r\n"],
    "chunk-extensions": lambda a: [head("Transfer-Encoding: chunked") + chunk(a.raw, b";user_id=" + b"x" * 1000)
                                   + b"0;last\r\n\r\n"],
    "chunk-size-with-zeros": lambda a: [head("Transfer-Encoding: chunked") + b"0" * 40 + chunk(a.raw) + b"0000\r\n\r\n"],
    "trailers": lambda a: [in_chunks(a.raw, "Trailer: X-User", last=b"0\r\nX-User: " + a.decoy
                                     + b"\r\nContent-Length: 3\r\n\r\n")],
    "interim": lambda a: [head("Link: </x>", status="103 Early Hints"), 0.002, sized(a.raw)],
    "interim-names-another": lambda a: [head("X-User: " + a.decoy.decode(), status="103 Early Hints") + sized(a.raw)],
    "some-interim": lambda a: [b"HTTP/1.1 100 Continue\r\n\r\n" * a.dice.randrange(2, 60) + sized(a.raw)],
    "second-answer-behind": lambda a: [sized(a.raw) + sized(a.decoy)],
    "second-answer-half": lambda a: [sized(a.raw) + sized(a.decoy)[:a.dice.randrange(1, 150)]],
    "second-in-chunks": lambda a: [in_chunks(a.raw) + in_chunks(a.decoy)],
    "second-behind-a-full-buffer": lambda a: [exactly(BUFFER, a.raw) + sized(a.decoy)],
    "noise-behind": lambda a: [sized(a.raw) + a.noise(300)],
    "interim-behind": lambda a: [sized(a.raw) + b"HTTP/1.1 100 Continue\r\n\r\n" + sized(a.decoy)],
    "header-names-another": lambda a: [sized(a.raw, "X-User: " + a.decoy.decode(), "X-Matrix-User-Id: " + a.other)],
    "many-headers": lambda a: [sized(a.raw, *(f"X-Header-{n}: {n}" for n in range(50)))],
    "cookies": lambda a: [sized(a.raw, *(f"Set-Cookie: session={a.other}; Path=/{n}" for n in range(20)))],
    "reason-names-another": lambda a: [sized(a.raw, status="200 " + a.decoy.decode())],
    "no-reason": lambda a: [sized(a.raw, status="200 ")],
    "identity-coding": lambda a: [sized(a.raw, "Content-Encoding: identity")],
    "escapes": lambda a: [sized(a.with_user(a.escaped(a.user)))],
    "some-escapes": lambda a: [sized(a.with_user(a.escaped(a.user, 0.3)).replace(b'"user_id"', b'"user\\u005fid"'))],
    "white-space": lambda a: [sized(b"\r\n\t " * 90 + a.raw.replace(b":", b" \n:\t ").replace(b" \n:\t example", b":example")
                                    + b" \n" * 90)],
    "nested-decoys": lambda a: [sized(a.with_more(b'"x":[' + a.decoy + b',{"y":' + a.decoy + b"}]", a.dice.random() < 0.5))],
    "decoy-in-a-string": lambda a: [sized(a.with_more(b'"x":' + compact(a.decoy.decode()), a.dice.random() < 0.5))],
    "decoy-as-key": lambda a: [sized(a.with_more(compact(a.decoy.decode()) + b":1"))],
    "keys-of-other-case": lambda a: [sized(a.with_more(b'"USER_ID":"%s","User_Id":"%s","user_id ":"%s"'
                                                       % ((a.other.encode(),) * 3), a.dice.random() < 0.5))],
    "unknown-keys-twice": lambda a: [sized(a.with_more(b",".join(b'"pad":%d' % n for n in range(200))))],
    "deep-arrays": lambda a: [sized(a.with_more(b'"x":' + b"[" * 1500 + b"]" * 1500))],
    "deep-objects": lambda a: [sized(a.with_more(b'"x":' + b'{"":' * 600 + b"1" + b"}" * 600))],
    "fills-the-buffer": lambda a: [sized(a.raw[:-1] + b" " * (BUFFER - 150 - len(a.raw)) + b"}")],
}

# --- what is no answer ---

LENGTHS = {
    "negative": "-1", "signed": "+{}", "float": "{}.0", "exponent": "1e2", "hex": "0x55", "wraps": str((1 << 64) + 85),
    "largest": str((1 << 63) - 1), "empty": "", "with-space": "8 5", "word": "chunked", "other-digits": "\xb9\xb2",
    "differ": "{}, 5", "list-with-hole": "{},,5",
}
ENCODINGS = {
    "identity-last": "chunked, identity", "gzip-first": "gzip, chunked", "with-parameter": "chunked;q=1", "unknown": "chunkeder",
    "empty": "", "quoted": '"chunked"', "vertical-tab": "\x0bchunked",
}
CHUNK_SIZES = {
    "not-hex": b"zz", "negative": b"-5", "signed": b"+55", "prefixed": b"0x55", "wraps": b"1" + b"0" * 16 + b"55",
    "largest": b"f" * 16, "empty": b"", "space-inside": b"5 5", "decimal-point": b"5.5",
}
STATUSES = (
    "201 Created", "202 Accepted", "203 Non-Authoritative Information", "204 No Content", "206 Partial Content", "226 IM Used",
    "300 Multiple Choices", "304 Not Modified", "400 Bad Request", "403 Forbidden", "404 Not Found", "405 Method Not Allowed",
    "429 Too Many Requests", "500 Internal Server Error", "502 Bad Gateway", "503 Service Unavailable", "520 Unknown", "599 x", "999 x",
)
HEADS = {
    "ssh": b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n", "smtp": b"220 example.org ESMTP Postfix\r\n", "icy": b"ICY 200 OK\r\n\r\n",
    "http-2": b"HTTP/2.0 200 OK\r\n\r\n", "http-3": b"HTTP/3 200\r\n\r\n", "http-9": b"HTTP/9.9 200 OK\r\n\r\n",
    "lower-case": b"http/1.1 200 ok\r\n\r\n", "two-digits": b"HTTP/1.1 20 OK\r\n\r\n", "four-digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status-0": b"HTTP/1.1 000 OK\r\n\r\n", "status-99": b"HTTP/1.1 099 OK\r\n\r\n", "no-status": b"HTTP/1.1\r\n\r\n",
    "settings": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", "tls-alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "nul": b"\x00" * 200, "letter": b"{",
}
USER_IDS = {
    "null": b"null", "number": b"7", "float": b"1e999", "true": b"true", "array": b'["%s"]', "object": b'{"user_id":"%s"}',
    "empty": b'""', "at": b'"@"', "no-at": b'"alice:example.org"', "no-colon": b'"@alice"', "space-first": b'" %s"',
    "wide-at": '"＠alice:example.org"'.encode(), "mark-first": '"\ufeff@alice:example.org"'.encode(),
    "nul": b'"@al\\u0000ice:example.org"', "raw-nul": b'"@al\x00ice:example.org"', "raw-newline": b'"@al\nice:example.org"',
    "lone-surrogate": b'"@al\\ud800ice:example.org"', "surrogates-turned": b'"@\\udc00\\ud800:example.org"',
    "bad-escape": b'"@\\x61lice:example.org"', "half-escape": b'"@\\u00"', "not-utf-8": b'"@al\xffice:example.org"',
    "overlong": b'"@al\xc0\x80ice:example.org"', "utf-8-surrogate": b'"@al\xed\xa0\x80ice:example.org"',
    "256-bytes": b'"@' + b"a" * 243 + b':example.org"', "1000-bytes": b'"@' + b"a" * 1000 + b':example.org"', "single-quotes": b"'%s'",
    "two-strings": b'"%s" "x"', "concatenated": b'"%s"+"x"',
}
BODIES = {
    "empty": lambda a: b"", "html": lambda a: b"<!DOCTYPE html><title>" + a.decoy + b"</title>",
    "array": lambda a: b"[" + a.raw + b"]", "values-alone": lambda a: compact([a.user, "QJTGFCNZFH"]),
    "string": lambda a: compact(a.user), "string-of-json": lambda a: compact(a.raw.decode()), "null": lambda a: b"null",
    "no-user": lambda a: b"{}", "nested-only": lambda a: b'{"account":' + a.raw + b"}", "two-objects": lambda a: a.raw + a.decoy,
    "two-lines": lambda a: a.raw + b"\n" + a.raw, "nul-behind": lambda a: a.raw + b"\0", "nul-before": lambda a: b"\0" + a.raw,
    "mark-before": lambda a: b"\xef\xbb\xbf" + a.raw, "utf-16": lambda a: a.raw.decode().encode("utf-16"),
    "utf-7": lambda a: b"+AHs-" + a.raw[1:], "comma-last": lambda a: a.raw[:-1] + b",}", "comma-missing": lambda a: a.raw.replace(b", ", b" ", 1),
    "comment": lambda a: b"/* */" + a.raw, "single-quotes": lambda a: a.raw.replace(b'"', b"'"), "no-quotes": lambda a: a.raw.replace(b'"', b""),
    "nan": lambda a: a.with_more(b'"x":NaN'), "leading-zero": lambda a: a.with_more(b'"x":007'), "half": lambda a: a.raw[:-1],
    "parameters": lambda a: b"user_id=" + a.user.encode(), "padded-xssi": lambda a: b")]}',\n" + a.raw,
    "user-twice": lambda a: a.with_more(b'"user_id":' + compact(a.other), a.dice.random() < 0.5),
    "user-twice-escaped": lambda a: a.with_more(b'"user\\u005fid":' + compact(a.other), a.dice.random() < 0.5),
    "same-user-twice": lambda a: a.with_more(b'"user_id":' + compact(a.user)),
    "device-twice": lambda a: a.with_more(b'"device_id":"A","device_id":"B"'), "device-number": lambda a: b'{"device_id":7,"user_id":"%s"}' % a.user.encode(),
    "deep-open": lambda a: b'{"x":' + b"[" * 3000, "long-key": lambda a: b'{"' + b"k" * 3000 + b'":1}', "escapes-only": lambda a: b'{"user_id":"' + b"\\u0040" * 500 + b'"}',
    "gzip": lambda a: gzip.compress(a.raw), "deflate": lambda a: zlib.compress(a.raw), "noise": lambda a: a.noise(200),
}


def bad_length(value):
    return lambda a: [head("Content-Length: " + value.format(len(a.raw))) + a.raw, a.dice.choice([CLOSE, HANG, RESET])]


def bad_encoding(value):
    return lambda a: [head("Transfer-Encoding: " + value) + chunk(a.raw) + b"0\r\n\r\n", a.dice.choice([CLOSE, HANG])]


def bad_chunk(size):
    return lambda a: [head("Transfer-Encoding: chunked") + size + b"\r\n" + a.raw + b"\r\n0\r\n\r\n",
                      a.dice.choice([CLOSE, HANG, RESET])]


def with_status(status):
    # A 204 and a 304 have no body: what follows is the next answer.
    return lambda a: [sized(a.decoy, *(["Location: /" + a.other] if status[0] == "3" else []), status=status)]


def with_head(begin):
    return lambda a: [begin + a.decoy, a.dice.choice([CLOSE, HANG])]


def with_user_id(value):
    return lambda a: [sized(a.with_user(value.replace(b"%s", a.user.encode())))]


def with_body(body):
    return lambda a: [sized(body(a)) if a.dice.random() < 0.5 else in_chunks(body(a))]


def many(*parts):
    """(prefix, function, table): one kind for each row."""
    return {f"{prefix}-{name}": make(value) for prefix, make, table in parts for name, value in table.items()}


FALLBACK = {
    **{f"{how}-at-a-byte-of-{form}": (lambda form, how: lambda a: [a.cut(form), how])(form, how)
       for form in ("length", "chunks", "until-close") for how in (RESET, CLOSE, HANG)},
    "hangs": lambda a: [HANG],
    "half-closes-at-once": lambda a: [HALF_CLOSE],
    "hangs-before-the-body": lambda a: [head(f"Content-Length: {len(a.raw)}"), HANG],
    "never-ends": lambda a: [a.forms()["until-close"], HANG],
    "drips": lambda a: waits([bytes([b]) for b in sized(a.raw)], 0.05),
    "too-late": lambda a: [1.5, sized(a.raw)],
    "body-too-late": lambda a: [sized(a.raw)[:-9], 1.5, a.raw[-9:]],
    **many(("length", bad_length, LENGTHS), ("coding", bad_encoding, ENCODINGS), ("chunk-size", bad_chunk, CHUNK_SIZES)),
    "length-too-short": lambda a: [head(f"Content-Length: {a.dice.randrange(len(a.raw))}") + a.raw],
    "length-too-long": lambda a: [head(f"Content-Length: {len(a.raw) + a.dice.randrange(1, 3000)}") + a.raw, a.dice.choice([CLOSE, HANG])],
    "length-then-end": lambda a: [head(f"Content-Length: {len(a.raw) + len(a.decoy)}") + a.raw + a.decoy],
    "length-0": lambda a: [head("Content-Length: 0") + a.decoy],
    "lengths-differ": lambda a: [head(f"Content-Length: {len(a.raw)}", "Content-Length: 5") + a.raw],
    "length-and-chunks": lambda a: [head(f"Content-Length: {len(chunk(a.raw)) + 5}", "Transfer-Encoding: chunked")
                                    + chunk(a.raw) + b"0\r\n\r\n"],
    "chunks-and-length": lambda a: [head("Transfer-Encoding: chunked", f"Content-Length: {len(a.decoy)}") + a.decoy, CLOSE],
    "chunked-twice": lambda a: [head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + chunk(a.raw) + b"0\r\n\r\n"],
    "chunks-in-1.0": lambda a: [head("Transfer-Encoding: chunked", version="HTTP/1.0") + chunk(a.raw) + b"0\r\n\r\n", CLOSE],
    "chunks-not-said": lambda a: [head() + chunk(a.raw) + b"0\r\n\r\n", CLOSE],
    "chunk-too-short": lambda a: [head("Transfer-Encoding: chunked") + b"5\r\n" + a.raw + b"\r\n0\r\n\r\n"],
    "chunk-too-long": lambda a: [head("Transfer-Encoding: chunked") + b"%x\r\n" % (len(a.raw) + 9) + a.raw
                                 + b"\r\n0\r\n\r\n" + a.decoy, CLOSE],
    "chunk-without-end": lambda a: [head("Transfer-Encoding: chunked") + b"%x\r\n" % len(a.raw) + a.raw + b"0\r\n\r\n", CLOSE],
    "chunk-lines-of-lf": lambda a: [head("Transfer-Encoding: chunked") + b"%x\n" % len(a.raw) + a.raw + b"\n0\n\n"],
    "chunk-line-with-cr": lambda a: [head("Transfer-Encoding: chunked") + b"5\r5;\r\n" + a.raw + b"\r\n0\r\n\r\n"],
    "chunk-of-nothing-first": lambda a: [head("Transfer-Encoding: chunked") + b"0\r\n\r\n" + chunk(a.decoy) + b"0\r\n\r\n"],
    "no-last-chunk": lambda a: [head("Transfer-Encoding: chunked") + chunk(a.raw), a.dice.choice([CLOSE, HANG])],
    "endless-chunk-size": lambda a: [head("Transfer-Encoding: chunked") + b"0" * 20000, HANG],
    "endless-extension": lambda a: [head("Transfer-Encoding: chunked") + b"5;" + b"x" * 20000, HANG],
    "bomb-of-trailers": lambda a: [in_chunks(a.raw, last=b"0\r\n" + b"X: 1\r\n" * 100 + b"\r\n")],
    "broken-trailers": lambda a: [in_chunks(a.raw, last=b"0\r\n\x00: 1\r\n\r\n")],
    "endless-trailers": lambda a: [in_chunks(a.raw, last=b"0\r\n" + b"X: 1\r\n" * 5000), HANG],
    "flood-of-interim": lambda a: [b"HTTP/1.1 100 Continue\r\n\r\n" * 400 + sized(a.raw)],
    "endless-interim": lambda a: [step for _ in range(50) for step in (b"HTTP/1.1 102 Processing\r\n\r\n" * 40, 0.01)] + [HANG],
    "interim-only": lambda a: [head(status="103 Early Hints"), a.dice.choice([CLOSE, HANG, RESET])],
    "interim-with-body": lambda a: [sized(a.decoy, status="100 Continue") + sized(a.raw)],
    "switches": lambda a: [head("Upgrade: h2c", "Connection: upgrade", status="101 Switching Protocols") + sized(a.decoy)],
    **many(("status", with_status, {status[:3]: status for status in STATUSES})),
    "redirect": lambda a: [sized(b"", "Location: /_matrix/client/v3/account/whoami?x", status="302 Found")],
    "locked": lambda a: [sized(compact({**UNKNOWN, "errcode": "M_USER_LOCKED"}), status="401 Unauthorized")],
    "unauthorized-html": lambda a: [sized(b"<html>M_UNKNOWN_TOKEN</html>", status="401 Unauthorized")],
    "unauthorized-names-user": lambda a: [sized(a.raw, status="401 Unauthorized")],
    "unauthorized-gzip": lambda a: [sized(gzip.compress(compact(UNKNOWN)), "Content-Encoding: gzip", status="401 Unauthorized")],
    "refuses": lambda a: [sized(compact(UNKNOWN), status="401 Unauthorized")],
    "refuses-and-names-user": lambda a: [sized(compact({**UNKNOWN, "user_id": a.other}), status="401 Unauthorized")],
    **many(("head", with_head, HEADS)),
    "nothing-but-a-body": lambda a: [a.raw, CLOSE],
    "noise": lambda a: [a.noise(a.dice.randrange(1, 3000)), a.dice.choice([CLOSE, RESET, HANG])],
    "endless-noise": lambda a: [step for _ in range(30) for step in (a.noise(2000), 0.001)] + [HANG],
    "endless-zeros": lambda a: [bytes(1 << 20), HANG],
    "bomb-of-headers": lambda a: [sized(a.raw, *(f"X-{n}: 1" for n in range(200)))],
    "endless-headers": lambda a: [head()[:-2] + b"X-Pad: 1\r\n" * 20000, HANG],
    "endless-header": lambda a: [head()[:-2] + b"X-Pad: " + b"a" * 200000, HANG],
    "endless-header-name": lambda a: [head()[:-2] + b"a" * 200000, HANG],
    "endless-reason": lambda a: [b"HTTP/1.1 200 " + b"a" * 200000, HANG],
    "header-without-colon": lambda a: [sized(a.raw, "X-Pad")],
    "header-without-name": lambda a: [sized(a.raw, ": 1")],
    "header-name-with-nul": lambda a: [sized(a.raw, "X\0Pad: 1")],
    "header-name-with-space": lambda a: [sized(a.raw, "X-Pad : 1")],
    "header-value-with-nul": lambda a: [sized(a.raw, "X-Pad: 1\x002")],
    "header-value-with-cr": lambda a: [sized(a.raw, "X-Pad: 1\r2")],
    "folded-header": lambda a: [sized(a.raw, "X-Pad: 1\r\n 2")],
    "folded-length": lambda a: [head("Content-Length:\r\n 5") + a.raw],
    "length-with-nul": lambda a: [head(f"Content-Length: {len(a.raw)}\0") + a.raw],
    "says-gzip": lambda a: [sized(a.raw, "Content-Encoding: gzip")],
    "says-two-codings": lambda a: [sized(a.raw, "Content-Encoding: identity", "Content-Encoding: br")],
    "bomb-of-gzip": lambda a: [sized(gzip.compress(bytes(1 << 20)), "Content-Encoding: gzip")],
    "bomb-of-size": lambda a: [sized(a.raw[:-1] + b" " * (1 << 20) + b"}")],
    "bomb-in-chunks": lambda a: [in_chunks(a.raw[:-1] + b" " * (1 << 20) + b"}")],
    "bomb-until-close": lambda a: [head(version="HTTP/1.0") + a.raw[:-1] + b" " * (1 << 20) + b"}", CLOSE],
    "bomb-of-strings": lambda a: [sized(a.with_more(b'"x":"' + b"\\u0041" * 50000 + b'"'))],
    **many(("user-id", with_user_id, USER_IDS), ("body", with_body, BODIES)),
}

# --- what may go either way ---

EITHER = {
    "resets-after": lambda a: [sized(a.raw), RESET],
    "resets-after-a-moment": lambda a: [sized(a.raw), 0.002, RESET],
    "error-of-its-own-later": lambda a: [sized(a.raw), 0.003, sized(b"{}", "Connection: close", status="408 Request Timeout"), CLOSE],
    "noise-later": lambda a: [sized(a.raw), 0.003, a.noise(100)],
    "rest-of-an-answer-later": lambda a: [sized(a.raw), 0.002, sized(a.decoy)[a.dice.randrange(20, 150):]],
    "just-in-time": lambda a: [a.dice.uniform(0.2, 0.4), sized(a.raw)],
    "header-of-high-bytes": lambda a: [sized(a.raw, "X-Pad: \xe9\xff")],
    "number-bomb": lambda a: [sized(a.with_more(b'"x":' + b"9" * 2000 + b"e" + b"9" * 900))],
    "lines-of-lf": lambda a: [sized(a.raw).replace(b"\r\n", b"\n")],
}

KINDS = {**USER, **FALLBACK, **EITHER}
