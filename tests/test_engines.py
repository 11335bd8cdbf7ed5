"""Engines against real files, real processes and real HTTP servers, which do not always do what they should."""

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import traceback
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.helpers import REAL, command, needs_real
from tests.servers import Reply, apy, chat, libre, serving, silent
from tools import TranslationError
from translation.apertium import ROUTES, Apertium
from translation.engines import Apy, ChatEngine, Libre, Recorded, TransientError
from translation.post import API_KEY, LARGEST, retry_after
from translation.service import Service, open_engine

PAIRS = Path("/usr/share/apertium/modes")
needs_apertium = pytest.mark.skipif(
    not (shutil.which("apertium") and (PAIRS / "eng-spa.mode").exists()),
    reason="apertium and apertium-eng-spa are not installed",
)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    """Whoever runs the tests may have a real one."""
    monkeypatch.delenv(API_KEY, raising=False)


def engines(url: str, **options) -> dict:
    return {
        "libre": Libre(url, **options),
        "apy": Apy(url, **options),
        "chat": ChatEngine(f"{url}/v1?model=m", **options),
    }


PROTOCOLS = {"libre": libre, "apy": apy, "chat": chat}

# --- protocols --------------------------------------------------------------------------------------------------


def test_libretranslate_is_asked_in_its_protocol(monkeypatch):
    """Would catch a key that is not sent, or HTML made of a text with `<`."""
    monkeypatch.setenv(API_KEY, "secret\n")
    with serving(libre) as server:
        assert open_engine(f"libre+{server.url}/").translate(["a < b", "c"], "es") == ["A < B", "C"]
    asked = {"source": "es", "target": "en", "format": "text", "api_key": "secret"}
    assert [(r.path, r.json) for r in server.requests] == [("/translate", {"q": q, **asked}) for q in ("a < b", "c")]


def test_a_chat_endpoint_is_asked_in_its_protocol(monkeypatch):
    """Would catch a random translation, a lost key, or a text that stands in the instructions."""
    monkeypatch.setenv(API_KEY, "secret")
    with serving(chat) as server:
        engine = open_engine(f"chat+{server.url}/v1?model=org/m")
        assert engine.translate(["{hola} %s"], "es") == ["{HOLA} %S"]
    (request,) = server.requests
    assert (request.path, request.headers["Authorization"]) == ("/v1/chat/completions", "Bearer secret")
    assert (request.json["model"], request.json["temperature"]) == ("org/m", 0)
    system, user = request.json["messages"]
    assert user == {"role": "user", "content": "{hola} %s"}
    assert system["role"] == "system" and "hola" not in system["content"]
    assert " es " in system["content"] and " en." in system["content"]


def test_an_apy_server_is_asked_in_its_protocol():
    """Would catch JSON, which it does not read, a GET, which it drops when long, or its default, HTML."""
    with serving(apy) as server:
        assert open_engine(f"apy+{server.url}").translate(["a+b & c\nd"], "es") == ["A+B & C\nD"]
    (request,) = server.requests
    form = {"langpair": "es|en", "q": "a+b & c\nd", "markUnknown": "no", "format": "txt"}
    assert (request.path, request.form) == ("/translate", form)


def test_marks_that_an_apy_server_leaves_are_taken_away():
    """Would catch marks that the policy reads as part of the word, or a hash tag and a number that lose theirs."""
    with serving(lambda r: Reply({"responseData": {"translatedText": "#Free @buy #7 of #love me@x.org"}})) as server:
        assert Apy(server.url).translate(["Gratis comprar 7 de #love"], "es") == ["Free buy #7 of #love me@x.org"]


def test_a_text_that_an_apy_server_would_cut_is_not_sent():
    """Would catch sentences that are lost in an answer with status 200."""
    with serving(apy) as server:
        with pytest.raises(TranslationError, match="too long"):
            Apy(server.url).translate(["word " * 2000], "es")
    assert server.requests == []


def said(content, **choice):
    """A chat endpoint that answers this."""
    message = {"message": {"content": content}, "finish_reason": "stop"} | choice
    return serving(lambda r: Reply({"choices": [message]}))


@pytest.mark.parametrize(
    "content, translation",
    [
        ("<think>It is hola.</think>\n\nHello ", "Hello"),
        ("\n<think>\n\n</think>\n\nHello", "Hello"),
        ("<think>a</think>Write </think> at the end", "Write </think> at the end"),
        ("Write </think> at the end", "Write </think> at the end"),
        ("The tag <think> opens a thought", "The tag <think> opens a thought"),
    ],
)
def test_what_a_model_thought_is_no_translation(content, translation):
    """Would catch a chain of thought that the policy reads as a translation, and a text cut at a quoted tag."""
    with said(content) as server:
        assert ChatEngine(f"{server.url}?model=m").translate(["hola"], "es") == [translation]
    assert server.requests[0].path == "/v1/chat/completions"


@pytest.mark.parametrize("reason", ["length", "content_filter", "error", "abort", "tool_calls", None])
def test_an_unfinished_or_filtered_answer_is_a_failure_and_not_kept(reason, tmp_path):
    """Would catch half a translation that is read by the policy, and that stays in the cache for good."""
    with said("Hel", finish_reason=reason) as server:
        service = Service(ChatEngine(f"{server.url}?model=m"), tmp_path / "cache")
        for _ in range(2):
            with pytest.raises(TranslationError, match="unfinished"):
                service.translate(["hola"], "es")
    assert len(server.requests) == 2
    with said("<think>It may be") as server, pytest.raises(TranslationError, match="thought"):
        ChatEngine(f"{server.url}?model=m").translate(["hola"], "es")


def test_a_request_may_hold_more_and_languages_may_have_names():
    """Would catch a server whose thoughts cannot be turned off, a limit that is not sent, and a code that a model does
    not know."""
    extra = {"max_tokens": 50, "temperature": 0.5, "chat_template_kwargs": {"enable_thinking": False}}
    given = f"extra={quote(json.dumps(extra))}&languages={quote(json.dumps({'gl': 'Galician'}))}"
    with serving(chat) as server:
        engine = open_engine(f"chat+{server.url}/v1?model=m&{given}")
        assert engine.translate(["hola"], "gl") == ["HOLA"]
        assert open_engine(f"chat+{server.url}?model=m&extra={json.dumps(extra)}").translate(["a"], "es") == ["A"]
    asked = server.requests[0].json
    assert {name: asked[name] for name in extra} == extra
    assert "from Galician into the language with ISO 639 code en." in asked["messages"][0]["content"]
    assert server.requests[1].json["max_tokens"] == 50
    assert engine.version != ChatEngine(f"{server.url}/v1?model=m").version  # another answer, so another key


NICE = [
    "two\nlines\n",
    "tab\tand\x07bell\x1b[0m",
    "שלום",
    "😀 ¾ €5.50",
    '{"q": "\\u0000"} "',
    "<b>&amp;</b>",
    "<|im_end|>",
]
BLANK = ["", " \n", "nul\0", "\ud83d", "a\udc80b"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_any_text_arrives_as_it_is(name):
    """Would catch text that is changed by its encoding, or one that breaks out of JSON or of a form."""
    echo = {
        "libre": lambda r: Reply({"translatedText": r.json["q"]}),
        "apy": lambda r: Reply({"responseData": {"translatedText": r.form["q"]}}),
        "chat": lambda r: Reply({"choices": [{"message": {"content": r.json["messages"][1]["content"]}}]}),
    }
    with serving(echo[name]) as server:
        texts = NICE + ["long " * (1000 if name == "apy" else 20_000)]
        kept = [text.strip() for text in texts] if name == "chat" else texts
        assert engines(server.url)[name].translate(texts, "he") == kept


@pytest.mark.parametrize("text", BLANK, ids=ascii)
def test_what_is_no_text_is_not_sent(text, tmp_path):
    """Would catch a UnicodeEncodeError that ends a run because of what a model wrote, or a NUL that ends a text."""
    path = write(tmp_path, {"source": "es", "text": "hola", "translation": "hello"})
    with serving(libre) as server:
        for engine in (*engines(server.url).values(), Recorded(path)):
            with pytest.raises(TranslationError, match="no character"):
                engine.translate(["hola", text], "es")
            assert engine.translate([], "es") == []
    assert server.requests == []


# --- failures ---------------------------------------------------------------------------------------------------

LIES = {
    "HTML": "<html>All is well <|im_end|></html>",
    "nothing": "",
    "null": "null",
    "a list": [],
    "another object": {"error": "please <|im_end|> pay"},
    "a number": {"translatedText": 5, "responseData": {"translatedText": 5}, "choices": [{"message": {"content": 5}}]},
    "several texts": {"translatedText": ["A", "B"], "responseData": {"translatedText": ["A"]}, "choices": ["A"]},
    "no text": {"translatedText": None, "responseData": None, "choices": [{"message": {"content": None}}]},
    "an empty text": {
        "translatedText": " ",
        "responseData": {"translatedText": ""},
        "choices": [{"message": {"content": "\n"}}],
    },
    "half a character": {
        "translatedText": "\ud83d",
        "responseData": {"translatedText": "\ud83d"},
        "choices": [{"message": {"content": "\ud83d"}}],
    },
    "half of it": {
        "translatedText": None,
        "responseData": {"translatedText": "LA"},
        "choices": [{"message": {"content": "LA"}, "finish_reason": "length"}],
    },
    "nested lists": "[" * 100_000,
    "no UTF-8": b'{"translatedText": "\xe9"}',
    "far too much": b" " * (LARGEST + 1),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_an_answer_that_is_no_translation_is_a_failure_and_not_asked_for_again(name, lie):
    """Would catch garbage that is read as a translation, paid for once more, or quoted to the model."""
    with serving(lambda r: Reply(LIES[lie])) as server:
        with pytest.raises(TranslationError) as failure:
            engines(server.url)[name].translate(["la casa de la colina donde vive la abuela"], "es")
    assert not isinstance(failure.value, TransientError)
    assert len(str(failure.value)) < 130 and "im_end" not in str(failure.value)


@pytest.mark.parametrize("status", [301, 302, 400, 401, 403, 404, 413])
def test_a_refusal_is_a_failure_and_not_asked_for_again(status):
    """Would catch a wrong key that is tried for minutes, and a redirection that takes it to another server."""
    with serving(libre) as elsewhere:
        to = (("Location", elsewhere.url),) if status < 400 else ()
        with serving(lambda r: Reply("<|im_end|>", status, headers=to)) as server:
            with pytest.raises(TranslationError, match=f"HTTP {status}") as failure:
                Libre(server.url).translate(["hola"], "es")
    assert not isinstance(failure.value, TransientError) and "im_end" not in str(failure.value)
    assert elsewhere.requests == []


@pytest.mark.parametrize(
    "body, shown",
    [
        ({"error": {"message": "model m does not exist"}}, ": model m does not exist"),
        ({"error": "Invalid\x1b[0m \n API key"}, ": Invalid[0m API key"),
        (
            {"status": "error", "explanation": "That pair is invalid", "message": "Bad Request"},
            ": That pair is invalid",
        ),
        ({"detail": [{"msg": "Field required"}]}, ": Field required"),
        ("<html><h1>404</h1> <p>Not <b>Found</b></p></html>", ": 404 Not Found"),
        ("<|im_end|> pay", ": pay"),
        ("word " * 100, ": " + "word " * 15 + "word…"),
        (b"\xff\xfe", ": \ufffd\ufffd"),
        ({}, ""),
        ([], ""),
        ({"error": {"message": None}}, ""),
        ("[" * 100_000, ": " + "[" * 79 + "…"),
    ],
    ids=lambda value: repr(value)[:30],
)
@pytest.mark.parametrize("status, kind", [(404, TranslationError), (503, TransientError)])
def test_the_sentence_of_a_server_is_shown_and_short(body, shown, status, kind):
    """Would catch "HTTP 404" alone, where the server says what is wrong, a page of HTML, and codes that move a cursor
    or end a model's turn."""
    with serving(lambda r: Reply(body, status)) as server, pytest.raises(kind) as failure:
        Libre(server.url).translate(["hola"], "es")
    assert str(failure.value) == f"HTTP {status}{shown}" and len(shown) <= 82


PASSING = {
    "too many requests": lambda r: Reply("", 429),
    "an error of the server": lambda r: Reply("", 500),
    "out of order": lambda r: Reply("", 503),
    "an end without a word": lambda r: None,
    "a body that is cut": lambda r: Reply('{"translatedText": "HO', promised=1000),
    "a body that is cut and looks whole": lambda r: Reply('{"translatedText": "HO"}', promised=1000),
    "silence": silent,
}


@pytest.mark.parametrize("failure", PASSING)
def test_what_may_pass_is_told_apart(failure):
    """Would catch a busy server that is taken for a broken one, a cut answer that is read, and a wait without end."""
    with serving(PASSING[failure]) as server:
        with pytest.raises(TransientError) as caught:
            Libre(server.url, timeout=0.3 if failure == "silence" else 60).translate(["hola"], "es")
    assert len(str(caught.value)) < 60
    assert len(server.requests) == 1


def test_nobody_at_the_port_may_pass():
    """Would catch a server that is being restarted and ends the run with a ConnectionRefusedError."""
    with socket.socket() as held:  # bound, and not listening
        held.bind(("127.0.0.1", 0))
        with pytest.raises(TransientError, match="connection"):
            Libre(f"http://127.0.0.1:{held.getsockname()[1]}").translate(["hola"], "es")


@contextlib.contextmanager
def dripping(start: bytes, drop: bytes):
    """A server that reads, sends the start at once and then a drop every 20 ms until the client is gone. Its port."""
    listener, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def serve():
        line, _ = listener.accept()
        with line, contextlib.suppress(OSError):
            line.recv(65536)
            line.sendall(start)
            while not over.wait(0.02):
                line.sendall(drop)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        thread.join()
        listener.close()


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = b'{"translatedText": "HOLA"}'
DRIPS = {
    "nothing": (b"", b""),
    "the status line": (b"HTTP/1.1 200 O", b"K"),
    "a header": (OK + b"X-Header: ", b"a"),
    "headers": (OK, b"X-Header: a\r\n"),
    "the size of a chunk": (CHUNKED, b"0"),
    "chunks": (CHUNKED, b"1\r\n \r\n"),
    "trailers": (CHUNKED + b"1a\r\n" + WHOLE + b"\r\n0\r\n", b"X-Trailer: a\r\n"),
    "a body": (OK + b"Content-Length: 1000000\r\n\r\n", b" "),
    "a body without a length": (b"HTTP/1.0 200 OK\r\n\r\n" + WHOLE, b" "),
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a TLS handshake": (b"\x16\x03\x03\x3f\xff", b"\0"),
}


@pytest.mark.parametrize("where", DRIPS)
def test_a_server_that_drips_does_not_hold_the_run(where):
    """Would catch a time limit that begins again with each byte, and what was read by then taken for an answer."""
    with dripping(*DRIPS[where]) as port:
        scheme, start = "https" if "TLS" in where else "http", time.monotonic()
        with pytest.raises(TransientError, match="in time"):
            Libre(f"{scheme}://127.0.0.1:{port}", timeout=0.4).translate(["hola"], "es")
        assert 0.3 < time.monotonic() - start < 5


def test_watchdogs_go_when_their_request_ends():
    """Would catch a thread for each request that lives until its time limit."""
    with serving(libre) as server:
        Libre(server.url, timeout=600).translate(["hola"] * 5, "es")
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_a_server_that_asks_for_time_gets_it():
    """Would catch a busy server that is asked again at once, until it gives up on us."""
    replies = itertools.chain([Reply("", 429, headers=(("Retry-After", "1"),))], itertools.repeat(None))
    with serving(lambda r: next(replies) or libre(r)) as server:
        start = time.monotonic()
        assert Service(Libre(server.url), backoff=0.001).translate(["hola"], "es") == ["HOLA"]
    assert time.monotonic() - start >= 1 and len(server.requests) == 2


def test_a_server_that_asks_for_more_time_than_there_is_gets_none():
    """Would catch a run that stands still for an hour in the middle of a step."""
    with serving(lambda r: Reply("", 503, headers=(("Retry-After", "3600"),))) as server:
        with pytest.raises(TransientError, match="503"):
            Service(Libre(server.url), backoff=0.001, deadline=100).translate(["hola"], "es")
    assert len(server.requests) == 1


def test_the_time_to_wait_is_a_number_or_a_date():
    """Would catch a ValueError from a header, and a negative wait."""
    assert retry_after("7") == 7
    assert not any(map(retry_after, ("", "soon", "-5", "²", "Wed, 21 Oct 2015 07:28:00 GMT")))
    assert 50 < retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60


@pytest.mark.parametrize(
    "name, body", [("libre", {"error": "xx is not supported"}), ("apy", {"explanation": "That pair is not installed"})]
)
def test_a_language_that_the_service_lacks_is_no_passing_failure(name, body):
    """Would catch a wrong language that is counted as an outage in every rollout of a run."""
    with serving(lambda r: Reply(body, 400)) as server:
        with pytest.raises(ValueError, match=list(body.values())[0]):
            engines(server.url)[name].translate(["hola"], "xx")


# --- opening ----------------------------------------------------------------------------------------------------

BAD_SPECS = [
    "",
    "lexicon",
    "apertium:x",
    "libre",
    "libre+ftp://h",
    "libre+http://",
    "libre+http://u:p@h",
    "chat+http://h",
    "chat+http://h/v1?model=",
    "chat+http://h?model=a&temperature=1",
    "chat+http://h?model=a&extra=[]",
    "chat+http://h?model=a&extra={",
    'chat+http://h?model=a&extra={"stream": true}',
    'chat+http://h?model=a&languages={"es": 1}',
    "libre+http://h/a b",
    "libre+http://h?x=1",
    "http://h",
    "libre+http://h:99999",
    "google+https://h",
]


@pytest.mark.parametrize("spec", BAD_SPECS)
def test_a_bad_spec_is_a_value_error(spec):
    """Would catch an engine that fails only when it is first asked, hours into a run."""
    with pytest.raises(ValueError):
        open_engine(spec)


def test_the_address_is_no_part_of_the_version():
    """Would catch a cache that asks for everything again when a server moves to another port."""
    for first, second in zip(engines("http://a:5000").values(), engines("https://b/x").values(), strict=True):
        assert first.version == second.version
    assert Libre("http://a?version=1").version != Libre("http://a?version=2").version


def test_another_model_or_prompt_is_another_version(monkeypatch):
    """Would catch a cache that answers for one model with the words of another."""
    versions = {ChatEngine(f"http://h/v1?model={model}").version for model in "ab"}
    monkeypatch.setattr(ChatEngine, "prompt", "Translate from {source} to {target}, please.")
    assert len(versions | {ChatEngine("http://h/v1?model=a").version}) == 3


# --- keys -------------------------------------------------------------------------------------------------------

KEY = "sk-4fQ9/x7+Lm2Z"


def echo(request) -> str:
    """All that a server was told."""
    return json.dumps({"headers": request.headers, "body": request.body.decode()})


ECHOES = {
    "a sentence": lambda r: {"error": {"message": f"Incorrect API key provided: {KEY}."}},
    "a part": lambda r: {"error": f"Incorrect API key provided: {KEY[:7]}*****{KEY[-4:]}."},
    "another case": lambda r: {"message": f"no such key {KEY.upper()}"},
    "escaped": lambda r: {"message": f"no such key {quote(KEY, safe='')}"},
    "all of it": echo,
    "all of it as an error": lambda r: {"error": echo(r)},
    "HTML": lambda r: f"<p>Forbidden: {KEY}</p>",
    "a header": lambda r: {"message": "no"},
    "a translation": lambda r: {"translatedText": f"key {KEY}", "choices": [{"message": {"content": f"key {KEY}"}}]},
}


@pytest.mark.parametrize("status", [200, 302, 400, 401, 429, 500])
@pytest.mark.parametrize("what", ECHOES)
def test_no_key_is_shown_or_kept_whatever_a_server_echoes(what, status, monkeypatch, tmp_path):
    """Would catch a key in an error, in what the model reads, in a traceback, in the cache or in a provenance."""
    monkeypatch.setenv(API_KEY, KEY)
    headers = (("Location", f"http://{KEY}"), ("Retry-After", KEY), ("WWW-Authenticate", KEY))
    with serving(lambda r: Reply(ECHOES[what](r), status, headers=headers)) as server:
        for engine in (Libre(server.url), ChatEngine(f"{server.url}?model=m")):
            with pytest.raises(TranslationError) as failure:
                Service(engine, tmp_path / "cache", backoff=0.001, retries=1).translate(["hola"], "es")
            shown = "".join(traceback.format_exception(failure.value)) + engine.version + str(engine)
            assert not any(KEY[i : i + 5].lower() in shown.lower() for i in range(len(KEY) - 4))
    assert server.requests and all(KEY in json.dumps(r.headers) + r.body.decode() for r in server.requests)
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize("key", ["two\nlines", "two\r\nX-Header: lines", "two words", "ключ", "nul\x01"])
def test_a_key_that_no_header_can_hold_is_refused_by_its_name(key, monkeypatch):
    """Would catch an error from deep inside that quotes the header, with the key."""
    monkeypatch.setenv(API_KEY, key)
    for spec in ("libre+http://h", "apy+http://h", "chat+http://h?model=m"):
        with pytest.raises(ValueError, match=API_KEY) as failure:
            open_engine(spec)
        assert not any(word in str(failure.value) for word in ("two", "ключ", "nul"))


@pytest.mark.parametrize(
    "address",
    [
        "libre+http://user:{key}@host",
        "libre+http://{key}@host",
        "libre+http://:{key}@host/x",
        "libre+http://host?api_key={key}",
        "libre+http://host?key={key}&x=1",
        "libre+http://host?{key}=1",
        "libre+http://host:{key}/x",
        "chat+http://host/v1?model=m&token={key}",
        'chat+http://host/v1?model=m&extra={{"api_key":"{key}"}}',
        "chat+http://host/v1?api_key={key}",
        "google+https://{key}@host",
        "http://user:{key}@host?key={key}",
    ],
)
def test_a_key_in_the_address_is_refused_and_not_quoted(address):
    """Would catch a key in the shell's history and in config.json, and one that the error itself prints."""
    done = command("-m", "translation.pipeline", "--languages", "es", "--translator", address.format(key="hunter22x"))
    assert done.returncode == 2 and "hunter22x" not in done.stdout + done.stderr
    assert done.stderr.count("\n") == 1 and "--translator" in done.stderr


def test_the_key_itself_in_the_path_is_refused(monkeypatch):
    """Would catch an address with the key in it that is written into config.json."""
    monkeypatch.setenv(API_KEY, KEY)
    for address in (
        f"libre+http://h/{KEY}/x",
        f"libre+http://h/{quote(KEY, safe='')}",
        f"chat+http://h?model={quote(KEY)}",
    ):
        with pytest.raises(ValueError, match=API_KEY) as failure:
            open_engine(address)
        assert KEY not in str(failure.value)


# --- recorded ---------------------------------------------------------------------------------------------------


def write(directory: Path, *rows, name="recorded.jsonl") -> Path:
    path = directory / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_recorded_translations_are_found_by_language_and_text(tmp_path):
    """Would catch the words of another language, or of the other direction."""
    rows = [("es", "en", "no", "not"), ("it", "en", "no", "no"), ("en", "es", "no", "ni")]
    path = write(tmp_path, *[dict(zip(("source", "target", "text", "translation"), row, strict=True)) for row in rows])
    engine = open_engine(f"recorded:{path}")
    assert [engine.translate(["no"], source, target)[0] for source, target, *_ in rows] == ["not", "no", "ni"]
    assert engine.route("it", "en") == ("it-en",)
    with pytest.raises(TranslationError, match="not recorded"):
        engine.translate(["no", "nada"], "es")
    with pytest.raises(ValueError, match="'de'"):
        engine.translate(["no"], "de")


def test_fields_may_have_other_names_and_texts_may_stand_elsewhere(tmp_path):
    """Would catch translations that are paired by line instead of by id."""
    texts = write(tmp_path, {"id": 1, "q": "uno"}, {"id": 2, "q": "dos"}, {"id": 3, "q": "tres"}, name="texts.jsonl")
    rows = [
        {"id": 2, "lang": "es", "to": "two"},
        {"id": 9, "lang": "es", "to": "nine"},
        {"id": 3, "lang": "es", "to": None},
    ]
    path = write(tmp_path, *rows, {"id": 1, "lang": "es", "to": "one"})
    engine = open_engine(f"recorded:{path}?source=lang&translation=to&text=q&texts={texts}")
    assert engine.translate(["uno", "dos"], "es") == ["one", "two"]
    with pytest.raises(TranslationError):
        engine.translate(["tres"], "es")


def test_a_line_without_an_id_belongs_to_no_text(tmp_path):
    """Would catch lines without an id that all get the last such text, or an id of another type that ends in a
    TypeError."""
    texts = write(tmp_path, {"text": "dos"}, {"id": [1], "text": "uno"}, name="texts.jsonl")
    path = write(tmp_path, {"source": "es", "translation": "?"}, {"id": [1], "source": "es", "translation": "one"})
    engine = Recorded(path, texts=texts)
    assert engine.translate(["uno"], "es") == ["one"]
    with pytest.raises(TranslationError):
        engine.translate(["dos"], "es")


GOOD = {"source": "es", "text": "uno", "translation": "one"}
MALFORMED = {
    "no JSON": "{",
    "no object": "[]",
    "a number": '{"source": "es", "text": 1, "translation": "one"}',
    "no text": '{"source": "es", "translation": "one"}',
    "no translation": '{"source": "es", "text": "a"}',
    "blank": '{"source": "es", "text": "a", "translation": " "}',
    "half a character": '{"source": "es", "text": "\\ud83d", "translation": "one"}',
    "another translation": '{"source": "es", "text": "uno", "translation": "a"}',
    "nested": "[" * 100_000,
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_line_is_named(what, tmp_path):
    """Would catch a line that is skipped silently: its text would be an outage of the translator."""
    with pytest.raises(ValueError, match="recorded.jsonl:3"):
        Recorded(write(tmp_path, GOOD, "", MALFORMED[what]))


def test_a_changed_recording_is_another_version(tmp_path):
    """Would catch a cache that keeps answers of a file that has been corrected."""
    first = Recorded(write(tmp_path, GOOD)).version
    assert Recorded(write(tmp_path, {**GOOD, "translation": "1"})).version != first
    assert Recorded(write(tmp_path, GOOD, GOOD)).version == first


@needs_real
def test_recorded_translations_of_a_real_engine_can_be_used():
    """Would catch a format that the recordings at hand do not have."""
    engine = open_engine(
        f"recorded:{REAL}/apertium_to_en.jsonl?source=lang&translation=translation_en"
        f"&text=question&texts={REAL}/mgsm.jsonl"
    )
    rows = [json.loads(line) for line in open(REAL / "mgsm.jsonl", encoding="utf-8")]
    for language in ("es", "fr"):
        questions = [row["question"] for row in rows if row["lang"] == language]
        answers = engine.translate(questions, language)
        assert len(answers) == 250 and "How " in answers[0]
    back = open_engine(
        f"recorded:{REAL}/apertium_roundtrip.jsonl?source=lang&text=translation&translation=back_translation"
    )
    row = json.loads(open(REAL / "apertium_roundtrip.jsonl", encoding="utf-8").readline())
    assert back.translate([row["translation"]], "es") == [row["back_translation"]]


# --- Apertium ---------------------------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """An Apertium of shell scripts, to which a test adds its stages: mode eng-spa is `first | last`."""
    modes, binaries = tmp_path / "modes", tmp_path / "bin"
    modes.mkdir()
    binaries.mkdir()

    def add(name: str, script: str) -> None:
        (binaries / name).write_text(f"#!/bin/sh\n{script}\n")
        (binaries / name).chmod(0o755)

    for name, script in {
        "apertium": "echo Apertium 0",
        "apertium-destxt": "exec cat",
        "apertium-retxt": "exec cat",
        "first": "exec cat",
        "last": "exec tr a-z A-Z",
    }.items():
        add(name, script)
    for mode in ("eng-spa", "spa-arg"):
        (modes / f"{mode}.mode").write_text(f"first '{mode}.bin' | last $1\n")
    monkeypatch.setenv("PATH", str(binaries), prepend=":")
    add.open = lambda timeout=120.0: Apertium(modes, timeout)
    return add


def test_texts_go_through_a_chain_of_programs_and_hops(programs):
    """Would catch a text that arrives in another's place, a hop left out, or texts that are joined."""
    programs("last", "exec sed 's/^/>/'")  # one line, with its NULs: only the first text gets the sign
    engine = programs.open()
    assert engine.route("en", "an") == ("eng-spa", "spa-arg")
    assert engine.translate(["a b", "c"], "en", "an") == [">>a b", "c"]


STAGES = {
    "kill -9 $$": "failed",
    "exit 3": "failed",
    "exit 0": "lost",
    "tr -d '\\000'": "lost",
    "tr '\\000' '\\n'": "lost",
    "tr -d ab": "lost",
    "tr 'ab' '\\377\\377'": "failed",
}


@pytest.mark.parametrize("script", STAGES)
def test_a_stage_that_goes_wrong_is_noticed(programs, script):
    """Would catch an empty or cut translation that the chain hides, since its last program ends well."""
    programs("first", script)
    with pytest.raises(TranslationError, match=STAGES[script]) as failure:
        programs.open().translate(["ab", "cd"], "en", "es")
    assert not isinstance(failure.value, TransientError)


@pytest.mark.parametrize("text", BLANK, ids=ascii)
def test_apertium_is_not_sent_what_is_no_text(programs, text):
    """Would catch a NUL that makes two texts of one, so that answers move to other texts."""
    engine = programs.open()
    for translate in (engine.translate, engine.translate_marked):
        with pytest.raises(TranslationError, match="no character"):
            translate(["ab", text], "en", "es")
        assert translate([], "en", "es") == []


def test_a_cut_translation_is_noticed(programs):
    """Would catch a text of which one word came back."""
    programs("first", r"sed 's/ word//g'")
    assert programs.open().translate(["one word"], "en", "es") == ["ONE"]  # too short to tell
    with pytest.raises(TranslationError, match="cut"):
        programs.open().translate(["one" + 20 * " word"], "en", "es")


def test_a_stage_that_hangs_ends(programs):
    """Would catch a chain that waits for ever for certain words, as a real one does."""
    programs("first", "exec sleep 1000")
    with pytest.raises(TransientError, match="in time"):
        programs.open(timeout=0.5).translate(["ab"], "en", "es")


def test_a_tagger_sees_one_text_at_a_time(programs, tmp_path):
    """Would catch a translation that depends on the texts before it: real taggers remember them."""
    programs("apertium-tagger", f"echo >> {tmp_path}/starts; exec cat")
    (tmp_path / "modes" / "eng-spa.mode").write_text("first | apertium-tagger -g $2 x | last")
    assert programs.open().translate(["a", "b", "c"], "en", "es") == ["A", "B", "C"]
    assert (tmp_path / "starts").read_text() == "\n\n\n"


def test_a_language_without_a_route_or_a_pair_is_named(programs):
    """Would catch a language pair that is not installed and looks like an outage of the translator."""
    engine = programs.open()
    for pair in (("de", "en"), ("en", "eu"), ("es", "ca"), ("en", "en")):
        with pytest.raises(ValueError, match="no route"):
            engine.translate(["a"], *pair)
    with pytest.raises(ValueError, match="en-gl.mode is missing"):
        engine.translate(["a"], "en", "gl")


def test_another_language_pair_is_another_version(programs, tmp_path):
    """Would catch a cache that keeps the answers of old dictionaries."""
    before = programs.open().version
    (tmp_path / "modes" / "en-gl.mode").write_text("first | last")
    assert programs.open().version != before == before.strip()


def test_where_apertium_is_missing_it_is_said(tmp_path):
    """Would catch a FileNotFoundError from deep inside."""
    with pytest.raises(ValueError, match="apt-get install"):
        Apertium(tmp_path / "none")


def test_every_route_begins_or_ends_in_english():
    """Would catch a slip in the table: hops that do not join."""
    short = {
        "eng": "en",
        "spa": "es",
        "cat": "ca",
        "fra": "fr",
        "arg": "an",
        "ita": "it",
        "srd": "sc",
        "isl": "is",
        "mkd": "mk",
    }
    for code, ways in ROUTES.items():
        there, back = (
            [[short.get(end, end) for end in mode.split("-")] for mode in way.split()] for way in ways.split(",")
        )
        for way, first, last in ((there, "en", code), (back, code, "en")):
            assert not way or [end for hop in way for end in hop][:: len(way) * 2 - 1] == [first, last]
            assert all(a[1] == b[0] for a, b in zip(way, way[1:], strict=False))


@needs_apertium
def test_the_real_apertium_translates_there_and_back():
    """Would catch programs that are called in another way than Apertium's modes mean."""
    engine = Apertium(timeout=600)
    assert engine.translate(["The house is red.", "Two\nlines and 3 [houses]."], "en", "es") == [
        "La casa es roja.",
        "Dos\nlíneas y 3 [casas].",
    ]
    assert engine.translate(["La casa es roja."], "es") == ["The house is red."]


def command_line(text: str, *flags: str) -> str:
    done = subprocess.run(["apertium", *flags, "eng-spa"], input=text.encode(), capture_output=True, timeout=600)
    return done.stdout.decode()


@needs_apertium
def test_the_real_apertium_is_as_its_command_line():
    """Would catch text that is escaped in another way, marks that stay, and texts of a batch that touch each other."""
    engine = Apertium(timeout=600)
    texts = ["How many eggs does the zorble have?", "a/b {c} ^d$ <e> [f] \\g @h #i", "Fast does\u00a0– “it” ¾ 😀"]
    assert engine.translate(texts, "en", "es") == [command_line(text, "-u") for text in texts]
    assert engine.translate_marked(texts[:1], "en", "es") == [command_line(texts[0])]
    assert "*zorble" in command_line(texts[0])


@needs_apertium
def test_the_real_apertium_survives_any_text():
    """Would catch a text that ends its batch, or that changes the one behind it."""
    texts = [*NICE, "word " * 20_000, "The house is red."]
    answers = Apertium(timeout=600).translate(texts, "en", "es")
    assert answers[-1] == "La casa es roja."
    assert all(len(answer) > len(text) / 2 for text, answer in zip(texts, answers, strict=True))


# --- Apertium-APy -----------------------------------------------------------------------------------------------

APY = """
from apertium_apy import apy
from tornado import httpserver, ioloop, netutil
server = httpserver.HTTPServer(apy.setup_application(apy.parse_args(["/usr/share/apertium/modes"])))
(socket,) = netutil.bind_sockets(0, "127.0.0.1")  # by itself it would listen on all interfaces
server.add_sockets([socket])
print(socket.getsockname()[1], flush=True)
ioloop.IOLoop.current().start()
"""


@pytest.fixture
def real_apy():
    if not (program := shutil.which("apertium-apy")):
        pytest.skip("apertium-apy is not installed")
    python = Path(program).read_text().splitlines()[0].removeprefix("#!").split()[-1]
    process = subprocess.Popen(
        [python, "-c", APY],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


@needs_apertium
def test_a_real_apy_server_translates(real_apy):
    """Would catch a protocol that only our own server speaks."""
    engine = Apy(real_apy, timeout=600)
    assert engine.translate(["The house is red.", "Two\nlines & <b>."], "en", "es") == [
        "La casa es roja.",
        "Dos\nlíneas & <b>.",
    ]
    with pytest.raises(ValueError, match="not installed"):
        engine.translate(["hola"], "es", "zz")
