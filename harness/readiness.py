"""What a run needs besides memory, looked at before it starts: `train.py --dry-run`.

configuration -> is the translator there, has it all languages, are there tasks to validate and test on
timings.jsonl of runs beside it -> how long the steps would take
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

from data import user_message
from harness.inherit import read_settings
from harness.rows import read_metrics
from harness.rundir import read_lines
from harness.tasks import evaluation_tasks, training_tasks
from tools import TranslationError

LAST = 20  # steps that a rate is measured over


def readiness(config, open_translator: Callable) -> str:
    """What is there and what is missing, a line each. Asks the translator for one text, which may cost its price."""
    drawn = training_tasks(config, config.tiers, config.seed)(0, config.prompts)
    validation = evaluation_tasks(config, "validation", config.validation_items)
    test = evaluation_tasks(config, "test", config.test_items)
    tasks = [*drawn, *(task for some in (validation, test) for group in some.values() for task in group)]
    lines = [translator_line(config, open_translator, drawn[0], sorted({task.language for task in tasks}))]
    lines.append(f"training languages of the first step: {', '.join(sorted({task.language for task in drawn}))}")
    missing = [tier for tier in config.tiers if tier not in validation]
    there = ", ".join(f"{len(validation[tier])} in {tier}" for tier in config.tiers if tier in validation)
    lines.append(f"validation items: {there or 'none'}")
    if missing:
        lines.append(f"missing: validation items in {', '.join(missing)}; the run would be refused")
    lines.append("test items: " + (", ".join(f"{len(group)} in {name}" for name, group in test.items()) or "none"))
    return "\n".join([*lines, duration_line(config)])


def translator_line(config, open_translator: Callable, task, languages: list[str]) -> str:
    """Whether the engine answers, and whether it has a way from each language into English."""
    name = config.translator.partition("+")[0] if "//" in config.translator else config.translator
    try:
        translator = open_translator(config)
        (answer,) = translator.translate([user_message(task)], task.language)
    except (TranslationError, ValueError, OSError) as error:
        return f"missing: the translator {name} does not answer ({error})"
    without = []
    for language in languages if hasattr(translator, "route") else []:
        try:
            translator.route(language, "en")
        except ValueError:
            without.append(language)
    if without:
        return f"missing: the translator {name} answers, and has no way into English from {', '.join(without)}"
    return f"translator {name}: answers ({task.language}: {user_message(task)!r:.40} -> {answer!r:.40})"


def duration_line(config) -> str:
    """How long the steps would take at the rate of the newest run of the same model on the same kind of device."""
    beside = sorted(Path(config.directory).parent.glob("*/timings.jsonl"), key=lambda path: -path.stat().st_mtime)
    for timings in beside:
        run = timings.parent
        settings = read_settings(run) if (run / "config.json").is_file() else {}
        if any(settings.get(name) != getattr(config, name) for name in ("model", "device", "dtype")):
            continue
        if rate := measured_rate(run, settings):
            tokens, per_second = rate
            rollouts = config.steps * config.prompts * config.group_size
            minutes = rollouts * tokens / per_second / 60
            return (
                f"time: {minutes:,.1f} minutes for {rollouts:,} rollouts of {tokens:.0f} tokens, evaluations apart, "
                f"at the {per_second:,.0f} tokens per second of {run}"
            )
    return f"time: not known, no run of this model beside {config.directory} has been timed"


def measured_rate(run: Path, settings: dict) -> tuple[float, float] | None:
    """(mean tokens per rollout, tokens per second of a whole step) over a run's last steps without a validation."""
    seconds = {}
    for line in filter(None, read_lines(run / "timings.jsonl")):
        row = json.loads(line)
        seconds[row["step"]] = row["seconds"]
    rows = [row for row in read_metrics(run) if "validation" not in row and seconds.get(row["step"])][-LAST:]
    if not rows:
        return None
    count = settings["prompts"] * settings["group_size"]
    rates = [count * row["tokens"] / seconds[row["step"]] for row in rows]
    return statistics.mean(row["tokens"] for row in rows), statistics.median(rates)
