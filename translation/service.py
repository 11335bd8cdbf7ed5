"""A translator for a run: any engine behind a cache, with retries, limits, a budget and meters.

    open_engine("apertium") -> Service(engine, "cache.sqlite", retries=4, …) -> translate

`Service` is a translator (`tools.Translator`) as its engine is, and may stand around any. It
answers from the cache, waits for an answer that is already on its way, tries again what failed in passing, and stops
when the money is spent. A text has one answer, whoever asks first and whenever.

Left out: threads (callers bring their own), and a budget that outlives the process.
"""

import contextlib
import math
import random
import re
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, wait

from harness.escape import in_line
from harness.options import Options
from tiny.languages import WORLD, LexiconTranslator
from tools import TranslationError, Translator
from translation.apertium import Apertium
from translation.cache import Cache, Key, fail
from translation.engines import (
    NOT_SENDABLE,
    Apy,
    BudgetSpent,
    ChatEngine,
    Engine,
    LanguageMissing,
    Libre,
    Recorded,
    TransientError,
    checked,
    sendable,
)


def open_engine(spec: str) -> Engine:
    """The engine that a command line names. ValueError for none, saying what is allowed.

    `recorded:FILE?source=lang&text=question` maps fields, and `&texts=OTHER` names where the texts stand.
    """
    kind, _, rest = spec.partition(":")
    name, _, scheme = kind.partition("+")
    if spec == "apertium":
        return Apertium()
    if kind == "recorded":
        path, _, query = rest.partition("?")
        fields = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
        return Recorded(path, texts=fields.pop("texts", None), fields=fields)
    classes = {"libre": Libre, "apy": Apy, "chat": ChatEngine}
    if name not in classes or scheme not in ("http", "https"):
        raise ValueError(
            f"there is no translator {shown(spec)!r}, allowed: apertium, recorded:FILE, libre+http(s)://HOST, "
            "apy+http(s)://HOST, chat+http(s)://HOST/v1?model=NAME"
        )
    engine = classes[name](f"{scheme}:{rest}")
    if engine.options:
        raise ValueError("an option behind the ? is unknown; there is version, and for chat model, extra, languages")
    return engine


def shown(spec: str) -> str:
    """What may be printed of it: not the address and its options, where keys are put by mistake."""
    return re.sub(r"(//|\?).*", r"\1…", spec, flags=re.DOTALL)


class Service:
    """A translator around an engine: cached, tried again, limited and metered. Any number of threads may share one.

    `cache` is a file, or ":memory:". What fails in passing is asked again up to `retries` times, after `backoff`
    seconds that double and vary, or as many as the server asks for, unless requests and waits might then take more
    than `deadline` seconds. `concurrency` requests run at a time. `price` is money per character (1 counts
    characters), `max_cost` what may be spent.
    """

    def __init__(
        self,
        engine: Translator,
        cache=":memory:",
        *,
        deadline: float = 300.0,
        retries: int = 4,
        backoff: float = 0.5,
        concurrency: int = 8,
        price: float = 0.0,
        max_cost: float | None = None,
    ):
        self.engine, self.name, self.version = engine, engine.name, getattr(engine, "version", None)
        if self.version is None and str(cache) != ":memory:":
            raise ValueError(f"the engine {self.name} has no version to keep its answers under")
        if max_cost is not None and price <= 0:
            raise ValueError("a maximal cost needs a price per character (1: the cost is in characters)")
        self._deadline, self._retries, self._backoff, self._price = deadline, retries, backoff, price
        self._allowance = math.inf if max_cost is None else math.floor(max_cost / price + 1e-6)  # in characters
        self._cache, self._slots = Cache(cache), threading.Semaphore(concurrency)
        self._lock, self._in_flight, self._charged = threading.Lock(), {}, 0
        self._jitter = random.Random()  # its own: the run's generators do not depend on a server's mood
        self._meters = dict.fromkeys(("texts", "hits", "requests", "characters", "failures", "seconds"), 0)

    @property
    def meters(self) -> dict[str, float]:
        """Texts asked for, hits among them (that needed no request of their own), failures (texts left without a
        translation), requests, the characters and seconds in these, and the money spent on answers."""
        with self._lock:
            return {**self._meters, "spent": self._price * self._charged}

    def route(self, source: str, target: str) -> tuple[str, ...]:
        """The engine's route, or one hop for an engine that has no routes."""
        return getattr(self.engine, "route", lambda *pair: ("-".join(pair),))(source, target)

    def translate(self, texts: list[str], source: str, target: str = "en") -> list[str]:
        """As in `tools.Translator`. Raises the first failure, once the other texts are answered and cached."""
        answers = self.attempt(texts, source, target)
        for failure in (answer for answer in answers if isinstance(answer, TranslationError)):
            raise failure
        return answers

    def attempt(self, texts: list[str], source: str, target: str = "en", marked: bool = False) -> list:
        """For each text its translation, or the TranslationError in its place; `marked`: by `translate_marked`.

        Raises BudgetSpent, before more than the budget is spent, CacheFailed, and LanguageMissing for a language that
        is not there.
        """
        translate = self.engine.translate_marked if marked else self.engine.translate

        def ask(texts: list[str]) -> list[str]:
            with _language_of(self.engine):
                return translate(texts, source, target)

        with _language_of(self.engine):
            route = " ".join((*self.route(source, target), *["marked"] * marked))
        keys = [(self.name, self.version or "", route, text) for text in texts]
        with self._lock:
            mine = [key for key in dict.fromkeys(keys) if key not in self._in_flight]
            self._in_flight |= {key: Future() for key in mine}
            promises = {key: self._in_flight[key] for key in keys}
        owed = {key: promises[key] for key in mine}  # what is neither answered nor on its way to the disk
        try:
            for key in mine:  # looked up once claimed: a former owner stores before it gives up its claim
                known = self._cache.get(key) if sendable(key[3]) else TranslationError(NOT_SENDABLE)
                if known is not None:
                    owed.pop(key).set_result(known)
            missing = list(owed)
            self._count(texts=len(texts), hits=len(texts) - len(missing))
            size = getattr(self.engine, "batch", 1)
            for chunk in (missing[i : i + size] for i in range(0, len(missing), size)):
                if self._cache.failure:  # before more is paid for and lost
                    raise self._cache.failure
                self._answer(chunk, lambda some: checked(some, ask(some)), owed)
        except BaseException as error:
            for promise in owed.values():  # others may be waiting for it
                fail(promise, error)
            raise
        finally:
            wait([promises[key] for key in mine])
            with self._lock:
                for key in mine:
                    del self._in_flight[key]
        results = [promises[key].result() for key in keys]
        self._count(failures=sum(isinstance(result, TranslationError) for result in results))
        return results

    def _answer(self, keys: list[Key], ask, owed: dict[Key, Future]) -> None:
        """Ask for one batch: its texts are owed no longer. If it fails as a whole, they go one by one. The next batch
        is asked for while this one is written."""
        try:
            answers = self._insist([text for *_, text in keys], ask)
        except TranslationError as error:
            if len(keys) == 1:
                owed.pop(keys[0]).set_result(error)
            else:
                for key in keys:
                    self._answer([key], ask, owed)
            return
        self._cache.keep(dict(zip(keys, answers, strict=True)), owed)
        for key in keys:
            del owed[key]

    def _insist(self, texts: list[str], ask) -> list[str]:
        """Ask, and ask again while the failure is a passing one and there is time."""
        characters, used, tries = sum(map(len, texts)), 0.0, 0
        while True:
            with self._slots:
                self._charge(characters)
                start = time.monotonic()
                try:
                    return ask(texts)
                except TransientError as failure:
                    self._charge(-characters)  # not answered, so not paid
                    wait = max(failure.wait, self._backoff * 2**tries * self._jitter.uniform(0.5, 1.0))
                    used, tries = used + time.monotonic() - start + wait, tries + 1
                    late = used + getattr(self.engine, "timeout", 0.0) > self._deadline
                    if late or tries > self._retries or len(texts) > 1:
                        raise
                finally:
                    self._count(requests=1, characters=characters, seconds=time.monotonic() - start)
            time.sleep(wait)

    def _charge(self, characters: int) -> None:
        with self._lock:
            if characters > 0 and self._charged + characters > self._allowance:
                cost = f"{self.name} cost {self._price * self._charged:g}"
                raise BudgetSpent(f"{cost}, and the next text is beyond the limit (--max-cost)")
            self._charged += characters

    def _count(self, **more: float) -> None:
        with self._lock:
            for name, value in more.items():
                self._meters[name] += value


@contextlib.contextmanager
def _language_of(engine: Translator):
    """An engine's ValueError, which is about a language, as what ends the run."""
    try:
        yield
    except ValueError as error:
        raise LanguageMissing(in_line(f"{engine.name}: {error}")) from None


def open_translator(options: Options, languages: Iterable[str] = ()) -> Translator:
    """The engine that `--translator` names; all but the lexicon behind a cache, retries and a budget.

    ValueError if there is none of that name, or if it is known not to translate one of the languages into English.
    """
    if options.translator == "lexicon":
        require_languages(options, languages, {(code, "en") for code in WORLD})
        return LexiconTranslator(options.noise)
    try:
        engine = open_engine(options.translator)
    except ValueError as error:
        raise ValueError(f"--translator {shown(options.translator)}: {error}, or lexicon") from None
    if languages := set(languages):
        require_languages(options, languages, engine.pairs())
    return Service(
        engine,
        options.cache or ":memory:",
        concurrency=max(1, options.workers),
        price=options.money_per_char,
        max_cost=options.max_cost or None,
    )


def require_languages(options: Options, languages: Iterable[str], pairs: set[tuple[str, str]] | None) -> None:
    """ValueError naming the languages that are in no pair with English, and the remedy. Without pairs nothing is known:
    a line says that a missing language would be found out about at its first call."""
    name, data = shown(options.translator), options.data
    if pairs is None:
        print(f"--translator {name} has no list of languages: one that it lacks would end the run at its first call")
        return
    known = {source for source, target in pairs if target == "en"}
    if lacking := sorted(set(languages) - known):
        there = "those of the embedded world (tiny/)" if name == "lexicon" else _some(sorted(known)) or "none"
        raise ValueError(
            f"--translator {name} does not translate {_some(lacking)} into English, which --data {data} needs; it has "
            f"{there}: name another --translator, such as apertium, recorded:FILE or a server, or leave them out"
        )


def _some(codes: list[str]) -> str:
    """The first of the codes, for a line."""
    return ", ".join(codes[:12]) + ", …" * (len(codes) > 12)
