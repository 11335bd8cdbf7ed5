"""Which tasks a run trains on and is evaluated on.

    --data tiny | FILE, a seed, a step -> training_tasks -> tasks of the step
    --data tiny | FILE, a part, a count -> evaluation_tasks -> tasks of each group of languages

With the translator's service, this is where a run learns of the embedded world: to the stages its tasks are tasks like
any others.
"""

import functools
import hashlib
import itertools
import random
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from data import Task, Tokenizer, encode_prompt
from harness.guard import guard
from harness.jsonl import item_of, task_rows
from harness.modeldir import shorten
from harness.options import Options, TrainingOptions, require
from tiny import world
from tiny.languages import languages

HIGHEST = 0.8  # of the cost weights that the tasks of "tiny-prices" state


def training_tasks(options: TrainingOptions, tiers: list[str], seed: int):
    """A function (step, count) -> tasks for that step of training, the same for the same seed.

    Raises ValueError if there are none, and for tasks of `--evaluation-data` without `--allow-evaluation-data`.
    """
    if is_tiny(options):
        require(not options.evaluation_data, "--evaluation-data is for a file of tasks: tiny has test items of its own")
        codes = [code for tier in tiers for code in languages(tier, "trained")]

        def draw_world(step: int, count: int) -> list[Task]:
            shuffled = random.Random(f"languages {seed} {step}").sample(codes, len(codes))
            tasks = world.tasks("train", shuffled, count, f"{seed} {step}")
            return tasks if options.data == "tiny" else with_prices(tasks, f"{seed} {step}")

        return draw_world

    tasks = [task for task in _file(options, "train") if task.split == "trained"]
    pool = [task for task in tasks if task.tier in tiers]
    require(bool(pool), f"{options.data}: no training tasks in the tiers {', '.join(tiers)}")
    guard(pool, options.data, options.evaluation_data, options.allow_evaluation_data, options.field_names)

    def draw(step: int, count: int) -> list[Task]:
        drawn, orders = [], {}
        for i in range(step * count, (step + 1) * count):  # epoch after epoch, each in an order of its own
            epoch, place = divmod(i, len(pool))
            if epoch not in orders:
                orders[epoch] = random.Random(f"epoch {seed} {epoch}").sample(pool, len(pool))
            drawn.append(orders[epoch][place])
        return drawn

    return draw


def evaluation_tasks(options: Options, part: str, count: int) -> dict[str, list[Task]]:
    """`count` tasks of each group of languages, "validation" or "test": the tiers' trained languages, the held-out
    ones and the synthetic ones. In the embedded world all groups render the same items; of a file, each group takes the
    first tasks of its languages in turn.
    """
    if is_tiny(options):
        groups = {tier: languages(tier, "trained") for tier in ("high", "low", "xlow")}
        held_out = [languages(tier, "held-out") for tier in ("high", "low", "xlow")]
        groups |= {"held-out": _in_turn(held_out), "synthetic": languages("synthetic")}
        found = {name: world.tasks(part, codes, count, "evaluation") for name, codes in groups.items()}
        return found if options.data == "tiny" else {name: with_prices(tasks, name) for name, tasks in found.items()}
    by_group = {}  # group -> language -> tasks
    for task in _file(options, part):
        group = by_group.setdefault(task.tier if task.split == "trained" else task.split, {})
        group.setdefault(task.language, []).append(task)
    return {name: _in_turn(group.values())[:count] for name, group in by_group.items()}


def languages_of(options: Options) -> set[str]:
    """The languages of all tasks that a command may draw, to be compared with what its translator knows."""
    if is_tiny(options):
        return {task.language for tasks in evaluation_tasks(options, "test", 100).values() for task in tasks}
    return {task.language for _, task, _ in _rows(options)}


def check_prompts(options: Options, tokenizer: Tokenizer) -> None:
    """ValueError naming file, line and id of the first task whose prompt has more than `--max-prompt-tokens` ids: one
    of 30,000 characters would take the memory of all the others together, in the middle of a run."""
    if is_tiny(options):
        return
    most, frame = options.max_prompt_tokens, 0  # frame: ids of the chat's own words
    for place, task, _ in _rows(options):
        if not frame:
            without_text = replace(task, question="", choices=(), system="?")
            frame = len(encode_prompt(without_text, tokenizer, options.chat_format))
        # a character is 4 bytes at most, and 3 of them where its normal form is longer: most tasks need no count
        texts = (task.question, *task.choices, task.system or options.system)
        if 12 * sum(map(len, texts)) + frame < most:
            continue
        if (length := len(encode_prompt(task, tokenizer, options.chat_format))) > most:
            said = f"{place}: the prompt of {shorten(task.id)} has {length:,} tokens"
            raise ValueError(f"{said}, and --max-prompt-tokens is {most:,}: leave the task out, or raise the limit")


def is_tiny(options: Options) -> bool:
    """Whether the tasks are the embedded world's."""
    return options.data in ("tiny", "tiny-prices")


def with_prices(tasks: list[Task], key) -> list[Task]:
    """The tasks, each with a price drawn at random, a tenth between 0 and `HIGHEST`; the same key draws the same."""
    rng = random.Random(f"prices {key}")
    return [with_price(task, rng.randint(0, round(10 * HIGHEST)) / 10) for task in tasks]


def cost_weight(task: Task, options) -> float:
    """Lambda for this task: its own, else --cost-weight."""
    return options.cost_weight if task.cost_weight is None else task.cost_weight


def with_price(task: Task, price: float) -> Task:
    """The task with a price that its system turn states and its reward charges: "price 0.3 $$$". A small model counts
    signs before it reads digits."""
    return replace(task, system=f"price {price:g} {'$' * round(10 * price)}".rstrip(), cost_weight=price)


def _in_turn(lists: Iterable[list]) -> list:
    """The first of each list, then the second of each, and so on: the beginning holds something of all of them."""
    return [entry for row in itertools.zip_longest(*lists) for entry in row if entry is not None]


def _file(options: Options, part: str) -> list[Task]:
    """The file's tasks of a part."""
    return [task for _, task, item in _rows(options) if part_of(task, item) == part]


def _rows(options: Options) -> list[tuple[str, Task, str]]:
    """(file:line, task, item) of each row of the file, which a start asks for several times and reads once."""
    path = Path(options.data)
    return _read(path.resolve(), options.data, options.fields, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _read(file: Path, name: str, fields: str, written: int) -> list[tuple[str, Task, str]]:
    """`name` is what errors call the file; with the time at which it was written, another content is another file."""
    rows = task_rows(name, tuple(Task.__dataclass_fields__), Options(fields=fields).field_names)
    return [(place, Task(**row), item) for place, row, item in rows]


def part_of(task: Task, item: str | None = None) -> str:
    """train, validation or test, 8 : 1 : 1, by the item, which all translations share: what the file names so, else the
    English question, else the id without the language."""
    key = int(hashlib.sha256((item or item_of(asdict(task))).encode()).hexdigest(), 16) % 10
    return (["train"] * 8 + ["validation", "test"])[key]
