"""Gold and prompt agree: a policy that always translates and answers as it is told is right about every choice.

The tasks are like XCOPA's, through the whole of what makes them: published rows read from a file, and English rows
translated by the pipeline. The oracle sees its prompt and the tool's result, and knows the world in English.
"""

import json
import re
from importlib.util import find_spec

import pytest
import torch
from conftest import randomise
from helpers import hand_made
from test_sampler import GOOD, Puppet

import data
from data import IM_END, Task
from harness.formats import BY_NUMBER
from harness.options import PRESETS, Options
from reward import FORMATS, score
from sampler import rollout
from translation import pipeline
from translation.service import Service

# premise, what is asked, the choices, which of them is right
ITEMS = [
    ("The item was packaged in bubble wrap.", "cause", ("It was fragile.", "It was small."), 0),
    ("I emptied my pockets.", "effect", ("I found a bill.", "I held a gun."), 0),
    ("Termites invaded the house.", "effect", ("They left the house.", "They ate the wood."), 1),
    ("The travelers reached the border.", "effect", ("The patrol slept.", "The patrol checked them."), 1),
]
RIGHT = {choices[right] for _, _, choices, right in ITEMS}


def mirrored(text: str) -> str:
    """Another language: each word is spelled backwards."""
    return re.sub(r"[^\W\d_]+", lambda word: word[0][::-1], text)


def in_english(text: str) -> str:
    """Its way back; the line that asks for a number is English in a published file, and stays."""
    return "\n".join(line if line == BY_NUMBER else mirrored(line) for line in text.split("\n"))


class Mirror:
    name, version = "mirror", "1"

    def translate(self, texts, source, target="en"):
        return [in_english(text) if target == "en" else mirrored(text) for text in texts]


def published(directory) -> list[Task]:
    """XCOPA's rows in another language, as they stand in its files."""
    rows = [
        {"premise": mirrored(premise), "question": asks, "label": right, "idx": i}
        | {f"choice{n}": mirrored(choice) for n, choice in enumerate(choices, start=1)}
        for i, (premise, asks, choices, right) in enumerate(ITEMS)
    ]
    path = directory / "xcopa.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data.load_tasks(path, {"language": ":it"})


def translated(directory, english: list[dict]) -> list[Task]:
    """What the pipeline makes of English rows, every one of them kept."""
    path, output = directory / "english.jsonl", directory / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in english))
    tasks, service = pipeline.english_tasks(str(path), {}, 100), Service(Mirror())
    lines = pipeline.round_trips(service, tasks, "it", ["labels", "numbers"], way_back=True)
    head, route = {"engine": "mirror", "version": "1"}, {"there": ["en-it"], "back": ["it-en"]}
    outcomes = [pipeline.outcome(line, 60, one_way=False) for line in lines]
    assert [outcome.verdict.failures for outcome in outcomes] == [{}] * len(ITEMS)
    rows = [pipeline.kept_row(task, o, head, route) for task, o in zip(tasks, outcomes, strict=True)]
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data.load_tasks(output)


def xcopa(gold, labelled: bool = False) -> list[dict]:
    """English rows like XCOPA's; `gold` makes the answer of the label and the words of the right choice."""
    return [
        {
            "question": f"{premise} What is the {asks}?",
            "choices": [f"{label}) {words}" if labelled else words for label, words in zip("AB", choices, strict=True)],
            "answer": gold("AB"[right], choices[right]),
        }
        for premise, asks, choices, right in ITEMS
    ]


def belebele(gold) -> list[dict]:
    """English rows like Belebele's: a passage, and four choices that show their labels."""
    rows = []
    for premise, asks, choices, right in ITEMS:
        words = ["Nobody knows.", "It rained.", *choices]
        label = "ABCD"[2 + right]
        passage = f"{premise} Nobody had thought of that before.\nWhat was the {asks} of this?"
        shown = [f"({name}) {text}" for name, text in zip("ABCD", words, strict=True)]
        rows.append({"question": passage, "choices": shown, "answer": gold(label, choices[right])})
    return rows


GOLDS = {"a label": lambda label, words: label, "the text": lambda label, words: words}
GOLDS["both"] = lambda label, words: f"({label}) {words}"
SOURCES = {
    "XCOPA as published": published,
    "English XCOPA, translated": lambda directory: translated(
        directory,
        [
            {"premise": premise, "question": asks, "label": right, "choice1": choices[0], "choice2": choices[1]}
            for premise, asks, choices, right in ITEMS
        ],
    ),
    "choices and a label": lambda directory: translated(directory, xcopa(GOLDS["a label"])),
    "choices and the text of one": lambda directory: translated(directory, xcopa(GOLDS["the text"])),
    "labelled choices and a label": lambda directory: translated(directory, xcopa(GOLDS["a label"], True)),
    "labelled choices and the text of one": lambda directory: translated(directory, xcopa(GOLDS["the text"], True)),
    "like Belebele, a label": lambda directory: translated(directory, belebele(GOLDS["a label"])),
    "like Belebele, the text": lambda directory: translated(directory, belebele(GOLDS["the text"])),
}


def obedient(prompt: str, message: str) -> str:
    """The oracle's last turn: it has read the prompt, and the whole message in English."""
    choices = re.findall(r"^(?:\(?(\w)[.)] )?(.+)$", message, flags=re.MULTILINE)
    ((label, words),) = [(label, words) for label, words in choices if words in RIGHT]
    answer = label if BY_NUMBER in message else words
    return f"I think so: \\boxed{{{answer}}}" if "\\boxed{}" in prompt else answer


def options_of(preset: str, answer_format: str) -> Options:
    known = {name: value for name, value in PRESETS[preset].items() if name in Options.__dataclass_fields__}
    return Options(**{**known, "answer_format": answer_format, "max_new_tokens": 400})


FORMS = [(preset, PRESETS[preset].get("answer_format", "plain")) for preset in PRESETS] + [("qwen3-4b", "math")]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("preset, answer_format", FORMS)
def test_who_always_translates_and_obeys_is_always_right(source, preset, answer_format, config, tokenizer, tmp_path):
    """Catches a gold in the language of the question where the prompt asks for English, a label that no prompt asks
    for, and a form of answers that cannot hold them: reward 0 for the best policy there is."""
    if answer_format == "math":
        pytest.importorskip("math_verify")
    options, tasks = options_of(preset, answer_format), SOURCES[source](tmp_path)
    puppet = randomise(Puppet(config, tokenizer, think=options.chat_format.think))
    for task in tasks:
        prompt = tokenizer.decode(data.encode_prompt(task, tokenizer, options.chat_format))
        last = obedient(prompt, in_english(data.user_message(task)))
        puppet.script(task, GOOD, [last, IM_END], chat=options.chat_format)
    found = rollout(puppet, tokenizer, tasks, 1, Mirror(), torch.Generator(), options.sampling())
    scores = [score(each, tokenizer, answer_format) for each in found]
    assert [(s.reward, s.used_tool, s.format_ok) for s in scores] == [(1.0, True, True)] * len(ITEMS)


DRESSED = ["{label}", "({label})", "{label})", "{label}.", "{words}", "{label}) {words}", "({label}) {words}"]


@pytest.mark.parametrize("gold", GOLDS)
@pytest.mark.parametrize("rows", [xcopa, lambda gold: xcopa(gold, True), belebele], ids=["bare", "labelled", "four"])
def test_a_label_the_english_text_or_both_are_right_of_a_translated_choice(rows, gold, tokenizer, tmp_path):
    """Catches a gold without a label, of which "B" is wrong, and one without words, of which the English text is: a
    policy cannot know which of the two a file has. The other choices must be wrong in every dress."""
    english = rows(GOLDS[gold])
    for row, task in zip(english, translated(tmp_path, english), strict=True):
        names = "ABCD"[: len(row["choices"])]
        texts = [re.sub(r"^\(?[A-D]\) ", "", choice) for choice in row["choices"]]
        (is_right,) = [i for i, text in enumerate(texts) if text in RIGHT]
        for preset, form in FORMS:
            if form == "math" and not find_spec("math_verify"):
                continue
            for dress in DRESSED:
                said = [dress.format(label=n, words=t) for n, t in zip(names, texts, strict=True)]
                said = [f"\\boxed{{{text}}}" if form != "plain" else text for text in said]
                found = [score(hand_made(tokenizer, task, text), tokenizer, form).correct for text in said]
                assert found == [int(i == is_right) for i in range(len(names))], (preset, form, said, task.answer)
            wrong = f"{names[is_right - 1]}) {texts[is_right]}"
            wrong = f"\\boxed{{{wrong}}}" if form != "plain" else wrong
            assert score(hand_made(tokenizer, task, wrong), tokenizer, form).correct == 0


def test_every_form_of_answers_has_its_oracle():
    """Catches a new form that no preset and no test above asks for."""
    assert {answer_format for _, answer_format in FORMS} == set(FORMATS)


def test_who_answers_the_other_choice_is_wrong(config, tokenizer, tmp_path):
    """Catches a verifier that any choice satisfies."""
    options = options_of("tiny", "plain")
    for source in SOURCES.values():
        puppet, tasks = randomise(Puppet(config, tokenizer)), source(tmp_path)
        for task in tasks:
            message = in_english(data.user_message(task))
            last = obedient("", message)
            other = {"1": "2", "2": "1"}.get(last) or next(
                c for _, _, choices, _ in ITEMS for c in choices if c in message and c not in RIGHT
            )
            puppet.script(task, GOOD, [other, IM_END], chat=options.chat_format)
        found = rollout(puppet, tokenizer, tasks, 1, Mirror(), torch.Generator(), options.sampling())
        assert [score(each, tokenizer).reward for each in found] == [0.0] * len(ITEMS)
