"""A name server for the checks: A and SRV records that change while nginx runs."""

import socket
import struct
import threading

A, SRV, AAAA = 1, 33, 28


def encoded(name):
    return b"".join(bytes([len(part)]) + part.encode() for part in name.rstrip(".").split(".")) + b"\0"


class NameServer:
    """Answers over UDP from a dictionary, with a time to live of one second."""

    def __init__(self, port):
        self.records = {}
        self.asked = []
        self.ttl = 1
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", port))
        self.socket.settimeout(0.1)
        self.closing = False
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def a(self, name, *addresses):
        """The addresses of a name, as of now."""
        self.records[name, A] = [socket.inet_aton(address) for address in addresses]

    def srv(self, name, *targets):
        """The (host, port) pairs of a service, as of now, with CoreDNS's weights: a hundred, shared."""
        weight = 100 // len(targets)
        self.records[name, SRV] = [struct.pack("!HHH", 0, weight, port) + encoded(host) for host, port in targets]

    def close(self):
        self.closing = True
        self.thread.join()
        self.socket.close()

    def _serve(self):
        while not self.closing:
            try:
                query, client = self.socket.recvfrom(4096)
            except TimeoutError:
                continue
            self.socket.sendto(self._answer(query), client)

    def _answer(self, query):
        labels, at = [], 12
        while length := query[at]:
            labels.append(query[at + 1:at + 1 + length].decode())
            at += 1 + length
        name, kind = ".".join(labels).lower(), struct.unpack("!H", query[at + 1:at + 3])[0]
        self.asked.append((name, kind))
        records = self.records.get((name, kind), [])
        known = records or any(key[0] == name for key in self.records)
        flags = 0x8180 if known else 0x8183
        head = query[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0)
        body = b"".join(
            b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, self.ttl, len(record)) + record for record in records)
        return head + query[12:at + 5] + body
