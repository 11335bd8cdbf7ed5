"""What a text of the embedded world really says: its answer, worked out from its sentences alone.

    text --Language.read--> sentences -> answer -> "12" | "kitchen" | "Ana" | None

Nothing here looks at how an item was made, so the answer can be recomputed from any text: a translation that changed it
is found out. What contradicts itself, does not parse, or leaves open what is asked has no answer.

Left out: guessing. A reader with good will gets some damaged texts right that count as unanswerable here.
"""

from tiny.languages import CATEGORY, CONCEPTS, WORLD, Sentence
from tiny.world import FACTS


def answer(text: str, code: str = "en") -> str | None:
    """The answer of a text in a language of the world, or None if it has none."""
    *facts, last = WORLD[code].read(text) or [{}]
    question, verb, subject = (_word(last, role) for role in "QVS")
    if question is None:
        return _instruction(last) if not facts else None
    if (question, verb) == ("how-many", "has"):
        return _count(facts, subject, _word(last, "O"))
    if last.get("O") or subject is None:
        return None
    if (question, verb) in (("what", "has"), ("where", "is")):
        return _look_up(facts, subject, "has" if verb == "has" else "is-in")
    if (question, verb) == ("who", "is"):
        return _extreme(facts, subject)
    if (question, verb) == ("which", "is"):
        return _by_size(facts, subject)
    found = {object for q, v, s, object in FACTS if (q, v, s) == (question, verb, subject)}
    return found.pop() if found else None


def _word(sentence: Sentence, role: str) -> str | None:
    """The one word of a role; None if there is none, or more."""
    words = sentence.get(role, ())
    return words[0] if len(words) == 1 else None


def _count(facts: list[Sentence], person: str | None, thing: str | None) -> str | None:
    """How many of a thing a person has in the end. Other persons and other things do not matter."""
    held, boxes, each = None, None, None
    for fact in facts:
        subject, verb, (number, what) = _word(fact, "S"), _word(fact, "V"), _amount(fact)
        if number is None:
            continue
        if (subject, verb, what) == ("each-box", "holds", thing):
            each = number
        elif (subject, verb, what) == (person, "has", "boxes"):
            boxes = number
        elif (subject, verb, what) == (person, "has", thing):
            held = number
        elif (subject, what) == (person, thing) and CATEGORY.get(verb) in ("gain", "loss"):
            if held is None:
                return None
            held += number if CATEGORY[verb] == "gain" else -number
            if held < 0:
                return None
    if boxes is not None and each is not None:
        return str((held or 0) + boxes * each)
    return None if held is None else str(held)


def _amount(fact: Sentence) -> tuple[int | None, str | None]:
    """("3", "coins") as (3, "coins")."""
    words = fact.get("O", ())
    return (int(words[0]), words[1]) if len(words) == 2 and words[0].isdecimal() else (None, None)


def _look_up(facts: list[Sentence], person: str, verb: str) -> str | None:
    """What a person has, or is in; the kind of word must fit."""
    kind = "object" if verb == "has" else "place"
    found = {_word(fact, "O") for fact in facts if (_word(fact, "S"), _word(fact, "V")) == (person, verb)}
    return found.pop() if len(found) == 1 and CATEGORY.get(next(iter(found))) == kind else None


def _extreme(facts: list[Sentence], superlative: str) -> str | None:
    """Who comes before everybody else that is named, as far as the comparisons of that kind say."""
    if CATEGORY.get(superlative) != "superlative":
        return None
    place = CONCEPTS["superlative"].index(superlative)
    more, less = CONCEPTS["comparative"][place], CONCEPTS["comparative"][place ^ 1]
    people = {person for fact in facts for person in (_word(fact, "S"), _word(fact, "O"))} - {None}
    beats = {(_word(fact, "S"), _word(fact, "O")) for fact in facts if _word(fact, "V") == more}
    beats |= {(_word(fact, "O"), _word(fact, "S")) for fact in facts if _word(fact, "V") == less}
    for _ in people:  # transitive closure: as many rounds as there are people are enough
        beats |= {(a, d) for a, b in beats for c, d in beats if b == c}
    if any((b, a) in beats for a, b in beats):
        return None
    first = [person for person in people if all((person, other) in beats for other in people - {person})]
    return first[0] if len(first) == 1 and len(people) > 1 else None


def _by_size(facts: list[Sentence], size: str) -> str | None:
    """The bigger or smaller of the two animals that are named."""
    animals = [word for fact in facts for word in fact.get("O", ()) if CATEGORY.get(word) == "animal"]
    if CATEGORY.get(size) != "size" or len(set(animals)) != 2:
        return None
    return (max if size == "bigger" else min)(animals, key=CONCEPTS["animal"].index)


def _instruction(sentence: Sentence) -> str | None:
    """What must be said."""
    verb, words = _word(sentence, "V"), list(sentence.get("O", ()))
    if verb == "must-say-the-opposite-of":
        adjectives = CONCEPTS["adjective"]
        return adjectives[adjectives.index(words[0]) ^ 1] if len(words) == 1 and words[0] in adjectives else None
    said = {
        "must-say": words,
        "must-repeat": words * 2,
        "must-reverse": words[::-1],
        "must-say-the-last-of": words[-1:],
    }.get(verb)
    return " ".join(said) if said else None
