"""A server on loopback that answers as the web does on bad days; what it does is in the path."""

import asyncio
import contextlib
import socket
import ssl
import struct
import subprocess
from email.utils import formatdate
from urllib.parse import parse_qs, urlsplit

PAGE = b"<title>page</title><p>one<p>two<iframe id=frame srcdoc='<i>inside</i>'></iframe>"


class Wild:
    """HTTP on `port`, TLS with a certificate that nobody trusts on `tls_port`, the same words to all on `rude_port`."""

    def __init__(self):
        self.port = self.tls_port = self.rude_port = 0
        self._servers = []

    async def __aenter__(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._servers.append(server)
        self.port = server.sockets[0].getsockname()[1]
        rude = await asyncio.start_server(self._refuse, "127.0.0.1", 0)
        self._servers.append(rude)
        self.rude_port = rude.sockets[0].getsockname()[1]
        return self

    async def serve_tls(self, folder):
        """Serve TLS as well, with a key made in `folder`."""
        key, cert = folder / "key.pem", folder / "cert.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
        await asyncio.to_thread(
            subprocess.run, [*command, "-keyout", key, "-out", cert], check=True, capture_output=True
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self._servers.append(server)
        self.tls_port = server.sockets[0].getsockname()[1]

    async def __aexit__(self, *exc):
        for server in self._servers:
            server.close()

    def __call__(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    async def _serve(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                url = urlsplit(head.split()[1].decode())
                if not await self._answer(url.path, parse_qs(url.query), writer, reader):
                    break
        writer.close()

    async def _refuse(self, reader, writer):
        with contextlib.suppress(ConnectionError):
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
        writer.close()

    async def _answer(self, path, query, writer, reader):
        """Answer one request; whether the connection goes on."""
        if path == "/silent":
            await reader.read()  # until the other side gives up
            return False
        if path == "/close":
            return False
        if path == "/reset":
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if path == "/garbage":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nhello")
            return False
        if path == "/cut":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{")
            await writer.drain()
            return False
        if path == "/loop":
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: /loop\r\nContent-Length: 0\r\n\r\n")
            return True
        if path == "/file":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Disposition: attachment\r\nContent-Length: 1\r\n\r\nx")
            return True
        status = query.get("status", ["200"])[0]
        body = query["body"][0].encode() if "body" in query else b"" if "empty" in query else PAGE
        extra = "".join(f"{header}\r\n" for header in query.get("header", []))
        fields = f"Content-Type: text/html\r\nDate: {formatdate(usegmt=True)}\r\nContent-Length: {len(body)}\r\n{extra}"
        writer.write(f"HTTP/1.1 {status} X\r\n{fields}\r\n".encode() + (b"" if status == "204" else body))
        await writer.drain()
        return True
