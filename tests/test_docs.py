"""README.md and docs/: what they show is what the program prints, and what they tell to type is what it takes."""

import functools
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from helpers import ROOT, command

import eval as evaluation
import gspo
import train
from harness.options import parse
from harness.viewer import compare_table, show
from paper import reproduce
from paper.tables import PAPER_GAIN, interval, with_deviation
from translation import pipeline

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "bench" / "RESULTS.md",
    )
}
LOW = ROOT / "paper" / "results" / "low"  # the run that the README opens with: its report, and one of its rollouts
OPTIONS = {
    "train.py": train.Config,
    "eval.py": evaluation.EvalOptions,
    "paper.reproduce": reproduce.ReproduceOptions,
    "translation.pipeline": pipeline.TranslateOptions,
}


def fenced(page: str, language: str = "") -> list[str]:
    """The contents of the page's code blocks in a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    return [block for kind, block in blocks if kind == language]


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every `python …` in a bash block or in `backticks`; the log keeps those of its day."""
    found = []
    for name, page in PAGES.items():
        if name == "docs/log.md":
            continue
        lines = "".join(fenced(page, "bash")).replace("\\\n", " ").splitlines() + re.findall(
            r"`(python [^`\n]+)`", page
        )
        lines = [part.partition(" #")[0].strip() for line in lines for part in line.split("&&")]
        found += [(name, line) for line in lines if re.match(r"(python|torchrun)\b.*(\.py\b|-m )", line)]
    return found


@functools.cache
def help_of(module: str) -> str:
    done = command("-m", module, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page, line", commands(), ids=[f"{page}: {line}" for page, line in commands()])
def test_every_command_is_one_that_the_program_takes(page, line):
    """Catches a documented option that was renamed, and a command that was moved."""
    words = [word for word in shlex.split(line) if word != "…"]
    if words[0] == "torchrun":
        words = words[words.index("train.py") - 1 :]
    if words[1] != "-m":
        target, arguments = words[1], words[2:]
    else:
        target, arguments = words[2], words[3:]
    if target in ("venv", "pytest", "http.server"):
        return
    assert (ROOT / (target if target.endswith(".py") else target.replace(".", "/") + ".py")).is_file()
    flags = [word for word in arguments if word.startswith("--")]
    if target in OPTIONS:
        parse(OPTIONS[target], "", [word for word in arguments if word != "--help"])
    elif flags:
        assert all(flag in help_of(target) for flag in flags)


def test_a_renamed_option_would_be_found():
    """Catches a check of commands that checks none."""
    assert len(commands()) > 20
    with pytest.raises(SystemExit):
        parse(train.Config, "", ["--think-block"])


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name):
    """Catches a file that was moved, and a heading that was renamed."""
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = (ROOT / name).parent / path if path else ROOT / name
        assert there.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads], target


@pytest.mark.parametrize("name", PAGES)
def test_per_is_not_called_a(name):
    """Catches "rollouts a prompt": one word for one thing."""
    what = "tasks|items|groups|calls|rollouts|cost|ids|tokens|rows|steps|seeds"
    of = "step|group|task|rollout|row|call|tier|token|character|prompt|question|column|tile"
    assert re.findall(rf"\b(?:{what}) a (?:{of})\b", PAGES[name]) == []


def test_the_readme_counts_the_lines_of_the_stages():
    """Catches a table that tells the size of last year."""
    rows = re.findall(r"^\| `\[(\d)\]` \| \[`(\w+\.py)`\]\(\w+\.py\) \| (\d+) \|", README, flags=re.MULTILINE)
    told = {name: int(lines) for _, name, lines in rows}
    assert len(told) == 9
    assert told == {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in told}


def test_the_readme_is_one_sitting():
    """Catches a front door that grows into a manual."""
    assert len(README.splitlines()) <= 146


def test_the_readme_opens_with_a_rollout_as_the_viewer_prints_it(tmp_path):
    """Catches a rollout that was made up, and a viewer that prints something else by now."""
    shutil.copy(LOW / "rollout.jsonl", tmp_path)
    shutil.copytree(ROOT / "tiny" / "base", tmp_path / "best")
    printed = io.StringIO()
    show(tmp_path / "rollout.jsonl", 1, printed)
    assert fenced(README)[0].strip() == printed.getvalue().strip()


def test_the_manual_shows_the_explanation_that_the_command_prints():
    """Catches a worked example that no command prints: every figure of it follows from the code and the base."""
    (shown,) = fenced(PAGES["docs/manual.md"], "text")
    done = command("train.py", "--lang-tier", "low", "--explain")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == shown


def test_the_closing_table_is_that_of_the_committed_run():
    """Catches a table that no run has printed."""
    report = json.loads((LOW / "report.json").read_text(encoding="utf-8"))
    assert compare_table(report["groups"], "base", "result") in fenced(README)[1]


def test_the_table_of_four_cases_is_what_gspo_computes():
    """Catches a worked example that the code does not agree with."""
    rows = re.findall(
        r"^\| (right|wrong), (called|no call) \| (\d) \| (\S+) \| (\d) \| (\S*) ?\|$", README, re.MULTILINE
    )
    assert len(rows) == 4
    for column, kappa in ((2, 0.75), (4, 1.0)):
        group = [(row[0] == "right", row[1] == "called") for row in rows for _ in range(int(row[column]))]
        correct, called = (torch.tensor([[float(entry[i]) for entry in group]]) for i in (0, 1))
        assert correct.shape == (1, 8)
        confidence = gspo.confidence(correct, called, "native")
        assert float(confidence) == kappa
        charges = gspo.charge(called, gspo.gate(confidence, "threshold", 0.95), train.Config().cost_weight)
        shaped = gspo.shaped_reward(correct, charges, "subtract")
        found = gspo.shaped_advantages(correct, shaped, "decoupled")[0].tolist()
        for row in rows:
            if int(row[column]):
                advantage = found[group.index((row[0] == "right", row[1] == "called"))]
                assert f"{advantage:+.2f}".replace("-", "−") == row[column + 1]


def test_the_pages_speak_of_no_machine_and_no_author():
    """Catches a path of the machine that a page was written on."""
    for page in PAGES.values():
        assert not re.search(r"/(home|root|work|Users)/|\bfork bomb\b", page)
        assert str(Path.home()) not in page


def test_what_reproduced_is_what_the_results_say():
    """Catches a figure that no result file holds."""
    summary = json.loads((ROOT / "paper" / "results" / "summary.json").read_text(encoding="utf-8"))
    policies, ours, tiers = summary["policies"], summary["headline"], ("high", "low", "xlow")
    weight = ours.rpartition("-")[2]

    def gains(name: str, *groups: str) -> str:
        return " / ".join(f"{policies[name]['groups'][group]['gain'][0]:+.1f}" for group in groups)

    def share(who: str, *members: str, entries=summary["clean"]["pareto"][weight], cut: str = "trained") -> str:
        (found,) = (
            entry["shares"]
            for entry in entries
            if entry["set"] == [*members] and entry["highest price"] == 1 and entry["cut"] == cut
        )
        return f"{100 * found[who][0]:.0f}%"

    (xlow,) = (
        entry
        for entry in summary["clean"]["over-suppression"]
        if (entry["tier"], entry["cost weight"]) == ("xlow", weight)
    )
    plain, gated = (f"{xlow[name]['reward']:.1f} at {xlow[name]['cost']:.2f}" for name in ("plain", "gated"))
    last = policies[f"{ours}, clean, last"]
    pair = ("unconstrained", "gated")
    every = ("never translate", "always translate", "unconstrained", "plain cost", "gated")
    expected = [
        gains(f"{ours}, clean", *tiers),
        gains(f"{ours}, clean", "synthetic"),
        gains(f"{ours}, clean", *(f"held-out {tier}" for tier in tiers)),
        f"{100 * last['reward_kept'][0]:.1f}% of the reward at {100 * last['cost_kept'][0]:.0f}%",
        f"at {share('gated', *pair)}",
        f"at {share('gated', *every)}",
        f"{gated}, plain {plain}",
    ]
    section = README.partition("## What reproduced")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("|")][2:]
    assert [cells[3].strip() for cells in rows] == expected
    on_test = {"entries": summary["pareto"][weight]}
    router, coin = share("router", *pair, **on_test), share("coin", *pair, **on_test)
    nulls = f"A plain cost has {share('plain cost', *pair)}; on test items a router has {router}, a coin {coin}"
    assert f"on XLow **no**: {share('gated', *pair, cut='xlow')}. {nulls}" in rows[4][4]
    assert gains("always translate, clean", *tiers) in rows[0][4]
    for name, words in ((f"plain-{weight}", "it unlearns {} of right calls"), (ours, "the gate {}")):
        rates = [f"{100 * policies[name]['mixed_reversed'][tier]:.1f}" for tier in tiers]
        assert words.format(f"{' / '.join(rates)}%") in rows[-1][4]
    ahead = [
        entry["at equal cost, last"][0]
        for entry in summary["over-suppression"]
        if (entry["form"], entry["cost weight"]) == ("default", weight)
    ]
    assert f"At equal cost the gate has {min(ahead):.1f} to {max(ahead):.1f} points more on test items" in rows[-1][4]
    assert xlow["at equal cost, last"][0] < 0
    assert f"on clean XLow {-xlow['at equal cost, last'][0]:.1f} fewer" in rows[-1][4]
    assert f"{100 * summary['names only']['clean']['all']:.0f}% of them differ" in section


def test_the_page_of_results_is_what_the_results_say():
    """Catches a table of the page that was made from other results than the committed ones."""
    summary = json.loads((ROOT / "paper" / "results" / "summary.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    policies, ours, names = summary["policies"], summary["headline"], {"high": "High", "low": "Low", "xlow": "XLow"}

    rows = []
    for tier, name in names.items():
        gain = policies[f"{ours}, clean"]["groups"][tier]
        shown = "{:+.1f} [{:+.1f}, {:+.1f}] ({:+.1f}, {:+.1f})".format(
            *gain["gain"], *gain["gain, languages resampled"]
        )
        forced = policies["always translate, clean"]["groups"][tier]["gain"][0]
        rows.append(f"| gain on {name} | +{PAPER_GAIN[tier]} | {forced:+.1f} | {shown} | yes |")
    for entry in summary["over-suppression"]:
        if entry["form"] == "default":
            both = [entry[who] for who in ("plain", "gated")]
            cells = [f"{one['reward']:.1f} at {one['cost']:.2f}" for one in both]
            cells.append(interval(entry["difference"]))
            cells += [with_deviation(entry[name]) for name in ("at equal cost", "at equal cost, last")]
            cells += [f"{100 * one['mixed_reversed']:.1f} / {100 * one['reversed']:.0f}%" for one in both]
            rows.append(f"| {entry['cost weight']} | {names[entry['tier']]} | {' | '.join(cells)} |")
    for family, weights in summary["utility"].items():
        for weight, utilities in weights.items():
            cells = [weight, "plain cost" if family == "plain" else "gated", *(f"{u:.3f}" for u in utilities.values())]
            rows.append(f"| {' | '.join(cells)} |")
    for entry in summary["clean"]["given up"]:
        if entry["tier"] == "xlow":
            cells = [f"{entry[who]['reward']:.1f} at {entry[who]['cost']:.2f}" for who in ("unconstrained", "gated")]
            rows.append(f"| {entry['domain']} | {' | '.join(cells)} | {interval(entry['difference'])} |")
    assert len(rows) == 3 + 18 + 12 + 5
    assert [row for row in rows if row not in page.replace("**", "")] == []
