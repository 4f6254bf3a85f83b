"""The kinds of answer that the stand-in homeserver gives, as steps: what is sent, waited for, and then done.

In:  a kind's name, a status, a value for the body. Out: a list of bytes (sent), floats (seconds that pass), CLOSE and HANG.
`KINDS` has them by name. Besides, `status-NNN` is that status, and `user-id-WHAT` an answer whose user id is odd (`ODD`).
"""

import gzip
import json
import re

CLOSE = object()  # the connection is closed now
HANG = object()   # it stays open, and nothing more is said
REASONS = {200: "OK", 302: "Found", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
           500: "Internal Server Error", 503: "Service Unavailable"}
ODD = {"none": {}, "number": {"user_id": 7}, "null": {"user_id": None}, "empty": {"user_id": ""},
       "no-colon": {"user_id": "@alice"}, "no-at": {"user_id": "alice:example.org"},
       "nested": {"account": {"user_id": "@alice:example.org"}}, "array": ["@alice:example.org"]}
CHUNKED = "Transfer-Encoding: chunked"


def head(status, *lines):
    """Status line and header, as Synapse writes them."""
    first = (f"HTTP/1.1 {status} {REASONS.get(status, 'Whatever')}", "Server: Synapse/1.163.2", "Content-Type: application/json")
    return ("\r\n".join(first + lines) + "\r\n\r\n").encode()


def chunks(body, pieces=1):
    """The body as chunks, an odd one with an extension, and a trailer when there are many."""
    size = max(1, -(-len(body) // pieces))
    out = b""
    for i in range(0, len(body), size):
        part = body[i:i + size]
        out += b"%x%s\r\n%s\r\n" % (len(part), b";name=value" if pieces > 1 and i else b"", part)
    return out + (b"0\r\nX-Checksum: none\r\n\r\n" if pieces > 1 else b"0\r\n\r\n")


def plain(status, body, *lines):
    """An answer that says its length."""
    return head(status, f"Content-Length: {len(body)}", *lines) + body


def good(status, raw):
    """As Synapse answers: in chunks, always."""
    return head(status, CHUNKED) + chunks(raw)


def old(answer):
    """The same as HTTP/1.0."""
    return answer.replace(b"HTTP/1.1", b"HTTP/1.0")


def closing(status, raw):
    """An HTTP/1.0 answer that ends with its connection."""
    return old(head(status) + raw)


def each_byte(answer, seconds):
    return [step for byte in answer for step in (bytes([byte]), seconds)]


def wide(raw, size=1 << 20):
    """JSON with a megabyte of spaces in it."""
    return raw[:-1] + b" " * size + b"}"


# What is said of alice in other words, and of mallory where nobody may look.
ESCAPED = b'{"user_id":"\\u0040al\\u0069ce:example.org","device_id":"A"}'
DECOY = (b'{"x":{"user_id":"@mallory:example.org"},"y":"\\"user_id\\":\\"@mallory:example.org\\"",'
         b'"user_id":"@alice:example.org","device_id":"A","z":[{"user_id":"@mallory:example.org"}]}')
SPACES = b' {\n  "user_id" : "@alice:example.org" ,\n "device_id" : "A" }\n'
MALLORY = b'{"user_id": "@mallory:example.org", "device_id": "ABKJDTRWQS"}'
NOT_UTF8 = b'{"user_id":"@al\xffice:example.org"}'
UNKNOWN = b'{"errcode":"M_UNKNOWN_TOKEN","error":"Invalid access token passed.","soft_logout":false}'
HTML = b"<!DOCTYPE html><html><body>It works! @alice:example.org</body></html>\n"
HALF_HEAD = b"HTTP/1.1 200 OK\r\nContent-Ty"

# Of the status and the body that are right.
KINDS = {
    "ok": lambda s, raw: [good(s, raw)],
    "chunked": lambda s, raw: [good(s, raw)],
    "chunked-pieces": lambda s, raw: [head(s, "Transfer-Encoding: Chunked") + chunks(raw, 5)],
    "chunked-split": lambda s, raw: [x for c in re.findall(rb"(?s).{1,7}", good(s, raw)) for x in (c, 0.002)],
    "content-length": lambda s, raw: [plain(s, raw)],
    "padded": lambda s, raw: [plain(s, wide(raw, 700))],
    "unknown-token": lambda s, raw: [plain(401, UNKNOWN)],
    "lower-case": lambda s, raw: [plain(s, raw).replace(b"Content-Length", b"content-length")
                                  .replace(b"Content-Type", b"content-type")],
    "closed": lambda s, raw: [head(s, "Connection: close") + raw, CLOSE],
    "http10": lambda s, raw: [closing(s, raw), CLOSE],
    "http10-503-late": lambda s, raw: [old(head(503, "Connection: close")), 0.05, b"<html>", CLOSE],
    "http10-late": lambda s, raw: [closing(s, b""), 0.05, raw[:9], 0.05, raw[9:], 0.05, CLOSE],
    "http10-hang": lambda s, raw: [closing(s, raw[:9]), HANG],
    "http10-length": lambda s, raw: [old(plain(s, raw)), CLOSE],
    "continue-first": lambda s, raw: [b"HTTP/1.1 100 Continue\r\n\r\n" + plain(s, raw)],
    "early-hints-first": lambda s, raw: [b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", 0.02, plain(s, raw)],
    "drip-fast": lambda s, raw: each_byte(plain(s, raw), 0.0005),
    "drip": lambda s, raw: each_byte(plain(s, raw), 1.0),
    "drip-body": lambda s, raw: [head(200, f"Content-Length: {len(raw)}"), *each_byte(raw, 1.0)],
    "escaped": lambda s, raw: [plain(200, ESCAPED)],
    "decoy": lambda s, raw: [plain(200, DECOY)],
    "spaces": lambda s, raw: [plain(200, SPACES)],
    "trailing": lambda s, raw: [plain(s, raw) + plain(200, MALLORY)],
    "hang": lambda s, raw: [HANG],
    "hang-head": lambda s, raw: [head(200, CHUNKED), HANG],
    "hang-half-head": lambda s, raw: [HALF_HEAD, HANG],
    "hang-half-body": lambda s, raw: [plain(s, raw)[:-5], HANG],
    "close": lambda s, raw: [CLOSE],
    "close-head": lambda s, raw: [HALF_HEAD, CLOSE],
    "truncated-length": lambda s, raw: [plain(s, raw)[:-5], CLOSE],
    "truncated-chunked": lambda s, raw: [good(s, raw)[:-5], CLOSE],
    "html": lambda s, raw: [plain(200, HTML).replace(b"application/json", b"text/html")],
    "gzip": lambda s, raw: [plain(200, gzip.compress(raw), "Content-Encoding: gzip")],
    "megabyte": lambda s, raw: [plain(200, wide(raw))],
    "megabyte-head": lambda s, raw: [head(200, f"Content-Length: {len(raw)}", "X-Long: " + "a" * (1 << 20)) + raw],
    "megabyte-chunked": lambda s, raw: [head(200, CHUNKED) + chunks(wide(raw), 3)],
    "garbage": lambda s, raw: [bytes((i * 73 + 41) % 256 for i in range(600)), CLOSE],
    "garbage-text": lambda s, raw: [b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n\r\n", CLOSE],
    "no-status": lambda s, raw: [b"HTTP/1.1\r\n\r\n", CLOSE],
    "bad-chunk": lambda s, raw: [head(200, CHUNKED) + b"zz\r\n" + raw + b"\r\n0\r\n\r\n"],
    "huge-chunk": lambda s, raw: [head(200, CHUNKED) + b"ffffffffffffffffff\r\n" + raw, HANG],
    "bad-length": lambda s, raw: [head(200, "Content-Length: 1e3") + raw],
    "negative-length": lambda s, raw: [head(200, "Content-Length: -1") + raw],
    "two-lengths": lambda s, raw: [head(200, f"Content-Length: {len(raw)}", "Content-Length: 5") + raw],
    "length-and-chunks": lambda s, raw: [head(200, f"Content-Length: {len(chunks(raw))}", CHUNKED) + chunks(raw)],
    "said-gzip": lambda s, raw: [plain(200, raw, "Content-Encoding: gzip")],
    "empty-body": lambda s, raw: [plain(200, b"")],
    "half-json": lambda s, raw: [plain(200, raw[:-4])],
    "not-utf8": lambda s, raw: [plain(200, NOT_UTF8)],
}


def of_status(code):
    """An answer with that status, and an error of Synapse's in it."""
    location = ("Location: /_matrix/client/v3/account/whoami",) if code in (301, 302, 307) else ()
    return [plain(code, json.dumps({"errcode": "M_UNKNOWN", "error": "Internal server error"}).encode(), *location)]


def of_odd_user(what):
    """An answer whose user id is not one."""
    odd = ODD[what]
    return [plain(200, json.dumps({"device_id": "X", **odd} if isinstance(odd, dict) else odd).encode())]


def known(kind):
    """Whether there is that kind."""
    return (kind in KINDS or kind.startswith("status-") and kind[7:].isdigit()
            or kind.startswith("user-id-") and kind[8:] in ODD)


def steps(kind, status, body):
    """An answer of that kind."""
    if kind.startswith("status-"):
        return of_status(int(kind[7:]))
    if kind.startswith("user-id-"):
        return of_odd_user(kind[8:])
    return KINDS[kind](status, json.dumps(body).encode())
