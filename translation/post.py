"""One request over HTTP with one time limit, and what can be shown of a server's answer. Used by `engines.py` alone.

    Address, body -> post -> status, headers, content -> sentence -> ": the model m does not exist"

Left out: redirects, which would take the key to another server, proxies, kept-open connections, and a time limit for
the look-up of a host's name.
"""

import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import threading
import time
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from harness.jsonl import is_text

API_KEY = "TRANSLATOR_API_KEY"  # the environment variable with the key of a libre+ or chat+ service
LARGEST = 4_000_000  # bytes of an answer that are read
SHOWN = 80  # characters of what a server says
SECRET = re.compile(r"key$|secret|passw|auth|credential|token$", re.IGNORECASE)  # names of what is no option
_TLS = ssl.create_default_context()


class Address(NamedTuple):
    host: str
    port: int
    path: str
    is_safe: bool  # https

    def __str__(self):
        return f"{self.host}:{self.port}"


def address_of(url: str, key: str) -> tuple[Address, dict[str, list[str]]]:
    """The address of a service, and the options behind its "?". ValueError, which quotes nothing, for any other URL and
    for a key in it."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # whose message would quote what it took for the port
        is_address = False
    if not is_address or "@" in parts.netloc or not re.fullmatch("[!-~]*", parts.path):
        raise ValueError(f"http(s)://host/path was expected, and a key goes into {API_KEY}")
    options, is_safe = parse_qs(parts.query), parts.scheme == "https"
    if any(map(SECRET.search, options)) or (len(key) > 5 and key in url + unquote(url)):
        raise ValueError(f"a key goes into {API_KEY}, not into the address")
    return Address(parts.hostname, parts.port or (443 if is_safe else 80), parts.path.rstrip("/"), is_safe), options


def api_key() -> str:
    """From the environment. ValueError, which does not quote it, for what no header can hold."""
    key = os.environ.get(API_KEY, "").strip()
    if not re.fullmatch("[!-~]*", key):
        raise ValueError(f"{API_KEY} holds a line break, a blank or another character that no key has")
    return key


def post(
    address: Address, path: str, data: bytes | None, headers: dict, timeout: float
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and content (at most about `LARGEST` bytes of it) of a POST, or of a GET if there is no data.

    The time limit is for all of it together: a server may send a byte now and then, in the status line, in a header, in
    the size of a chunk, which a limit for each read would allow for ever. So a watchdog hangs up when the time is over.
    Raises TimeoutError then, and ConnectionError for all else that goes wrong on the way.
    """
    end, content, late = time.monotonic() + timeout, b"", threading.Event()
    connection = http.client.HTTPConnection(address.host, address.port)
    try:
        with connect(address, end) as plain, plain.dup() as line:  # a second hold of the line, for the watchdog

            def hang_up():
                late.set()
                with contextlib.suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)  # wakes who reads, also in the middle of TLS

            watchdog = threading.Timer(end - time.monotonic(), hang_up)
            watchdog.daemon = True
            watchdog.start()
            try:
                connection.sock = _TLS.wrap_socket(plain, server_hostname=address.host) if address.is_safe else plain
                connection.request("GET" if data is None else "POST", address.path + path, data, headers)
                response = connection.getresponse()
                while len(content) < LARGEST and (part := response.read1(LARGEST)):
                    content += part
            finally:
                watchdog.cancel()
                connection.close()
        if late.is_set():  # what was read may look whole
            raise TimeoutError
        if response.length and len(content) < LARGEST:
            raise http.client.IncompleteRead(content, response.length)
        return response.status, response.headers, content
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        if late.is_set() or isinstance(error, TimeoutError):
            raise TimeoutError("no answer in time") from None
        raise ConnectionError("the connection broke") from None


def connect(address: Address, end: float) -> socket.socket:
    """A connection to the first of the host's addresses that answers, before `end`."""
    failure = OSError("no address")
    for family, kind, protocol, _, place in socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM):
        line = socket.socket(family, kind, protocol)
        try:
            line.settimeout(max(0.001, end - time.monotonic()))
            line.connect(place)
            return line
        except OSError as error:
            line.close()
            failure = error
    raise failure


def retry_after(value: str) -> float:
    """Seconds that a server asks to wait, 0 if it does not: a number, or a date."""
    try:
        seconds = float(value) if value.strip().isdecimal() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(0.0, seconds)


def sentence(content: bytes, key: str) -> str:
    """What a server says about an error, in JSON or HTML, as one short line with a colon in front, or "".

    Anybody may be shown it: no control tokens, since a model may read it, and no word that holds a part of the key.
    """
    text = content[:20_000].decode(errors="replace")
    with contextlib.suppress(ValueError, RecursionError):
        text = _said(json.loads(text))
    text = re.sub(r"<[^<>]*>", " ", text[:2000])
    words = ["".join(c for c in word if c.isprintable() and is_text(c)) for word in text.split()]
    line = " ".join("[key]" if holds_part(word, key) else word for word in words if word)
    return f": {line[: SHOWN - 1]}…" if len(line) > SHOWN else f": {line}" if line else ""


def _said(found) -> str:
    """The sentence in an error's JSON: {"error": {"message": …}}, {"detail": [{"msg": …}]} and the like."""
    names = ("error", "explanation", "message", "detail", "msg")
    while isinstance(found, dict | list):
        values = [found[name] for name in names if name in found] if isinstance(found, dict) else found
        found = values[0] if values else ""
    return found if isinstance(found, str) else ""


def holds_part(word: str, key: str) -> bool:
    """Whether any four characters in a row of the key are in the word: servers show keys in part, too."""
    word = unquote(word).casefold()
    return bool(key) and any(key[i : i + 4].casefold() in word for i in range(max(1, len(key) - 3)))
