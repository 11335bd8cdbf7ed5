"""33 constructed languages with lexicons and word orders, and a translator between any two of them.

    sentences --Language.write--> text --Language.read--> sentences --Language.write--> English

Everything follows from a language's code. Digits and personal names are the same in all languages, as in real life.

Left out: morphology, agreement, ambiguity. A word means one thing, and a sentence is question word, subject, verb and
object, in an order that the language chooses.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import permutations

# A concept is its English phrase, hyphenated: "is-older-than" is one word in most languages, three in English.
CONCEPTS = {
    "countable": "coins eggs apples books stones cups keys balls",
    "object": "lamp rope drum map hat ring knife spoon",
    "place": "kitchen garden forest market school tower cave harbour",
    "animal": "ant mouse frog cat dog sheep cow horse camel whale",  # from small to big
    "thing": "blood grass sky snow coal lemon fish king farmer sailor bee tree cloud candle spider snake bird stool",
    "adjective": "hot cold big small wet dry rich poor hard soft full empty",  # pairs of opposites
    "gain": "finds buys gets",
    "loss": "loses sells drops",
    "comparative": "is-older-than is-younger-than is-taller-than is-shorter-than is-faster-than is-slower-than",
    "superlative": "oldest youngest tallest shortest fastest slowest",
    "size": "bigger smaller",
    "verb": "has holds is is-in lives gives shows sees must-say must-repeat must-reverse must-say-the-last-of "
    "must-say-the-opposite-of",
    "question": "how-many what where who which what-colour how-many-legs",
    "container": "each-box boxes",
}


CONCEPTS = {category: words.split() for category, words in CONCEPTS.items()}


CATEGORY = {concept: category for category, concepts in CONCEPTS.items() for concept in concepts}


VERBS = {c for category in ("gain", "loss", "comparative", "verb") for c in CONCEPTS[category]}


NOUNS = [c for category in ("countable", "object", "place", "animal", "thing") for c in CONCEPTS[category]]


TIERS = ("high", "low", "xlow", "synthetic")


Sentence = dict[str, tuple[str, ...]]  # role (Q question word, S subject, V verb, O object) -> concepts


@dataclass(frozen=True)
class Language:
    """A lexicon, a word order and a script. `exposure` is its share of the base model's pretraining, relative."""

    code: str
    tier: str
    split: str
    exposure: float
    statement: str  # the order of S, V and O: "SOV"
    question: str  # the same with Q: "QSOV"
    modifiers_last: bool  # "coins 3" for "3 coins"
    lexicon: dict[str, str]  # concept -> word

    def write(self, sentences: list[Sentence]) -> str:
        """The sentences as text: words separated by blanks, each sentence closed by "." or "?"."""
        return " ".join(self._write(sentence) for sentence in sentences)

    def _write(self, sentence: Sentence) -> str:
        order = self.question if "Q" in sentence else self.statement
        concepts = []
        for role in order:
            phrase = sentence.get(role, ())
            concepts += _swap_number(phrase, 0) if self.modifiers_last else phrase
        words = (self.lexicon.get(concept, concept) for concept in concepts)
        return " ".join(words) + ("?" if "Q" in sentence else ".")

    def read(self, text: str) -> list[Sentence]:
        """The sentences of a text: the inverse of `write`. What does not parse is read as one object, word by word."""
        marked = text.replace(".", " .").replace("?", " ?").split()
        sentences, words = [], []
        for word in [*marked, "."]:
            if word not in (".", "?"):
                words.append(word)
            elif words:
                sentences.append(self._read(words))
                words = []
        return sentences

    def _read(self, words: list[str]) -> Sentence:
        concepts, i = [], 0
        while i < len(words):  # longest match first: an English concept may be several words
            for length in (5, 4, 3, 2, 1):
                concept = self._concept_of.get(" ".join(words[i : i + length]))
                if concept or length == 1:
                    concepts.append(concept or words[i])
                    i += length
                    break
        verbs = [i for i, concept in enumerate(concepts) if concept in VERBS]
        questions = tuple(concept for concept in concepts if CATEGORY.get(concept) == "question")
        if len(verbs) != 1 or len(questions) > 1:
            return {"O": tuple(concepts)}
        order = self.question if questions else self.statement
        sentence = {"V": (concepts[verbs[0]],)} | ({"Q": questions} if questions else {})
        before, after = order.split("V")
        for roles, side in ((before, concepts[: verbs[0]]), (after, concepts[verbs[0] + 1 :])):
            roles, side = roles.replace("Q", ""), [c for c in side if c not in questions]
            if roles in ("SO", "OS") and side:  # a subject is one word: it marks where the object begins or ends
                subject, rest = (side[:1], side[1:]) if roles == "SO" else (side[-1:], side[:-1])
                sentence |= {"S": tuple(subject), "O": tuple(rest)}
            elif side:
                sentence[roles or "O"] = sentence.get(roles or "O", ()) + tuple(side)
        if self.modifiers_last and "O" in sentence:
            sentence["O"] = _swap_number(sentence["O"], 1)
        return sentence

    @property
    def _concept_of(self) -> dict[str, str]:
        return _inverse(self.code)


@cache
def _inverse(code: str) -> dict[str, str]:
    return {word: concept for concept, word in WORLD[code].lexicon.items()}


def _swap_number(phrase: tuple, place: int) -> tuple:
    """("3", "coins") <-> ("coins", "3"), if there is a number at `place`: 0 to write, 1 to read."""
    return tuple(reversed(phrase)) if len(phrase) == 2 and phrase[place].isdigit() else phrase


SCRIPTS = {  # latin consonants and vowels -> the letters of another script
    "cyrillic": str.maketrans("bdfghjklmnprstvzaeiouy", "бдфгхйклмнпрствзаеиоуы"),
    "greek": str.maketrans("bdfghjklmnprstvzaeiouy", "βδφγχξκλμνπρστψζαεηοωυ"),
    "georgian": str.maketrans("bdfghjklmnprstvzaeiouy", "ბდფგჰჯკლმნპრსტვზაეიოუყ"),
    "armenian": str.maketrans("bdfghjklmnprstvzaeiouy", "բդֆգհյկլմնպրստվզաեիոուը"[:22]),
}


def _make_language(code: str, tier: str, split: str, exposure: float, script: str | None) -> Language:
    """A language from its code alone: sounds, syllable shape, a word for each concept, an order.

    Each part has a random stream of its own. So a new concept leaves every order and all other words as they are, but
    for those that come later in `CONCEPTS` and would have been the same as its own.
    """

    def stream(part: str) -> random.Random:
        return random.Random(f"language {code} {part}")

    rng = stream("sounds")
    consonants, vowels = rng.sample("bdfghjklmnprstvz", 9), rng.sample("aeiouy", rng.choice([3, 4, 5]))
    coda = rng.choice(["", "", *consonants[:2]])  # some languages close their syllables

    def words(rng: random.Random) -> Iterator[str]:
        while True:
            syllables = rng.choices([1, 2, 3], [1, 6, 2])[0]
            word = "".join(
                rng.choice(consonants) + rng.choice(vowels) + (coda if rng.random() < 0.4 else "")
                for _ in range(syllables)
            )
            yield word + (rng.choice(consonants) if syllables == 1 else "")

    taken = {word for phrase in CATEGORY for word in phrase.split("-")}
    lexicon = {}
    for concept in CATEGORY:
        word = next(word for word in words(stream(concept)) if word not in taken)
        taken.add(word)
        lexicon[concept] = word.translate(SCRIPTS[script]) if script else word
    rng = stream("order")
    statement = "".join(rng.choice(list(permutations("SVO"))))
    question = rng.choice(["Q" + statement, statement + "Q"])
    return Language(code, tier, split, exposure, statement, question, rng.random() < 0.5, lexicon)


def _make_world() -> dict[str, Language]:
    english = {concept: concept.replace("-", " ") for concept in CATEGORY}
    world = {"en": Language("en", "base", "base", 1.0, "SVO", "QOVS", False, english)}
    scripts = {
        "high-04": "cyrillic",
        "high-09": "greek",
        "low-02": "greek",
        "low-07": "georgian",
        "xlow-03": "cyrillic",
        "xlow-06": "armenian",
        "synthetic-02": "georgian",
    }
    for tier, count, held_out in (("high", 11, (3, 7, 11)), ("low", 10, (3, 6, 9)), ("xlow", 10, (3, 6, 9))):
        for i in range(1, count + 1):
            exposure = 1.5 - (i - 1) / (count - 1)  # tiers are ranges: 1.5 down to 0.5 of the tier's mean
            code, split = f"{tier}-{i:02d}", "held-out" if i in held_out else "trained"
            world[code] = _make_language(code, tier, split, exposure, scripts.get(code))
    for code in ("synthetic-01", "synthetic-02"):  # in no training at all
        world[code] = _make_language(code, "synthetic", "synthetic", 0.0, scripts.get(code))
    return world


WORLD = _make_world()


def languages(tier: str | None = None, split: str | None = None) -> list[str]:
    """Codes of the constructed languages of a tier and a split; None: of any. English is not among them."""
    return [
        code
        for code, language in WORLD.items()
        if code != "en" and tier in (None, language.tier) and split in (None, language.split)
    ]


def stray_languages(count: int) -> list[Language]:
    """Languages outside the world, for pretraining text that the base model is not meant to understand."""
    return [_make_language(f"stray-{i:03d}", "stray", "stray", 1.0, None) for i in range(count)]


class LexiconTranslator:
    """A translator (`tools.Translator`) between any two languages of the world, by its lexicon and word order.

    `noise` is the share of words that come out as another word of the same kind: one number for all languages, or one
    for each tier. Of two languages the harder one counts. Which words go wrong follows from the text alone, so the same
    text always has the same translation, as a cache would have it.
    """

    name = "lexicon"

    def __init__(self, noise: float | Mapping[str, float] = 0.0):
        self._noise = dict(noise) if isinstance(noise, Mapping) else dict.fromkeys(TIERS, noise)
        if set(self._noise) != set(TIERS) or not all(0 <= share <= 1 for share in self._noise.values()):
            raise ValueError(
                f"tool noise is a share of words, between 0 and 1, for each of {', '.join(TIERS)}: {noise}"
            )

    def translate(self, texts: list[str], source: str, target: str = "en") -> list[str]:
        """Translations in order. ValueError for a language that this world does not have."""
        for code in (source, target):
            if code not in WORLD:
                raise ValueError(f"the lexicon has no language {code!r}")
        return [self._translate(text, source, target) for text in texts]

    def _translate(self, text: str, source: str, target: str) -> str:
        sentences = WORLD[source].read(text)
        noise = max(self._noise.get(WORLD[code].tier, 0.0) for code in (source, target))  # English itself has none
        if noise:
            rng = random.Random(f"noise {noise} {source} {target} {text}")
            sentences = [
                {role: tuple(_disturb(concept, noise, rng) for concept in phrase) for role, phrase in sentence.items()}
                for sentence in sentences
            ]
        return WORLD[target].write(sentences)


def _disturb(concept: str, noise: float, rng: random.Random) -> str:
    """The concept or, with probability `noise`, another one of its kind."""
    category = CONCEPTS.get(CATEGORY.get(concept), [])
    if rng.random() >= noise or len(category) < 2:
        return concept
    return rng.choice([other for other in category if other != concept])
