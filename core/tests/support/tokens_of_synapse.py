#!/usr/bin/env python3
"""Says which access token the installed Synapse takes from a request: its own function, behind Twisted's own parser.

In:  on stdin, again and again, four bytes of length (big-endian) and the head of an HTTP request.
Out: on stdout, for each, a line: `token ` and the token in hex, `none ` and why, or `refused` if the request does not come so far.
Run by the Python of the virtualenv that Synapse is in: core/tests/support/synapse.rs starts it.
"""
import struct
import sys

from synapse.api.auth.base import BaseAuth
from synapse.api.errors import MissingClientTokenError
from twisted.internet.testing import StringTransport
from twisted.web import http


def read(request):
    """What Synapse does with a request that Twisted has parsed."""
    try:
        return "token " + BaseAuth.get_access_token_from_request(request).encode("ascii").hex()
    except (MissingClientTokenError, UnicodeDecodeError) as error:
        return f"none {type(error).__name__}"


class Recorder(http.Request):
    """A request that is not answered."""

    def process(self):
        self.channel.said = read(self)


def answer(head):
    """What Synapse makes of a request with that head."""
    channel = http.HTTPChannel()
    channel.requestFactory = Recorder
    channel.timeOut = None
    channel.said = None
    channel.makeConnection(StringTransport())
    channel.dataReceived(head)
    # Twisted itself has refused it, and says so to the client.
    return channel.said or "refused"


def main():
    given, said = sys.stdin.buffer, sys.stdout
    while length := given.read(4):
        head = given.read(struct.unpack(">I", length)[0])
        said.write(answer(head) + "\n")
        said.flush()


if __name__ == "__main__":
    main()
