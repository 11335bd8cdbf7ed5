"""The embedded world: its languages, its items and its lexicon translator keep what design and docstrings promise."""

import random
import re
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paper.pretrain import document
from tiny import languages as tiny_languages
from tiny import world
from tiny.languages import CATEGORY, WORLD, LexiconTranslator, languages
from tiny.world import items, render, tasks

FOREIGN = [code for code in WORLD if code != "en"]
ITEMS = items("train", 200, "tests")


# --- languages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tier, trained, held_out, synthetic",
    [("high", 8, 3, 0), ("low", 7, 3, 0), ("xlow", 7, 3, 0), ("synthetic", 0, 0, 2)],
)
def test_the_languages_are_those_of_the_design(tier, trained, held_out, synthetic):
    """Catches a language that slips from held-out into training."""
    counts = [len(languages(tier, split)) for split in ("trained", "held-out", "synthetic")]
    assert counts == [trained, held_out, synthetic]


def test_there_are_33_languages_beside_english():
    """Catches English among the languages that policies are trained and measured on."""
    assert languages() == FOREIGN and len(FOREIGN) == 33


def test_synthetic_languages_have_no_exposure_and_all_others_have_some():
    """Catches a synthetic language in the pretraining text."""
    assert {code for code in FOREIGN if WORLD[code].exposure == 0} == set(languages("synthetic"))


@pytest.mark.parametrize("code", WORLD)
def test_reading_is_the_inverse_of_writing(code):
    """Catches an order, a multi-word concept or a modifier that gets lost: the translator would not be exact."""
    for item in ITEMS[:60]:
        text = WORLD[code].write(item.sentences)
        read = [{role: words for role, words in sentence.items() if words} for sentence in WORLD[code].read(text)]
        assert read == list(item.sentences), text


@pytest.mark.parametrize("code", WORLD)
def test_a_language_has_one_word_for_each_concept(code):
    """Catches homonyms: a translation would be ambiguous."""
    lexicon = WORLD[code].lexicon
    assert set(lexicon) == set(CATEGORY)
    assert len(set(lexicon.values())) == len(lexicon)


@pytest.mark.parametrize("code", FOREIGN)
def test_no_language_copies_english(code):
    """Catches words that a reader of English understands for nothing."""
    english = {word for phrase in WORLD["en"].lexicon.values() for word in phrase.split()}
    assert not english & set(WORLD[code].lexicon.values())
    assert all(render(item, code).question != item.english for item in ITEMS)


def test_languages_differ_in_nearly_all_words():
    """Catches two languages made from one seed: a held-out one would be known."""
    for i, one in enumerate(FOREIGN):
        for other in FOREIGN[i + 1 :]:
            a, b = WORLD[one].lexicon, WORLD[other].lexicon
            assert sum(a[concept] == b[concept] for concept in a) <= 0.05 * len(a), (one, other)


def test_several_scripts_are_in_use_and_a_language_keeps_to_its_own():
    """Catches a letter that a script's table leaves in Latin."""
    scripts = {}
    for code in FOREIGN:
        letters = set("".join(WORLD[code].lexicon.values()))
        scripts[code] = {unicodedata.name(letter).split()[0] for letter in letters}
        assert len(scripts[code]) == 1, code
    assert len(set().union(*scripts.values()) - {"LATIN"}) >= 2


def test_word_orders_vary():
    """Catches a generator that always draws the same order; each tier has more than one."""
    assert len({WORLD[code].statement for code in FOREIGN}) >= 4
    assert {WORLD[code].question.index("Q") == 0 for code in FOREIGN} == {True, False}
    assert {WORLD[code].modifiers_last for code in FOREIGN} == {True, False}
    for tier in ("high", "low", "xlow"):
        assert len({WORLD[code].statement for code in languages(tier)}) >= 2


@pytest.mark.parametrize("code, script", [("low-01", None), ("xlow-03", "cyrillic")])
def test_a_new_concept_changes_no_other_word_and_no_order(monkeypatch, code, script):
    """Catches one random stream for a whole language: a fork that adds a word would speak another one."""
    before = WORLD[code]
    monkeypatch.setitem(tiny_languages.CATEGORY, "rides-on", "verb")
    after = tiny_languages._make_language(code, before.tier, before.split, before.exposure, script)
    assert after.lexicon.pop("rides-on") not in before.lexicon.values()
    assert after == before


def test_a_new_domain_changes_no_item_of_the_others(monkeypatch):
    """Catches one random stream for all domains: a fork that adds one would train and test on other items."""
    monkeypatch.setitem(world._MAKE, "echo", world._instructions)
    found = items("train", 120, "tests", (*world.DOMAINS, "echo"))
    assert [item for item in found if item.domain != "echo"] == ITEMS[:100]


def test_digits_and_names_are_the_same_in_all_languages():
    """Catches names and numbers that are translated: no domain could be solved without the tool."""
    for item in ITEMS[:20]:
        kept = Counter(re.findall(r"\d+|\b[A-Z][a-z]+\b", item.english))
        for code in FOREIGN:
            assert Counter(re.findall(r"\d+|\b[A-Z][a-z]+\b", render(item, code).question)) == kept


# --- items ------------------------------------------------------------------------------------------------------


def test_the_split_of_an_item_follows_from_its_english_text_alone():
    """Catches a split that depends on the draw, under which training could see a test item."""
    drawn = {split: items(split, 1000, seed) for seed, split in enumerate(("train", "validation", "test"))}
    for split, found in drawn.items():
        assert {item.split for item in found} == {split}
    texts = {split: {item.english for item in found} for split, found in drawn.items()}
    assert not texts["train"] & texts["validation"] and not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]
    by_text = {item.english: item.split for found in drawn.values() for item in found}
    assert all(
        world.Item("other", "hard", item.sentences, "?").split == by_text[item.english]
        for found in drawn.values()
        for item in found
    )


def test_items_are_different_and_domains_take_turns():
    """Catches repeated items, which would make intervals too narrow, and a domain that is missing."""
    assert len({item.english for item in ITEMS}) == len(ITEMS)
    assert [item.domain for item in ITEMS] == list(world.DOMAINS) * (len(ITEMS) // 5)
    assert {(item.domain, item.level) for item in ITEMS} == {(d, lv) for d in world.DOMAINS for lv in ("easy", "hard")}


def test_the_same_seed_gives_the_same_items_and_another_seed_others():
    """Catches items that depend on hash randomisation or on an earlier call."""
    assert items("train", 200, "tests") == ITEMS
    assert len({item.english for item in items("train", 200, "other")} - {item.english for item in ITEMS}) > 100


def test_any_list_of_languages_gets_the_same_items():
    """Catches tiers that are compared on different items."""
    low, high = tasks("test", languages("low"), 40, "x"), tasks("test", ["high-01"], 40, "x")
    assert [task.question_en for task in low] == [task.question_en for task in high]
    assert [task.answer for task in low] == [task.answer for task in high]
    assert len({task.language for task in low}) == 8 and len({task.id for task in low}) == 40


def test_every_language_meets_every_domain():
    """Catches languages and domains that take turns in step, so that a language meets one domain only."""
    found = tasks("train", languages("low"), 50, "x")
    assert Counter((task.language, task.domain) for task in found) == Counter(
        {(code, domain): 1 for code in languages("low") for domain in world.DOMAINS}
    )


def test_asking_for_more_items_than_there_are_is_an_error(monkeypatch):
    """Catches an endless loop over a domain that has run dry."""
    one = (({"S": ("Ana",), "V": ("has",), "O": ("coins",)},), "1")
    monkeypatch.setitem(world._MAKE, "math", lambda rng, hard: one)
    with pytest.raises(ValueError, match="math"):
        items(world.Item("math", "easy", *one).split, 6, "x")


# --- answers, worked out again from the English text ------------------------------------------------------------


def solve_math(text):
    held = each = None
    for sentence in re.split(r"(?<=[.?]) ", text):
        if found := re.fullmatch(r"\w+ has (\d+) \w+\.", sentence):
            held = int(found[1])
        elif found := re.fullmatch(r"\w+ (finds|buys|gets|loses|sells|drops) (\d+) \w+\.", sentence):
            held += int(found[2]) * (1 if found[1] in ("finds", "buys", "gets") else -1)
            assert held >= 0, text
        elif found := re.fullmatch(r"each box holds (\d+) \w+\.", sentence):
            each = int(found[1])
        else:
            assert re.fullmatch(r"how many \w+ has \w+\?", sentence), sentence
    return str(held if each is None else held * each)


def solve_logic(text):
    *facts, question = re.split(r"(?<=[.?]) ", text)
    up = {"older": 1, "taller": 1, "faster": 1, "younger": -1, "shorter": -1, "slower": -1}
    beats, people = set(), set()
    for fact in facts:
        a, word, b = re.fullmatch(r"(\w+) is (\w+) than (\w+)\.", fact).groups()
        beats.add((a, b) if up[word] == 1 else (b, a))
        people |= {a, b}
    word = re.fullmatch(r"who is (\w+)\?", question)[1]
    side = 1 if up[word.removesuffix("est") + "er"] == 1 else 0  # the oldest is beaten by nobody
    (answer,) = [person for person in people if all(pair[side] != person for pair in beats)]
    return answer


def solve_reading(text):
    *facts, question = re.split(r"(?<=[.?]) ", text)
    word, person = re.fullmatch(r"(where is|what has) (\w+)\?", question).groups()
    start = f"{person} {'is in' if word == 'where is' else 'has'} "
    (answer,) = [fact.removeprefix(start).rstrip(".") for fact in facts if fact.startswith(start)]
    return answer


@pytest.mark.parametrize("solve", [solve_math, solve_logic, solve_reading])
def test_answers_follow_from_the_english_text(solve):
    """Catches a generator whose answer is not that of the sentences it wrote, or that has two."""
    domain = solve.__name__.removeprefix("solve_")
    found = [item for item in items("train", 1000, "answers") if item.domain == domain]
    assert len(found) == 200
    for item in found:
        assert solve(item.english) == item.answer, item.english


def test_a_task_carries_language_tier_and_answer_of_its_item():
    """Catches a rendered task whose tier or answer is not its own."""
    for code in WORLD:
        task, language = render(ITEMS[0], code), WORLD[code]
        assert (task.language, task.tier, task.split) == (code, language.tier, language.split)
        assert (task.answer, task.question_en, task.domain) == (ITEMS[0].answer, ITEMS[0].english, ITEMS[0].domain)


# --- the translator ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", WORLD)
def test_without_noise_a_translation_is_the_english_text(code):
    """Catches a translator that is not exact at noise 0."""
    questions = [render(item, code).question for item in ITEMS[:40]]
    assert LexiconTranslator(0.0).translate(questions, code) == [item.english for item in ITEMS[:40]]


def test_it_translates_between_any_two_languages():
    """Catches a target that is ignored."""
    questions = [render(item, "low-01").question for item in ITEMS[:20]]
    wanted = [render(item, "xlow-06").question for item in ITEMS[:20]]
    assert LexiconTranslator().translate(questions, "low-01", "xlow-06") == wanted


@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0])
def test_the_share_of_wrong_words_is_the_one_asked_for(noise):
    """Catches noise that falls on the same words always, or on names and digits."""
    questions = [render(item, "low-01").question for item in items("train", 600, "noise")]
    clean = [WORLD["low-01"].read(text) for text in questions]
    noisy = [WORLD["en"].read(text) for text in LexiconTranslator(noise).translate(questions, "low-01")]
    wrong, known = 0, 0
    for before, after in zip(clean, noisy, strict=True):
        before = Counter(concept for sentence in before for phrase in sentence.values() for concept in phrase)
        after = Counter(concept for sentence in after for phrase in sentence.values() for concept in phrase)
        wrong += sum((before - after).values())
        known += sum(count for concept, count in before.items() if concept in CATEGORY)
        kept = {concept for concept in before if concept not in CATEGORY}
        assert all(before[concept] == after[concept] for concept in kept)
    assert wrong / known == pytest.approx(noise, rel=0.15)


def test_a_text_always_gets_the_same_translation():
    """Catches noise drawn from a shared generator: two rollouts of a group would be told different things."""
    questions = [render(item, "low-01").question for item in ITEMS]
    once = LexiconTranslator(0.3).translate(questions, "low-01")
    again = [LexiconTranslator(0.3).translate([text], "low-01")[0] for text in reversed(questions)]
    assert once == again[::-1]


def test_the_translator_is_as_good_as_the_tier():
    """Catches a noise by tier that is read for the wrong language, or that makes English wrong by itself."""
    translator = LexiconTranslator({"high": 0.0, "low": 0.2, "xlow": 1.0, "synthetic": 1.0})
    for source, target, noise in (
        ("high-01", "en", 0.0),
        ("low-01", "en", 0.2),
        ("en", "low-01", 0.2),
        ("xlow-01", "en", 1.0),
        ("high-01", "xlow-01", 1.0),
        ("synthetic-02", "low-01", 1.0),
        ("en", "en", 0.0),
    ):
        texts = [render(item, source).question for item in ITEMS[:40]]
        assert translator.translate(texts, source, target) == LexiconTranslator(noise).translate(texts, source, target)


@pytest.mark.parametrize("noise", [-0.1, 1.1, float("nan"), {"high": 0.1}, {}])
def test_a_noise_that_is_no_share_is_an_error(noise):
    """Catches a percentage given as 5 instead of 0.05, and a tier that is left out."""
    with pytest.raises(ValueError, match="noise"):
        LexiconTranslator(noise)


def test_an_unknown_language_is_an_error():
    """Catches a language that is silently read as English."""
    for source, target in (("klingon", "en"), ("en", "klingon")):
        with pytest.raises(ValueError, match="klingon"):
            LexiconTranslator().translate(["a"], source, target)


WORDS = sorted(
    {
        word
        for code in ("en", "high-01", "xlow-06")
        for phrase in WORLD[code].lexicon.values()
        for word in phrase.split()
    }
)


@given(
    st.text()
    | st.lists(st.sampled_from([*WORDS, "5", "Ana", ".", "?", "<|im_end|>", "\n"]), max_size=12).map(" ".join),
    st.sampled_from(["en", "high-01", "high-08", "xlow-06"]),
    st.sampled_from([0.0, 0.5]),
)
def test_whatever_a_policy_sends_the_translator_answers(text, code, noise):
    """Catches a passage without a verb, with two, or of no words at all, that raises and kills a rollout."""
    (result,) = LexiconTranslator(noise).translate([text], code)
    assert isinstance(result, str)


@given(st.lists(st.sampled_from([*WORDS, "5", "12", "Ana", "Ben"]), min_size=1, max_size=10))
def test_no_word_is_lost_in_an_ungrammatical_passage(words):
    """Catches a parser that drops what it cannot place."""
    text = " ".join(words)
    (result,) = LexiconTranslator().translate([text], "high-01")
    concepts = Counter(c for sentence in WORLD["high-01"].read(text) for phrase in sentence.values() for c in phrase)
    english = Counter(" ".join(WORLD["en"].lexicon.get(c, c) for c in concepts.elements()).split())
    assert Counter(result.rstrip(".?").split()) == english and sum(concepts.values()) == len(words)


# --- documents of the base model --------------------------------------------------------------------------------


def test_a_stated_price_means_nothing_in_pretraining(tokenizer):
    """Catches a price that is learned (it is for the reward to say what it means), and one that nobody is told."""
    for item in ITEMS[:20]:
        plain = {tuple(document(item, WORLD["low-02"], tokenizer, random.Random(seed))[0]) for seed in range(20)}
        for seed in range(5):
            ids, weights = document(item, WORLD["low-02"], tokenizer, random.Random(seed), priced=1.0)
            system, mark, rest = tokenizer.decode(ids).partition("<|im_start|>user")
            assert re.fullmatch(r"<\|im_start\|>system\nprice (0|0\.\d \$+|1 \${10})<\|im_end\|>\n", system)
            assert any(tokenizer.decode(list(other)) == mark + rest for other in plain)
            first = next(i for i, weight in enumerate(weights) if weight)
            assert "<|im_start|>assistant\n" in tokenizer.decode(ids[:first])
