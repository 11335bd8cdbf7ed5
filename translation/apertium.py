"""Apertium as a translation engine: rule-based, free, and on this machine, for a few languages around Spanish.

    texts -> a chain of programs for each hop of the route -> translations

Left out: pipelines that stay open (their taggers remember earlier texts, and an answer would depend on what was asked
before), and pivots other than Apertium's own. Apertium as a server is an engine over HTTP: `Apy` in engines.py.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from tools import TranslationError
from translation.engines import NOT_SENDABLE, Engine, TransientError, checked, sendable

# From English, to English. Mode names are not uniform, and of several ways this is the one that measured best.
ROUTES = {
    "an": "eng-spa spa-arg, arg-spa spa-eng",
    "ast": "eng-spa spa-ast,",
    "br": ", br-fr fr-es spa-eng",
    "ca": "eng-cat, cat-eng",
    "eo": "en-eo, eo-en",
    "es": "eng-spa, spa-eng",
    "eu": ", eu-en",
    "fr": "eng-spa es-fr, fra-cat cat-eng",
    "frp": "eng-spa es-fr fra-frp, frp-fra fr-es spa-eng",
    "gl": "en-gl, gl-en",
    "is": ", isl-eng",
    "it": "eng-spa spa-ita, ita-spa spa-eng",
    "mk": ", mkd-eng",
    "oc": "eng-spa es-oc, oc-es spa-eng",
    "pt": "eng-spa es-pt, pt-es spa-eng",
    "ro": ", ro-es spa-eng",
    "sc": "eng-cat cat-srd,",
}


class Apertium(Engine):
    """Apertium as local processes. A mode is a chain of programs; a batch of texts goes through it stage by stage.

    NUL keeps the texts apart, so a stage that dies or loses a text is noticed, which the `apertium` command hides. A
    stage is one process per batch, but for the tagger: it remembers earlier texts, so each text gets its own, and an
    answer depends on its text alone. `timeout` is for a batch and all its hops.
    """

    name, batch, least = "apertium", 50, 0.4

    def __init__(self, modes="/usr/share/apertium/modes", timeout: float = 120.0):
        self.modes, self.timeout = Path(modes), timeout
        if not self.modes.is_dir() or shutil.which("apertium") is None:
            raise ValueError("Apertium is not installed here (Debian: apt-get install apertium apertium-eng-spa)")
        program = _run(["apertium", "-V"], "", time.monotonic() + timeout).split()[-1]
        data = [(str(path), path.stat().st_size, path.stat().st_mtime) for path in self.modes.parent.glob("*/*")]
        self.version = f"{program}+{hashlib.sha256(str(sorted(data)).encode()).hexdigest()[:8]}"  # of all that it knows

    def route(self, source, target):
        there, back = ROUTES.get(source if target == "en" else target, ",").split(",")
        if "en" not in (source, target) or not (modes := tuple((back if target == "en" else there).split())):
            raise ValueError(f"apertium has no route from {source!r} to {target!r}, see translation/apertium.py")
        return modes

    def pairs(self):
        found = set()
        for code, ways in ROUTES.items():
            for pair, modes in zip((("en", code), (code, "en")), ways.split(","), strict=True):
                if modes.strip() and all((self.modes / f"{mode}.mode").is_file() for mode in modes.split()):
                    found.add(pair)
        return found

    def translate_marked(self, texts: list[str], source: str, target: str) -> list[str]:
        """Only the first hop, with the engine's marks: *unknown word, @untranslated, #not generated."""
        if not all(map(sendable, texts)):
            raise TranslationError(NOT_SENDABLE)
        return checked(texts, self._hop(texts, self.route(source, target)[0], "-g", time.monotonic() + self.timeout))

    def _answers(self, texts, source, target, route):
        end = time.monotonic() + self.timeout
        for mode in route:  # without marks: the next hop would take them for a part of the word
            texts = checked(texts, self._hop(texts, mode, "-n", end))
        return texts

    def _hop(self, texts: list[str], mode: str, unknown_words: str, end: float) -> list[str]:
        try:
            chain = (self.modes / f"{mode}.mode").read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ValueError(f"{self.modes}/{mode}.mode is missing: this language pair is not installed") from None
        texts = [_run(["apertium-destxt"], text, end) for text in texts]
        for stage in chain.replace("$1", unknown_words).replace("$2", "").split("|"):
            program, *arguments = shlex.split(stage)
            size = 1 if program == "apertium-tagger" else max(1, len(texts))
            parts = [texts[i : i + size] for i in range(0, len(texts), size)]
            texts = [text for part in parts for text in _stage([program, "-z", *arguments], part, end)]
        return [_run(["apertium-retxt"], text, end) for text in texts]


def _stage(command: list[str], texts: list[str], end: float) -> list[str]:
    """One program of a mode: with -z it answers at each NUL, and some answer the nothing behind the last one, too."""
    found = _run(command, "".join(text + "\0" for text in texts), end).split("\0")
    if len(found) <= len(texts) or not all(map(str.strip, found[: len(texts)])) or "".join(found[len(texts) :]).strip():
        raise TranslationError("the engine lost a text")
    return found[: len(texts)]


def _run(command: list[str], text: str, end: float) -> str:
    rest, utf8 = max(0.0, end - time.monotonic()), {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        return subprocess.run(
            command,
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=rest,
            env=utf8,
        ).stdout.decode()
    except subprocess.TimeoutExpired:
        raise TransientError("no answer in time") from None
    except (subprocess.CalledProcessError, OSError, UnicodeDecodeError):
        raise TranslationError("a stage of the engine failed") from None
