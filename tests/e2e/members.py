"""A site for members on a loopback port, whose sessions end after so many pages, and a scraper that logs in."""

import contextlib
import os
import threading
import uuid
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SITE = os.environ.get("E2E_SITE", "")
MODE = os.environ.get("E2E_MODE", "")


class Members(ThreadingHTTPServer):
    """The site.

    `pages` is how many pages a session is good for; `refuse` makes it refuse all logins; `closed` tells of a path how
    many times more it says that the session is over, whatever that session is.
    """

    daemon_threads = True

    def __init__(self, pages):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages = pages
        self.refuse = False
        self.closed = {}
        self.logins = []  # of each, the accounts in order
        self.served = []  # (session, path)
        self.left = {}  # by session
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def close(self):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site, path = self.server, self.path.partition("?")[0]
        session = SimpleCookie(self.headers.get("cookie", "")).get("session")
        with site.lock:
            if path == "/login":
                site.logins.append(self.path.partition("=")[2])
                if site.refuse:
                    self.answer(403, "no such member")
                    return
                name = uuid.uuid4().hex
                site.left[name] = site.pages
                self.answer(200, "welcome", f"session={name}; Max-Age=3600; Path=/")
            elif self.is_closed(path) or session is None or site.left.get(session.value, 0) <= 0:
                self.answer(401, "members only")
            else:
                site.left[session.value] -= 1
                site.served.append((session.value, path))
                self.answer(200, path)

    def is_closed(self, path):
        left = self.server.closed.get(path, 0)
        self.server.closed[path] = left - 1
        return left > 0

    def answer(self, status, text, cookie=None):
        body = f"<html><body><h1>{text}</h1></body></html>".encode()
        self.send_response(status)
        if cookie:
            self.send_header("set-cookie", cookie)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


# ---- the scraper


async def scrape(worker):
    """Every page of the site, as a member."""
    from scraper_worker import PermanentError

    async def log_in(page):
        response = await page.goto(f"{SITE}/login?user={worker.name}")
        if response.status == 403:
            raise PermanentError("the site refuses our credentials")

    keys = [f"{SITE}/page/{number}" for number in range(int(os.environ.get("E2E_ITEMS", "6")))]
    concurrency = int(os.environ.get("E2E_CONCURRENCY", "1"))
    options = {"login": log_in} if MODE == "login" else {"keep_session": True} if MODE == "keep" else {}
    await worker.process(keys, read, concurrency=concurrency, **options)


async def read(item):
    """One page, or word that the session is over."""
    from scraper_worker import SessionExpired

    if MODE == "keep":
        await item.page.goto(f"{SITE}/login?user=keep")
    response = await item.page.goto(item.key)
    if response.status == 401:
        raise SessionExpired
    return await item.page.inner_text("h1")
