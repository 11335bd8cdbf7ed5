"""The embedded world: five domains of checkable tasks, rendered in any of its languages.

    Item (language-independent sentences, answer) --render--> Task

A miniature of the paper's setting in which everything is exact and everything follows from a seed. An `Item` is a few
sentences over *concepts* and an answer; any language can render it, so tiers are compared on the same items. Digits
and personal names are the same in all languages, so a reader who knows no word still gets some way in math and logic,
and nowhere in commonsense and instructions.
"""

import hashlib
import random
from dataclasses import dataclass

from data import Task
from tiny.languages import CONCEPTS, NOUNS, WORLD, Language, Sentence

DOMAINS = ("math", "reading", "logic", "commonsense", "instructions")
NAMES = (
    "Ana Ben Cleo Dan Eva Finn Gus Hana Ivan Joe Kim Leo Mia Nora Otto Pia Quin Rosa Sam Tess Uma Vera Will Zoe".split()
)

FACTS = {
    ("what-colour", "is"): "blood:red grass:green sky:blue snow:white coal:black lemon:yellow",
    ("where", "lives"): "fish:water camel:desert king:castle farmer:farm sailor:ship bird:nest",
    ("what", "gives"): "cow:milk bee:honey sheep:wool tree:wood cloud:rain candle:light",
    ("how-many-legs", "has"): "spider:8 ant:6 horse:4 bird:2 stool:3 snake:0",
}
FACTS = [(q, v, *pair.split(":")) for (q, v), pairs in FACTS.items() for pair in pairs.split()]


@dataclass(frozen=True)
class Item:
    """A task before it has a language."""

    domain: str
    level: str  # easy | hard
    sentences: tuple[Sentence, ...]
    answer: str

    @property
    def english(self) -> str:
        return WORLD["en"].write(self.sentences)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.english.encode()).hexdigest()[:12]

    @property
    def split(self) -> str:
        """train, validation or test, 8 : 1 : 1, by the item's own English text: the splits cannot overlap."""
        return (["train"] * 8 + ["validation", "test"])[int(self.digest, 16) % 10]


def _s(**roles) -> Sentence:
    return {role: tuple(words.split()) for role, words in roles.items() if words}


def _math(rng, hard):
    a = rng.choice(NAMES)
    thing = rng.choice(CONCEPTS["countable"])
    ask = _s(Q="how-many", O=thing, V="has", S=a)
    if hard and rng.random() < 0.5:
        boxes, each = rng.randint(2, 5), rng.randint(2, 9)
        return (
            _s(S=a, V="has", O=f"{boxes} boxes"),
            _s(S="each-box", V="holds", O=f"{each} {thing}"),
            ask,
        ), boxes * each
    total = rng.randint(1, 9)
    story = [_s(S=a, V="has", O=f"{total} {thing}")]
    for _ in range(2 if hard else 1):
        gain = total < 2 or rng.random() < 0.5
        change = rng.randint(1, 9 if gain else min(total, 9))
        total += change if gain else -change
        story.append(_s(S=a, V=rng.choice(CONCEPTS["gain" if gain else "loss"]), O=f"{change} {thing}"))
    return (*story, ask), total


def _reading(rng, hard):
    """Easy: two facts about one person. Hard: the same fact of two persons, so that the name decides."""
    people = rng.sample(NAMES, 2) if hard else [rng.choice(NAMES)] * 2
    kinds = [rng.choice(["object", "place"])] * 2 if hard else rng.sample(["object", "place"], 2)
    words = rng.sample(CONCEPTS[kinds[0]], 2) if hard else [rng.choice(CONCEPTS[kind]) for kind in kinds]
    verbs = {"object": "has", "place": "is-in"}
    facts = [_s(S=person, V=verbs[kind], O=word) for person, kind, word in zip(people, kinds, words, strict=True)]
    asked = rng.randrange(2)
    question, verb = {"object": ("what", "has"), "place": ("where", "is")}[kinds[asked]]
    return (*facts, _s(Q=question, V=verb, S=people[asked])), words[asked]


def _logic(rng, hard):
    """Easy: who of two is oldest or youngest, told who is older. Hard: of three, told in either direction."""
    order = rng.sample(NAMES, 3 if hard else 2)  # from most to least
    pair = rng.choice([0, 2, 4])
    facts = []
    for more, less in zip(order, order[1:], strict=False):
        flip = hard and rng.random() < 0.5
        verb = CONCEPTS["comparative"][pair + flip]
        facts.append(_s(S=less, V=verb, O=more) if flip else _s(S=more, V=verb, O=less))
    rng.shuffle(facts)
    least = rng.random() < 0.5
    ask = _s(Q="who", V="is", S=CONCEPTS["superlative"][pair + least])
    return (*facts, ask), order[-1 if least else 0]


def _commonsense(rng, hard):
    a, b = rng.sample(NAMES, 2)
    if hard:
        animals = CONCEPTS["animal"]
        pair = rng.sample(animals, 2)
        size = rng.choice(CONCEPTS["size"])
        ask = _s(Q="which", V="is", S=size)
        answer = (max if size == "bigger" else min)(pair, key=animals.index)
        return (_s(S=a, V="shows", O=f"{b} {pair[0]} {pair[1]}"), ask), answer
    question, verb, subject, answer = rng.choice(FACTS)
    return (_s(S=a, V="shows", O=f"{b} {subject}"), _s(Q=question, V=verb, S=subject)), answer


def _instructions(rng, hard):
    a = rng.choice(NAMES)
    words = rng.sample(NOUNS, 3)
    kind = rng.choice(["reverse", "last", "three"] if hard else ["one", "two", "repeat", "opposite"])
    if kind == "opposite":
        adjectives = CONCEPTS["adjective"]
        i = rng.randrange(len(adjectives))
        return (_s(S=a, V="must-say-the-opposite-of", O=adjectives[i]),), adjectives[i ^ 1]
    count = {"one": 1, "repeat": 1, "two": 2, "reverse": 2, "three": 3, "last": 3}[kind]
    verb = {"repeat": "must-repeat", "reverse": "must-reverse", "last": "must-say-the-last-of"}.get(kind, "must-say")
    words = words[:count]
    answer = {"repeat": words * 2, "reverse": words[::-1], "last": words[-1:]}.get(kind, words)
    return (_s(S=a, V=verb, O=" ".join(words)),), " ".join(answer)


_MAKE = {
    "math": _math,
    "reading": _reading,
    "logic": _logic,
    "commonsense": _commonsense,
    "instructions": _instructions,
}


def items(split: str, count: int, seed, domains: tuple[str, ...] = DOMAINS) -> list[Item]:
    """`count` different items of train, validation or test; the domains take turns, two in five items are hard.
    Each domain has a random stream of its own, so a new one leaves the items of the others as they are.

    Raises ValueError if the split has not that many of some kind: a few thousand are always there.
    """
    streams = {domain: random.Random(f"items {split} {seed} {domain}") for domain in domains}
    found = {}
    while len(found) < count:
        domain = domains[len(found) % len(domains)]
        rng = streams[domain]
        hard = rng.random() < 0.4
        for _ in range(2000):
            sentences, answer = _MAKE[domain](rng, hard)
            item = Item(domain, "hard" if hard else "easy", sentences, str(answer))
            if item.split == split and item.digest not in found:
                break
        else:
            raise ValueError(f"{split} has fewer than {count} different items: no further one in {domain}")
        found[item.digest] = item
    return list(found.values())


def render(item: Item, code: str | Language) -> Task:
    """The item as a `Task` in a language of the world, or in any `Language`."""
    language = WORLD[code] if isinstance(code, str) else code
    code = language.code
    return Task(
        id=f"{code}/{item.domain}-{item.level}-{item.digest}",
        language=code,
        tier=language.tier,
        split=language.split,
        domain=item.domain,
        question=language.write(item.sentences),
        choices=(),
        answer=item.answer,
        question_en=item.english,
    )


def tasks(split: str, codes: list[str], count: int, seed) -> list[Task]:
    """`count` tasks over these languages: the languages take turns after each round of domains, so that every
    language meets every domain, and the items are the same for any list of languages."""
    return render_all(items(split, count, seed), codes)


def render_all(items: list[Item], codes: list[str]) -> list[Task]:
    """The items in these languages, which take turns after as many items as there are domains."""
    return [render(item, codes[i // len(DOMAINS) % len(codes)]) for i, item in enumerate(items)]
