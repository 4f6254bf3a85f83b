"""The client: one kept connection, over TCP or a Unix socket, and what came back."""

import contextlib
import http.client
import json
import socket


class Answer:
    """What came back."""

    def __init__(self, response):
        self.status = response.status
        self.headers = {key.lower(): value for key, value in response.getheaders()}
        self.text = response.read()

    @property
    def worker(self) -> str | None:
        """Which stand-in worker answered."""
        return self.headers.get("x-worker")

    def json(self):
        """The body as JSON; an error if it is none."""
        return json.loads(self.text)

    def decoded(self):
        """The body as JSON if it is that, else its bytes."""
        try:
            return json.loads(self.text)
        except ValueError:
            return self.text


class Client:
    """One connection, kept open."""

    def __init__(self, port: int = 0, path=None, *, source: str | None = None, timeout: float = 60):
        self.port, self.path, self.source, self.timeout = port, path, source, timeout
        self.connection = None

    def ask(self, method: str, target: str, headers=None, body: bytes | None = None) -> Answer:
        """One request. `headers` is a dict or a list of pairs. A kept connection that was closed is opened again."""
        pairs = list(headers.items() if isinstance(headers, dict) else headers or [])
        for attempt in (1, 2):
            kept = self.connection is not None
            if not kept:
                self._connect()
            try:
                return self._once(method, target, pairs, body)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                self.close()
                # A new connection that breaks is the answer: the request may have been carried out.
                if attempt == 2 or not kept:
                    raise
            except OSError:
                self.close()
                raise
        raise AssertionError("not reached")

    def _connect(self) -> None:
        source = (self.source, 0) if self.source else None
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, self.timeout, source)
        if self.path:
            self.connection.sock = socket.socket(socket.AF_UNIX)
            self.connection.sock.settimeout(self.timeout)
            self.connection.sock.connect(str(self.path))

    def _once(self, method, target, pairs, body) -> Answer:
        named = {name.lower() for name, _ in pairs}
        self.connection.putrequest(method, target, "host" in named, skip_accept_encoding=True)
        for name, value in pairs:
            self.connection.putheader(name, value)
        if body is not None:
            self.connection.putheader("Content-Length", str(len(body)))
        elif method in ("POST", "PUT"):
            self.connection.putheader("Content-Length", "0")
        self.connection.endheaders()
        if body:
            # The server may refuse and stop reading before all is sent; its answer is what counts.
            with contextlib.suppress(ConnectionError):
                self.connection.send(body)
        answer = Answer(self.connection.getresponse())
        if answer.headers.get("connection") == "close":
            self.close()
        return answer

    def close(self) -> None:
        """Closes the connection."""
        if self.connection:
            self.connection.close()
        self.connection = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
