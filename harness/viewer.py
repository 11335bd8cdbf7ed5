"""Look at what was made: rollouts as text, and accuracy over cost as a picture.

rollouts.jsonl -> show -> text;  reports of eval.py -> plot -> accuracy over cost
"""

import itertools
import json
import sys
from pathlib import Path

from data import load_tokenizer
from harness.rundir import policy_directory, read_lines


def show(path, limit: int, out=sys.stdout) -> None:
    """Print the rollouts of a `rollouts.jsonl`: what the policy sampled stands out, what was inserted is dim (or in
    ⟦ ⟧ where the output has no colours). ValueError naming file and line for a line that is no rollout."""
    path = Path(path)
    lines = read_lines(path)
    tokenizer = load_tokenizer(policy_directory(path.parent))
    mine, theirs = ("\033[1;32m{}\033[0m", "\033[2m{}\033[0m") if out.isatty() else ("{}", "⟦{}⟧")
    for number, line in enumerate(lines[-limit:], start=max(0, len(lines) - limit) + 1):
        try:
            row = json.loads(line)
            task, result, ids, sampled = row["task"], row["score"], row["ids"], row["sampled"]
            turn = "".join(
                (mine if sampled[a] else theirs).format(tokenizer.decode(ids[a:b])) for a, b in _runs(sampled)
            )
            verdict = "right" if result["correct"] else f"wrong, the answer is {task['answer']!r}"
            head = (
                f"--- step {row.get('step', '-')}  {task['id']}  {verdict}, cost {result['cost']:.2f}, "
                f"stop {row['stop']}, advantage {row.get('advantage', 0):+.2f}"
            )
            question = "\n".join((task["question"], *task["choices"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a rollout ({error!r})") from None
        print(f"{head}\n{question}\n> {turn}\n", file=out)


def _runs(flags: list) -> list[tuple[int, int]]:
    """The stretches [a, b) of equal flags."""
    edges = [0, *(i for i in range(1, len(flags)) if flags[i] != flags[i - 1]), len(flags)]
    return list(zip(edges, edges[1:], strict=False)) if flags else []


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
    axes.set(xlabel="cost a task (1 = one call of mean length)", ylabel="reward (accuracy x 100)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
