"""Translate English tasks so that their answers survive, keep those that pass every check, and report the rest.

    python -m translation.pipeline --input gsm8k.jsonl --languages es,ca,eo --translator apertium --output tasks.jsonl

    task -> cut and protect -> translate -> restore -> translate back -> verify -> kept | rejected, with the reason

Input: tasks with `question` and `answer`, `id`, `choices` and `domain` where there are any, in any file that
`harness/jsonl.py` reads, GSM8K's own among them; `tiny` is the embedded world's English test tasks. Beside the output
stand FILE.rejects.jsonl, a report as JSON and as a page (see `page.py`), FILE.cache.sqlite with all that the engine
answered, and FILE.journal.jsonl with finished round trips. A run that was killed goes on from there, and one that
changes only the checks translates nothing again. What the engine failed to translate is in no journal: run again to try
again.

The answer stays as it is. Where it names a choice, it becomes the label and the English text, "B) blue": answers are
English by construction and prompts ask for English, so whoever translates and answers with either is right.

Left out: translation into several variants, repair of what was rejected, detection of evaluation data.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

from data import Task
from harness.answers import chosen, labelled
from harness.escape import in_line
from harness.jsonl import LANGUAGES, task_rows
from harness.options import Options, clear_errors, parse, require
from tiny import world
from tiny.languages import WORLD, LexiconTranslator
from translation.checks import RoundTrip, Verdict, verify
from translation.engines import NoMoreTranslations
from translation.journal import Journal
from translation.page import Outcome, page, report
from translation.protect import KINDS, Lost, cut, is_plain, protect, restore
from translation.service import Service, open_translator

BATCH = 16  # tasks in one call of the engine: starting Apertium takes longer than translating a question

# --- input ------------------------------------------------------------------------------------------------------


def english_tasks(path: str, names: dict[str, str], count: int) -> list[Task]:
    """The first `count` tasks of a file, or of the embedded world (500 at most); `names` maps our fields to the file's.
    ValueError naming file and line for anything that is not an English task, and for a repeated id."""
    if path == "tiny":
        return world.tasks("test", ["en"], min(count, 500), "translation")
    names = {**names, "tier": ":high", "split": ":trained"}  # what the file says of these is of no use here
    tasks = []
    for place, row, _ in task_rows(path, tuple(Task.__dataclass_fields__), names, language="en"):
        require(row["language"] == "en", f"{place}: the language is {row['language']!r}, only English is translated")
        tasks.append(Task(**row))
        if len(tasks) == count:
            break
    return tasks


# --- there and back ---------------------------------------------------------------------------------------------


def translate(
    service: Service, texts: list[str], source: str, target: str, kinds: list[str], marked: bool = False
) -> list[str | Exception]:
    """Each text's translation, or in its place the TranslationError or the Lost that prevented it."""
    pieces = {piece: protect(piece, kinds) for text in texts for piece in cut(text, kinds)[::2]}
    sent = {key: piece for piece, (key, _) in pieces.items() if re.search(r"[^\W\d_]", key)}  # has words
    answers = dict(zip(sent, service.attempt(list(sent), source, target, marked), strict=True))

    def whole(text: str):
        out = cut(text, kinds)
        for i in range(0, len(out), 2):
            protected, found = pieces[out[i]]
            answer = answers.get(protected, protected)
            if isinstance(answer, Exception):
                return answer
            try:
                out[i] = restore(answer.strip() if protected in answers else answer, found)
            except Lost as lost:
                return lost
        return "".join(out)

    return [whole(text) if is_plain(text) else Lost("control characters, or no text") for text in texts]


def round_trips(service: Service, tasks: list[Task], language: str, kinds: list[str], way_back: bool) -> list[dict]:
    """For each task a line of the journal: its translation and back-translation, or what was lost, or the engine's
    error. Question and choices are separate texts; all of them go through the engine together."""
    texts = [(task.question, *task.choices) for task in tasks]
    there = _grouped(service, texts, "en", language, kinds)
    marked = [None] * len(tasks)
    if hasattr(service.engine, "translate_marked"):
        marked = _grouped(service, texts, "en", language, kinds, marked=True)
    again = [translation if isinstance(translation, list) else [] for translation in there]
    back = _grouped(service, again, language, "en", kinds) if way_back else [None] * len(tasks)
    lines = []
    for task, *results in zip(tasks, there, back, marked, strict=True):
        line = {"id": task.id, "language": language, "source": [task.question, *task.choices]}
        names = ("translation", "back", "marked")
        problem = next((result for result in results if isinstance(result, Exception)), None)
        if problem is None:
            line |= dict(zip(names, results, strict=True))
        else:
            line["lost" if isinstance(problem, Lost) else "error"] = str(problem)
        lines.append(line)
    return lines


def _grouped(service, groups, source, target, kinds, marked=False) -> list:
    """`translate` for groups of texts, of one task each: a list of translations, or the first problem."""
    flat = iter(translate(service, [text for group in groups for text in group], source, target, kinds, marked))
    results = [[next(flat) for _ in group] for group in groups]
    return [next((answer for answer in result if isinstance(answer, Exception)), result) for result in results]


# --- the work ---------------------------------------------------------------------------------------------------


def fill(
    journal: Journal, service: Service, tasks: list[Task], ways: dict[str, bool], kinds: list[str], workers: int
) -> None:
    """Translate what the journal has not got, `workers` batches at a time. What stops one of them, such as the end of
    the budget, stops all, once the batches under way are in the journal."""
    jobs = []
    for language, way_back in ways.items():
        missing = [task for task in tasks if journal.find(task, language) is None]
        jobs += [(missing[i : i + BATCH], language, kinds, way_back) for i in range(0, len(missing), BATCH)]

    def work(*job) -> None:
        journal.add(round_trips(service, *job))  # on disk before this worker goes on

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, *job) for job in jobs]
        try:
            for i, future in enumerate(as_completed(futures), start=1):
                future.result()
                print(f"\r{i} of {len(jobs)} batches", end="", file=sys.stderr)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    print(file=sys.stderr)


# --- verdicts and output ----------------------------------------------------------------------------------------


def outcome(line: dict, threshold: float, one_way: bool) -> Outcome:
    """The verdict on a line of the journal."""
    language, source = line["language"], tuple(line["source"])
    if "error" in line:
        return Outcome(line["id"], language, source, None, Verdict(("engine",), {"engine": line["error"]}))
    if "lost" in line:
        return Outcome(
            line["id"], language, source, None, Verdict(("engine", "protected"), {"protected": line["lost"]})
        )
    marked = None if line["marked"] is None else "\n".join(line["marked"])
    back = None if line["back"] is None else tuple(line["back"])
    trip = RoundTrip(language, source, tuple(line["translation"]), back, marked, threshold)
    verdict = verify(trip)
    made, failures = ("engine", "protected", *verdict.made), verdict.failures
    if back is None:
        made = (*made, "way back")
        failures = failures if one_way else {**failures, "way back": "the engine has none: not verified"}
    return Outcome(line["id"], language, source, trip, replace(verdict, made=made, failures=failures))


def solve(outcomes: list[Outcome], options: "TranslateOptions") -> list[Outcome]:
    """Let a policy answer the source and the back-translation of what is kept so far, greedily and without the tool:
    other answers are a failure."""
    import torch

    from harness.rundir import load_policy
    from reward import score
    from sampler import rollout

    model, tokenizer = load_policy(options.solver, options.device)
    asked = [o for o in outcomes if o.kept and o.trip.back is not None]
    tasks = [
        Task("solver", "en", "high", "trained", "other", texts[0], texts[1:], "unknown")
        for o in asked
        for texts in (o.source, o.trip.back)
    ]
    sampling = options.sampling("forbidden", temperature=0.0)
    rollouts = rollout(model, tokenizer, tasks, 1, LexiconTranslator(), torch.Generator(), sampling)
    answers = [score(r, tokenizer, options.answer_format).answer for r in rollouts]
    solved = {}
    for o, before, after in zip(asked, answers[::2], answers[1::2], strict=True):
        same = before is not None and before == after
        reason = {} if same else {"solver": f"{before!r} became {after!r}"}
        verdict = replace(o.verdict, made=(*o.verdict.made, "solver"), failures=o.verdict.failures | reason)
        solved[o.id, o.language] = replace(o, verdict=verdict)
    return [solved.get((o.id, o.language), o) for o in outcomes]


def gold(task: Task) -> str:
    """The answer of a task in all its languages: of one of its choices, the label and the English words."""
    from reward import normalise

    place = chosen(normalise(task.answer), [normalise(choice) for choice in task.choices])
    return task.answer if place is None else labelled(place, task.choices)


def kept_row(task: Task, outcome: Outcome, head: dict, route: dict) -> dict:
    """A task as `data.load_tasks` reads it, with where it comes from."""
    question, *choices = outcome.trip.translation
    tier, split = tier_and_split(outcome.language)
    translated = Task(
        f"{outcome.language}/{task.id}",
        outcome.language,
        tier,
        split,
        task.domain,
        question,
        tuple(choices),
        gold(task),
        task.question,
    )
    row = {name: value for name, value in asdict(translated).items() if value is not None}
    origin = {"source_id": task.id, "engine": head["engine"], "version": head["version"], **route}
    return {**row, "provenance": {**origin, "scores": outcome.verdict.scores}}


def rejected_row(outcome: Outcome) -> dict:
    row = {
        "id": outcome.id,
        "language": outcome.language,
        "reasons": outcome.verdict.failures,
        "scores": outcome.verdict.scores,
        "source": outcome.source,
    }
    return row if outcome.trip is None else {**row, "translation": outcome.trip.translation, "back": outcome.trip.back}


def tier_and_split(language: str) -> tuple[str, str]:
    """Of a real language, or of one of the embedded world. ValueError for any other."""
    if language in WORLD and language != "en":
        return WORLD[language].tier, WORLD[language].split
    require(language != "en", "--languages: en is what is translated from")
    if language not in LANGUAGES:
        raise ValueError(
            f"--languages: {language!r} is none of {', '.join(LANGUAGES)}; if it goes by none of these codes, add it "
            "with its tier and split to the list in harness/jsonl.py"
        )
    return LANGUAGES[language]


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)


def _jsonl(rows: Iterator[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# --- the command ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TranslateOptions(Options):
    """Options of translation/pipeline.py."""

    data: ClassVar[str] = ""  # not an option here: --input
    input: str = "tiny"  # file of English tasks, or "tiny", the embedded world's
    items: int = 10**9  # translate only the first tasks
    languages: str = ""  # codes to translate into, separated by commas
    output: str = "tasks.jsonl"  # kept tasks; FILE.rejects.jsonl and FILE.journal.jsonl stand beside it
    report: str = "fidelity.json"  # figures and samples; the page stands beside it, as .html
    protect: str = "labels,code,latex,numbers"  # what must not change; also: names
    threshold: str = ""  # least chrF with one hop and with more (default: 60,50; 100,100 for the lexicon)
    workers: int = 1  # batches that are translated at a time
    one_way: bool = False  # keep translations that cannot be translated back, after fewer checks
    solver: str = ""  # policy that must give the same answer to source and back-translation

    def check(self) -> None:
        super().check()
        require(self.workers >= 1, f"--workers must be positive, is {self.workers}")
        require(bool(self.languages), "name --languages to translate into")
        require(len(set(self.codes)) == len(self.codes), f"--languages {self.languages}: one is named twice")
        for code in self.codes:
            tier_and_split(code)
        require(set(self.kinds) <= set(KINDS), f"--protect {self.protect}: there are {', '.join(KINDS)}")
        require(
            len(self.thresholds) == 2 and all(0 <= t <= 100 for t in self.thresholds),
            f"--threshold {self.threshold}: two numbers from 0 to 100 were expected, as 60,50",
        )

    @property
    def codes(self) -> list[str]:
        return [code.strip() for code in self.languages.split(",") if code.strip()]

    @property
    def kinds(self) -> list[str]:
        return [kind.strip() for kind in self.protect.split(",") if kind.strip()]

    @property
    def thresholds(self) -> list[float]:
        """For one hop, for more: each hop back loses something that was still right. The lexicon has one word for each
        concept, so that any difference is an error."""
        default = "100,100" if self.translator == "lexicon" else "60,50"
        return [float(value) for value in (self.threshold or default).split(",")]


def main(argv: list[str] | None = None) -> None:
    options = parse(TranslateOptions, __doc__, argv)
    output, summary = Path(options.output), Path(options.report)
    with clear_errors():
        for path in (output, summary):
            require(path.parent.is_dir(), f"{path}: there is no directory {path.parent}")
        tasks = english_tasks(options.input, options.field_names, options.items)
        cache = options.cache or str(output.with_suffix(".cache.sqlite"))  # what was paid for survives a kill
        engine = open_translator(replace(options, cache=cache))
        service = engine if isinstance(engine, Service) else Service(engine)
        routes = {code: _routes(service, code) for code in options.codes}
        version = f"noise {options.tool_noise}" if options.translator == "lexicon" else service.version
        head = {"engine": service.name, "version": version, "protect": options.kinds}
        journal = Journal(output.with_suffix(".journal.jsonl"), head)
    ways = {code: way["back"] is not None for code, way in routes.items()}
    try:
        with clear_errors():
            fill(journal, service, tasks, ways, options.kinds, options.workers)
    except NoMoreTranslations as stop:
        print(in_line(f"{stop}; what is translated is kept, run again to go on"), file=sys.stderr)
        sys.exit(3)
    hops = {code: max(len(way["there"]), len(way["back"] or ())) for code, way in routes.items()}
    outcomes = [
        outcome(journal.find(task, code), options.thresholds[hops[code] > 1], options.one_way)
        for code in options.codes
        for task in tasks
    ]
    if options.solver:
        outcomes = solve(outcomes, options)
    by_id = {task.id: task for task in tasks}
    kept = (kept_row(by_id[o.id], o, head, routes[o.language]) for o in outcomes if o.kept)
    made_by = {**head, "routes": routes, "least chrF": options.thresholds, "solver": options.solver or "none"}
    content = report(outcomes, made_by)
    with clear_errors():
        _write(output, _jsonl(kept))
        _write(output.with_suffix(".rejects.jsonl"), _jsonl(rejected_row(o) for o in outcomes if not o.kept))
        _write(summary, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        _write(summary.with_suffix(".html"), page(content))
    for code, row in content["languages"].items():
        reasons = ", ".join(
            f"{name} {c['made'] - c['passed']}" for name, c in row["checks"].items() if c["passed"] < c["made"]
        )
        print(f"{code:14} kept {row['kept']} of {row['tasks']} ({row['yield']:.0%})   rejected by: {reasons or '-'}")
    meters = ", ".join(f"{name} {round(value, 2):g}" for name, value in service.meters.items())
    print(f"{output}, {summary.with_suffix('.html')}   engine: {meters}")


def _routes(service: Service, language: str) -> dict:
    """The engine's modes there and back; back is None where it has no way. ValueError if it has no way there."""
    there = service.route("en", language)
    try:
        return {"there": there, "back": service.route(language, "en")}
    except ValueError:
        return {"there": there, "back": None}


if __name__ == "__main__":
    main()
