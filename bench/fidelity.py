"""How much the checks of translated tasks are worth, where the truth is known and on real text.

    python -m bench.fidelity                # about half a minute on one core
    python -m bench.fidelity --data DIR     # and on real text: mgsm.jsonl, gsm8k_test.jsonl, apertium_roundtrip.jsonl

In the embedded world the answer of a translation is worked out from its own sentences (`tiny/truth.py`), so the share
of kept tasks whose answer survived is measured: true fidelity. The lexicon gets a share of words wrong, there and back.
On real text: human translations, which are right, so that every rejection is a false one (only the checks that need no
way back); and recorded round trips of Apertium, whose truth is unknown. The real texts are not part of the repository;
without them their tables are left out.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from tiny import truth, world
from tiny.languages import LexiconTranslator, languages
from translation.checks import BACKWARD, FORWARD, RoundTrip, Verdict, verify
from translation.pipeline import TranslateOptions, outcome, round_trips
from translation.protect import KINDS
from translation.service import Service

PROTECT = list(KINDS[:-1])


def in_the_world(noise: float, count: int) -> dict[str, float]:
    """Shares for `count` tasks of the embedded world at this noise of the lexicon: of all tasks, intact (the
    translation has the right answer) and kept; of the kept, intact (fidelity); of the intact, kept (yield)."""
    threshold = TranslateOptions(languages="high-01").thresholds[0]
    service, codes = Service(LexiconTranslator(noise)), languages()
    found = Counter()
    for i, task in enumerate(world.tasks("test", ["en"], count, "fidelity")):
        code = codes[i % len(codes)]
        (line,) = round_trips(service, [task], code, PROTECT, way_back=True)
        kept = outcome(line, threshold, one_way=False).kept
        intact = truth.answer(line["translation"][0], code) == task.answer
        found.update({"kept": kept, "intact": intact, "both": kept and intact})
    return {
        "intact": found["intact"] / count,
        "kept": found["kept"] / count,
        "fidelity": found["both"] / max(1, found["kept"]),
        "yield": found["both"] / found["intact"],
    }


def rows(data: Path, name: str) -> list[dict]:
    with open(data / f"{name}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def human_verdicts(data: Path, language: str) -> list[Verdict]:
    """Of the human translations of 250 questions, by the checks that need no way back."""
    return [
        verify(RoundTrip(language, (row["question_en"],), (row["question"],), None))
        for row in rows(data, "mgsm")
        if row["lang"] == language
    ]


def recorded_verdicts(data: Path, language: str) -> list[Verdict]:
    """Of 300 recorded round trips (there is none for ast and sc)."""
    sources = {row["id"]: (row["question"],) for row in rows(data, "gsm8k_test")}
    options, verdicts = TranslateOptions(languages="es", translator="recorded"), []
    for row in rows(data, "apertium_roundtrip"):
        if row["lang"] == language:
            hops = max(len(row["there"]), len(row["back"] or ()))
            back = None if row["back"] is None else (row["back_translation"],)
            trip = (language, sources[row["id"]], (row["translation"],), back, row["marked_first_hop"])
            verdicts.append(verify(RoundTrip(*trip, options.thresholds[hops > 1])))
    return verdicts


def shares(verdicts: list[Verdict], checks) -> dict[str, float]:
    """The share that passes all checks, and each of those that were made."""
    made = {name for verdict in verdicts for name in verdict.made}
    passed = {name: sum(name not in verdict.failures for verdict in verdicts) for name in checks if name in made}
    return {"all": sum(not v.failures for v in verdicts) / len(verdicts)} | {
        name: count / len(verdicts) for name, count in passed.items()
    }


def table(title: str, lines: dict[str, dict[str, float]]) -> str:
    """Shares in per cent, a line for each key."""
    columns = list(dict.fromkeys(name for line in lines.values() for name in line))
    text = [title, f"{'':8}" + "".join(f"{name:>11}" for name in columns)]
    for key, line in lines.items():
        cells = (f"{100 * line[name]:11.1f}" if name in line else f"{'-':>11}" for name in columns)
        text.append(f"{key:8}" + "".join(cells))
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory with the real texts")
    data = parser.parse_args().data
    world_lines = {f"{noise:.0%}": in_the_world(noise, 2000) for noise in (0, 0.02, 0.05, 0.1, 0.2)}
    print(table("Embedded world: 2000 tasks, by the lexicon's noise", world_lines), flush=True)
    if data is not None:
        human = {code: shares(human_verdicts(data, code), FORWARD) for code in "es de ru fr th sw bn te ja zh".split()}
        print(table("Human translations of MGSM that pass, without a way back", human), flush=True)
        codes = "eo es gl ca an oc pt it fr frp ast sc hbs".split()
        recorded = {code: shares(recorded_verdicts(data, code), FORWARD | BACKWARD) for code in codes}
        print(table("Recorded round trips of Apertium that pass", recorded))


if __name__ == "__main__":
    main()
