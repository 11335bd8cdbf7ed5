"""Servers for tests of what speaks HTTP: they speak three protocols, and can refuse, cut, drip, hang up and lie."""

import contextlib
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def form(self) -> dict[str, str]:
        return {name: value for name, (value,) in parse_qs(self.body.decode()).items()}


@dataclass(frozen=True)
class Reply:
    """What the server sends. `promised` is the length that it announces, if not the body's; a server that drips sends
    the body again and again, until the client is gone."""

    body: bytes | str | dict | list
    status: int = 200
    promised: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    drips: bool = False

    @property
    def bytes(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()


@dataclass
class Server:
    url: str
    requests: list[Request]
    closing: threading.Event  # set when the test is over: what a server waits for that does not answer


@contextlib.contextmanager
def serving(answer):
    """A server on a free local port. `answer(request)` gives a Reply, or None: the connection ends without a word.

    An answer that takes a second argument is given the Server, to wait for its `closing`.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.do_POST()

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = Request(self.path, dict(self.headers), body)
            server.requests.append(request)
            reply = answer(request, server) if answer.__code__.co_argcount == 2 else answer(request)
            if reply is None:
                return
            with contextlib.suppress(OSError):  # the client may have given up
                self.send_response(reply.status)
                for header in reply.headers:
                    self.send_header(*header)
                self.send_header("Content-Length", str(reply.promised or len(reply.bytes)))
                self.end_headers()
                self.wfile.write(reply.bytes)
                while reply.drips and not server.closing.wait(0.02):
                    self.wfile.write(reply.bytes)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_address[1]}", [], threading.Event())
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        http.shutdown()
        thread.join()
        http.server_close()


def libre(request: Request) -> Reply:
    """LibreTranslate, translating into capitals."""
    return Reply({"translatedText": request.json["q"].upper()})


def apy(request: Request) -> Reply:
    """Apertium-APy, translating into capitals."""
    return Reply({"responseData": {"translatedText": request.form["q"].upper()}, "responseStatus": 200})


def chat(request: Request) -> Reply:
    """An OpenAI-compatible endpoint, translating into capitals."""
    content = request.json["messages"][-1]["content"].upper()
    return Reply({"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]})


def silent(request: Request, server: Server) -> None:
    """Takes the request and never answers."""
    server.closing.wait()
