"""Look at what was made: rollouts as text, and accuracy over cost as a picture.

rollouts.jsonl -> show -> text;  reports of eval.py -> plot -> accuracy over cost
"""

import importlib.util
import itertools
import sys
from pathlib import Path

from data import load_tokenizer
from harness.escape import in_line, on_screen
from harness.options import require
from harness.rows import groups, parts, question, read_rollouts, select, tags, verdict
from harness.rundir import policy_directory
from harness.terminal import fit, has_colours, width


def show(path, limit: int, out=sys.stdout, only: str = "", page: int = 1, by_group: bool = False) -> None:
    """Print the last rollouts of a `rollouts.jsonl`, `limit` of those that `only` names: what the policy sampled stands
    out, what was inserted is dim (or in ⟦ ⟧ where the output has no colours). `page` 2 are those before the last.
    `by_group`: the rollouts of a prompt under each other, one line each.

    ValueError naming file and line for a line that is no rollout, and for a page that is not there.
    """
    path = Path(path)
    rows = read_rollouts(path)
    found = select(rows, only)
    units = groups(found) if by_group else [[row] for row in found]
    end = len(units) - (page - 1) * limit
    require(end > 0 or page == 1, f"--page {page}: {len(units)} match, {limit} on a page")
    tokenizer = load_tokenizer(policy_directory(path.parent))
    for unit in units[max(0, end - limit) : end]:
        print(_as_group(unit, tokenizer, out) if by_group else _as_rollout(unit[0], tokenizer, out), file=out)
    if len(units) > limit or len(found) < len(rows):
        what, more = ("groups" if by_group else "rollouts"), f"; --page {page + 1} has those before" * (end > limit)
        print(f"{what} {min(end, max(0, end - limit) + 1)} to {end} of {len(units)} that match{more}", file=out)


def _as_rollout(row: dict, tokenizer, out) -> str:
    """A rollout in full."""
    head = in_line(
        f"--- step {row.get('step', '-')}  {row['task']['id']}  {verdict(row)}, cost {row['score']['cost']:.2f}, "
        f"stop {row['stop']}, advantage {row.get('advantage', 0):+.2f}"
    )
    return f"{head}\n{on_screen(question(row))}\n> {''.join(_turns(row, tokenizer, out))}\n"


def _as_group(rows: list[dict], tokenizer, out) -> str:
    """The rollouts of a prompt, a line each, cut to the terminal's width."""
    gate = tags(rows[0])["gate"]
    known = f", confidence {rows[0]['confidence']:.2f}, gate {gate}" if gate and "confidence" in rows[0] else ""
    lines = [in_line(f"=== step {rows[0].get('step', '-')}  {rows[0]['task']['id']}{known}")]
    lines.append(on_screen(question(rows[0])))
    for row in rows:
        said = "right" if row["score"]["correct"] else "wrong"
        head = f"  {said}  cost {row['score']['cost']:5.2f}  advantage {row.get('advantage', 0):+5.2f}  "
        said = "".join(tokenizer.decode(ids) if drawn else " ⟦…⟧ " for ids, drawn in parts(row["ids"], row["sampled"]))
        lines.append(fit(head + on_screen(said), width(out)))
    return "\n".join([*lines, ""])


def _turns(row: dict, tokenizer, out) -> list[str]:
    """The text of a rollout, what was drawn and what was inserted told apart."""
    drawn, inserted = ("\033[1;32m{}\033[0m", "\033[2m{}\033[0m") if has_colours(out) else ("{}", "⟦{}⟧")
    return [
        (drawn if is_drawn else inserted).format(on_screen(tokenizer.decode(ids)))
        for ids, is_drawn in parts(row["ids"], row["sampled"])
    ]


def plot(reports: dict[str, dict[str, dict]], path: str) -> None:
    """Accuracy over cost, one mark for each policy and group of tasks. Needs matplotlib, an extra."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    colours = itertools.cycle(["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"])
    markers = dict(zip(next(iter(reports.values())), itertools.cycle("osD^vP*X"), strict=False))  # of the groups
    for group, marker in markers.items():
        axes.plot([], [], color="grey", marker=marker, linestyle="none", label=group)
    for colour, (name, report) in zip(colours, reports.items(), strict=False):
        axes.plot([], [], color=colour, linewidth=4, label=name)
        for group, marker in markers.items():
            axes.scatter(report[group]["cost"], 100 * report[group]["accuracy"], color=colour, marker=marker, s=60)
    axes.set(xlabel="cost per task (1 = one call of mean length)", ylabel="reward (accuracy x 100)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)


# --- tables -----------------------------------------------------------------------------------------------------------


def compare_table(report: dict[str, dict], before: str, after: str) -> str:
    """The report of `compare` as text: reward is accuracy x 100."""
    head = f"{'':12}{'reward':^37}   {'tool rate':^14}   {'cost':^12}"
    lines = [
        head,
        f"{'':12}{before:>8}{after:>8}  {'difference [95%]':<21}  {before:>7}{after:>7}  {before:>7}{after:>7}",
    ]
    for group, row in report.items():
        a, t, c = (row[name] for name in ("accuracy", "tool_rate", "cost"))
        low, high = a["interval"]
        difference = f"{100 * a['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        lines.append(
            f"{group:12}{100 * a['before']:8.1f}{100 * a['after']:8.1f}  {difference:<21}  "
            f"{t['before']:7.2f}{t['after']:7.2f}  {c['before']:7.2f}{c['after']:7.2f}"
        )
    return "\n".join(lines)


def table(reports: dict[str, dict[str, dict]], title: str) -> str:
    """policy -> part -> summary, as text: a line for each part, three columns for each policy."""
    names = [in_line(name[-22:]) for name in reports]
    lines = ["", f"{title:22}" + "".join(f"{name:^24}" for name in names)]
    lines.append(f"{'':22}" + "".join(f"{'reward':>8}{'tool':>7}{'cost':>7}  " for _ in names))
    for part in dict.fromkeys(part for report in reports.values() for part in report):
        cells = [report[part] for report in reports.values()]
        lines.append(
            f"{in_line(part):22}"
            + "".join(f"{100 * c['accuracy']:8.1f}{c['tool_rate']:7.2f}{c['cost']:7.2f}  " for c in cells)
        )
    return "\n".join(lines)


def print_evaluation(options, cuts: dict, first: str, differences: dict) -> None:
    """What eval.py found, as text.

    cuts: group | domain | language -> policy -> part -> summary; differences: policy -> report of `eval.compare`
    against the first one.
    """
    by_group = cuts["group"]
    sampled = "greedy" if options.greedy else "sampled at temperature 1"
    items = f"{_counts(by_group[first])} {options.part} items per group"
    print(f"{items}, mode {options.mode}, {sampled}, seed {options.seed}")
    for name, report in by_group.items():
        n = sum(part["n"] for part in report.values())
        if failed := sum(part["n"] * part["tool_error_rate"] for part in report.values()) / n:
            print(f"{name}: the translator failed in {failed:.1%} of the rollouts; they count as they were answered")
    for cut, reports in cuts.items():
        if cut != "language" or options.by_language:
            print(table(reports, f"by {cut}"))
    for name, report in differences.items():
        print(f"\n{name} against {first}\n{compare_table(report, 'first', 'other')}")


def closing_table(compared: dict[str, dict], result) -> str:
    """The table at the end of a run."""
    head = f"base against {result}, {_counts(compared)} test items per group, sampled at temperature 1"
    return f"\n{head}\n{compare_table(compared, 'base', 'result')}"


def _counts(report: dict[str, dict]) -> str:
    """How many items: one number, or several if the groups differ."""
    return "/".join(str(n) for n in dict.fromkeys(group["n"] for group in report.values()))


def check_outputs(json_path: str, plot_path: str) -> None:
    """ValueError, before any work is done, for a file that could not be written or drawn."""
    require(
        not plot_path or importlib.util.find_spec("matplotlib") is not None,
        "--plot needs matplotlib: pip install matplotlib",
    )
    for path in filter(None, (json_path, plot_path)):
        require(Path(path).parent.is_dir(), f"{path}: there is no directory {Path(path).parent}")
