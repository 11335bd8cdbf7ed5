"""What a run shows of itself while it runs: a line per step, a page and boards to look at, a picture at the end.

    a step's metrics -> Watch.step -> the line, TensorBoard or Weights & Biases (--log), at a validation report.html
    metrics.jsonl -> picture -> tool rate by tier over the steps, as text

Lines are plain text, the same on a terminal and in a file; a narrow terminal gets fewer columns.
"""

import sys
import time
from pathlib import Path

from harness.boards import open_board
from harness.report import write_page
from harness.rows import read_metrics
from harness.terminal import fit, width

HEAD_EVERY = 25  # lines between two heads of the table
LEGEND = (
    "one line per step: the reward that is optimised; of each tier % right, tool rate and cost; gate:\n"
    "groups in which a call is charged; rev: right calls that are punished; docs/manual.md has them all"
)
# What a narrow terminal does without, in this order.
DISPENSABLE = ("rev", "gate", "seconds", "left", "reward")


class Watch:
    """What one process of a run shows of its steps: the one that writes, all others show nothing."""

    def __init__(self, run, config, tokenizer):
        self._run, self._config, self._tokenizer, self._lines = run, config, tokenizer, 0
        self._first, self._begin = run.state["step"], time.perf_counter()
        self._board = open_board(config.log, run.path, vars(config), self._first) if run.is_writer else None

    def step(self, done: int, metrics: dict, seconds: float) -> None:
        """Step `done` is logged."""
        if not self._run.is_writer:
            return
        left = (self._config.steps - done) * (time.perf_counter() - self._begin) / max(1, done - self._first)
        cells = columns(done, self._config, metrics, seconds, left)
        if self._lines % HEAD_EVERY == 0:
            print(*[LEGEND] * (not self._lines), step_line(cells, width(sys.stdout), head=True), sep="\n")
        self._lines += 1
        print(step_line(cells, width(sys.stdout)))
        if not metrics["updates"]:
            print(f"step {done}: no usable group, nothing was learned")
        self._board.log(done, metrics)
        if validation := metrics.get("validation"):
            is_best = (self._run.state["best"] or {}).get("step") == done
            note = f"  accuracy {validation['accuracy']:.3f}{', best so far' if is_best else ''}"
            print(step_line(validation_columns(self._config, validation), width(sys.stdout), note=note))
            self._write_page()
        sys.stdout.flush()  # a line is there when its step is done, in a file too

    def end(self) -> None:
        """The run is over and its report is written: the picture, and the page with the closing table."""
        if not self._run.is_writer:
            return
        self._board.close()
        print(picture(read_metrics(self._run.path), min(80, width(sys.stdout))))
        if place := self._write_page():
            print(f"rollouts and curves: {place}")

    def _write_page(self) -> Path | None:
        """The page, or a line: a page that cannot be written ends no run."""
        try:
            return write_page(self._run.path, self._config, self._tokenizer)
        except (OSError, ValueError) as error:
            print(f"report.html was not written: {error}")
            return None


Cell = tuple[str, str, int]  # head, text, width


def columns(done: int, config, metrics: dict, seconds: float, left: float) -> list[Cell]:
    """The table's columns of one step."""
    cells = [_step(f"{done}/{config.steps}", config), ("reward", f"{metrics['reward']:.2f}", 7)]
    cells += tier_columns(config, metrics["tier"])
    cells.append(("gate", f"{metrics['gate_rate']:.2f}", 6))
    if "reversed_rate" in metrics:  # None where no right answer has a call
        rate = metrics["reversed_rate"]
        cells.append(("rev", "-" if rate is None else f"{rate:.2f}", 5))
    return [*cells, ("seconds", f"{seconds:.1f}", 8), ("left", duration(left), 9)]


def validation_columns(config, validation: dict) -> list[Cell]:
    """The same columns of a validation, under those of its step."""
    return [_step("valid", config), ("reward", "", 7), *tier_columns(config, validation["tier"])]


def _step(text: str, config) -> Cell:
    return "step", text, max(6, 2 * len(str(config.steps)) + 1)


def tier_columns(config, by_tier: dict[str, dict]) -> list[Cell]:
    """Of each tier in training three; - where the step has drawn no task of it."""
    cells = []
    for tier in config.tiers:
        part = by_tier.get(tier)
        cells.append((f"{tier} %", f"{100 * part['accuracy']:.0f}" if part else "-", 8))
        cells += [
            (name, f"{part[key]:.2f}" if part else "-", 5) for name, key in (("tool", "tool_rate"), ("cost", "cost"))
        ]
    return cells


def step_line(cells: list[Cell], columns: int, head: bool = False, note: str = "") -> str:
    """Heads or texts in a line that fits; what is dispensable goes first, a note is cut."""
    for name in DISPENSABLE:
        if sum(size for _, _, size in cells) > columns:
            cells = [cell for cell in cells if cell[0] != name]
    return fit("".join(f"{title if head else cell:>{size}}" for title, cell, size in cells) + note, columns)


def duration(seconds: float) -> str:
    """4:05, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def picture(rows: list[dict], columns: int, height: int = 10) -> str:
    """Tool rate by tier over the steps of metrics.jsonl, as text: each column is the mean of some steps, each tier its
    first letter, * where two meet."""
    tiers = [tier for tier in ("high", "low", "xlow", "synthetic") if any(tier in row["tier"] for row in rows)]
    count = min(max(10, columns - 6), len(rows))
    grid = [[" "] * count for _ in range(height + 1)]
    for tier in tiers:
        for x in range(count):
            some = rows[x * len(rows) // count : (x + 1) * len(rows) // count]
            rates = [row["tier"][tier]["tool_rate"] for row in some if tier in row["tier"]]
            if rates:
                y = height - round(height * sum(rates) / len(rates))
                grid[y][x] = tier[0] if grid[y][x] == " " else "*"
    letters = ", ".join(f"{tier[0]} {tier}" for tier in tiers)
    lines = [f"tool rate by tier ({letters}), steps {rows[0]['step']} to {rows[-1]['step']}"] if rows else []
    lines += [f"{1 - y / height:4.1f} |{''.join(row)}".rstrip() for y, row in enumerate(grid) if rows]
    return "\n".join(["", *lines])
