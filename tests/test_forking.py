"""docs/forking.md: each walk's diff applies to a copy of the tree, its command runs, and the change acts."""

import functools
import io
import json
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers import ROOT, environment

from data import load_tokenizer
from harness.viewer import show
from tiny.languages import WORLD
from train import Config

PAGE = (ROOT / "docs" / "forking.md").read_text(encoding="utf-8")
PRODUCT = ("*.py", "harness/*.*", "translation/*.py", "tiny/*.py", "tiny/base/*")  # what a run needs
# Five prompts are one of each domain, so what metrics.jsonl says by domain it says by prompt; all rollouts are kept.
SMALL = (
    "--steps 6 --prompts 5 --minibatches 1 --group-size 4 --eval-every 6 --validation-items 5 --test-items 5 "
    "--log-rollouts 20 --save-every 6"
)
LIMITS = {  # walk -> file -> lines that its diff may add
    "A soft gate": {"gspo.py": 8, "train.py": 1},
    "Another advantage": {"gspo.py": 11, "train.py": 1},
    "A second tool": {"tools.py": 45, "harness/options.py": 5},
    "Partial credit": {"reward.py": 10},
    "A new domain": {"tiny/world.py": 12, "tiny/truth.py": 3},
}


def fenced(walk: str, language: str) -> str:
    """The one block in a language under the heading of a walk."""
    section = re.search(rf"^## {walk}\n(.*?)(?=^## )", PAGE, flags=re.MULTILINE | re.DOTALL)[1]
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    return block


def python(directory: Path, *words) -> str:
    """What a Python process in this directory prints."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=directory, env=environment(), text=True, timeout=120, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def place():
    """Where the forks are, for as long as this file's tests run."""
    forked.cache_clear()
    with tempfile.TemporaryDirectory(prefix="forks-") as directory:
        yield Path(directory)


@functools.cache
def forked(walk: str, place: Path) -> Path:
    """A copy of the product with the walk's diff applied."""
    copy = place / walk.replace(" ", "-")
    for source in (path for pattern in PRODUCT for path in ROOT.glob(pattern)):
        target = copy / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    command, ceiling = ["git", "apply", "--verbose", "-"], {"GIT_CEILING_DIRECTORIES": str(place)}
    done = subprocess.run(
        command, cwd=copy, env=environment() | ceiling, input=fenced(walk, "diff"), text=True, capture_output=True
    )
    assert done.returncode == 0, f"docs/forking.md: the diff of {walk!r} does not apply:\n{done.stderr}"
    return copy


def trained(walk: str, place: Path, more: str = "", begin: tuple[str, ...] = ()) -> tuple[Path, list, list]:
    """The walk's command for six small steps: run directory, lines of metrics.jsonl, groups of rollouts.jsonl.

    `more`: further options; `begin`: what stands before train.py in the command, for a script that runs it.
    """
    copy = forked(walk, place)
    (line,) = fenced(walk, "sh").splitlines()
    words = shlex.split(f"{line} {SMALL} {more}")
    assert words[:2] == ["python", "train.py"]
    python(copy, *begin, *words[1:])
    run = copy / words[words.index("--out") + 1]
    metrics, rollouts = ([json.loads(row) for row in open(run / f"{name}.jsonl")] for name in ("metrics", "rollouts"))
    assert len(metrics) == 6
    return run, metrics, [rollouts[i : i + 4] for i in range(0, len(rollouts), 4)]


def confidence(group: list[dict]) -> float:
    """The native estimate, by hand: the share of right answers among those without a call."""
    own = [rollout["score"]["correct"] for rollout in group if not rollout["score"]["used_tool"]]
    return sum(own) / len(own) if own else 0.0


def check_advantages(group: list[dict], gate: float) -> None:
    """The logged advantages of a group: its rewards over their deviation, less its charges at this gate."""
    rewards = [rollout["score"]["reward"] for rollout in group]
    charges = [Config().cost_weight * rollout["score"]["cost"] * gate for rollout in group]
    deviation = statistics.pstdev(rewards) or 1
    expected = [
        (reward - statistics.mean(rewards)) / deviation - (charge - statistics.mean(charges))
        for reward, charge in zip(rewards, charges, strict=True)
    ]
    assert [rollout["advantage"] for rollout in group] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("walk", LIMITS)
def test_a_walk_is_as_short_as_promised(walk):
    """Catches a house in which one idea has to be told to three files."""
    added, name = {}, None
    for line in fenced(walk, "diff").splitlines():
        if line.startswith("+++ b/"):
            name = line.removeprefix("+++ b/")
        elif line.startswith("+"):
            added[name] = added.get(name, 0) + 1
    assert set(added) == set(LIMITS[walk])
    assert all(added[name] <= LIMITS[walk][name] for name in added), added


def test_a_soft_gate_charges_in_proportion(place):
    """Catches a gate that is rounded on its way, or an option that is parsed and not used."""
    _, metrics, groups = trained("A soft gate", place)
    prompts = [prompt for step in metrics for prompt in step["domain"].values()]
    assert any(0 < prompt["gate_rate"] < 1 for prompt in prompts)
    for prompt in prompts:
        assert prompt["gate_rate"] == pytest.approx(min(1, prompt["confidence"] / 0.95), abs=1e-5)
    for group in groups:
        check_advantages(group, min(1, confidence(group) / 0.95))


def test_the_leave_one_out_advantage_is_the_distance_from_the_others(place):
    """Catches a baseline that contains the rollout itself, which is too small by a quarter in a group of four."""
    _, _, groups = trained("Another advantage", place, "--gate never")  # so that the reward is what is compared
    assert any(rollout["advantage"] for group in groups for rollout in group)
    for group in groups:
        rewards = [rollout["score"]["reward"] for rollout in group]
        expected = [reward - (sum(rewards) - reward) / 3 for reward in rewards]
        assert [rollout["advantage"] for rollout in group] == pytest.approx(expected, abs=1e-3)


# The shipped base has never seen the second tool, so each rollout of the run begins with a look-up that is inserted, as
# `forced` rollouts begin with a translation. All tasks of a step of five are in one language: the word is of that one.
INSERT = """
import dataclasses, json, sys, sampler, train
from data import CALL, END_CALL, IM_END
from tiny.languages import WORLD

def rollout(model, tokenizer, tasks, group_size, translator, generator, sampling):
    arguments = {"word": WORLD[tasks[0].language].lexicon["lamp"]}
    call = json.dumps({"name": "look_up", "arguments": arguments}, ensure_ascii=False)
    sampler.encode_call = lambda tokenizer: tokenizer.encode([CALL, f"\\n{call}\\n", END_CALL, IM_END])
    forced = dataclasses.replace(sampling, mode="forced")
    return sampler.rollout(model, tokenizer, tasks, group_size, translator, generator, forced)

train.rollout = rollout
train.main(sys.argv[2:])
"""


def test_the_second_tool_is_parsed_run_priced_and_spliced_in(place):
    """Catches a tool whose calls do not parse, cost what a translation costs, or whose result is never read."""
    _, _, groups = trained("A second tool", place, "--price-word 0.05", begin=("-c", INSERT))
    tokenizer = load_tokenizer(ROOT / "tiny" / "base")
    for rollout in (rollout for group in groups for rollout in group):
        call = rollout["calls"][0]
        assert call["text"] == WORLD[rollout["task"]["language"]].lexicon["lamp"]
        assert (call["tool"], call["result"], call["cost"], call["error"]) == ("look_up", "lamp.", 0.05, None)
        inserted = [i for i, sampled in zip(rollout["ids"], rollout["sampled"], strict=True) if not sampled]
        assert "<tool_response>\nlamp.\n</tool_response>" in tokenizer.decode(inserted)
        assert rollout["sampled"][-1]  # it read the word, and went on


CALLS = """
import json, sys
from harness.options import Options
from tools import parse_call

print([schema["function"]["name"] for schema in Options(tool_schema=True).chat_format.tools])
print(*[repr(parse_call(json.dumps({"name": "look_up", "arguments": a}))) for a in json.loads(sys.argv[1])], sep="\\n")
"""


def test_the_second_tool_is_described_and_its_bad_calls_are_refused(place):
    """Catches a schema that the prompt lacks, and whole sentences that are translated at the price of a word."""
    arguments = [{"word": "mo"}, {"word": " mo\n"}, {}, {"word": "mo ki"}, {"word": 3}, {"text": "mo"}]
    names, *calls = python(forked("A second tool", place), "-c", CALLS, json.dumps(arguments)).splitlines()
    assert names == "['translate', 'look_up']"
    assert calls[:2] == ["ToolCall(text='mo', tool='look_up')"] * 2
    assert all(call.startswith("CallError(") and "word" in call for call in calls[2:])


def test_partial_credit_is_optimised_and_nothing_else(place):
    """Catches a gate, a table or a viewer that takes the reward for the verdict."""
    run, metrics, groups = trained("Partial credit", place)
    half = [r for group in groups for r in group if r["score"]["reward"] == 0.5]
    assert half and not any(rollout["score"]["correct"] for rollout in half)
    for group in groups:
        check_advantages(group, float(confidence(group) >= 0.95))
    rollouts = [rollout["score"] for group in groups for rollout in group]
    assert sum(m["accuracy"] for m in metrics) / 6 == pytest.approx(sum(s["correct"] for s in rollouts) / len(rollouts))
    for step, m in enumerate(metrics):
        own = [confidence(group) for group in groups[5 * step : 5 * step + 5]]
        assert m["confidence"] == pytest.approx(sum(own) / 5, abs=1e-5)
    out = io.StringIO()
    show(run / "rollouts.jsonl", len(rollouts), out)
    assert out.getvalue().count(", reward 0.50, cost ") == len(half)
    assert out.getvalue().count(", reward ") == sum(s["reward"] != s["correct"] for s in rollouts)


SEARCH = """
import json
from tiny import truth, world
from tiny.languages import WORLD, LexiconTranslator

found = [item for item in world.items("test", 240, "forking") if item.domain == "search"]
for item in found:
    for code in WORLD:
        text = world.render(item, code).question
        assert truth.answer(text, code) == item.answer, text
        assert LexiconTranslator().translate([text], code) == [item.english]
print(json.dumps({"levels": sorted({item.level for item in found}), "world": repr(WORLD)}))
"""


def test_a_new_domain_is_trained_on_and_changes_no_language(place):
    """Catches a domain that cannot be translated or has two answers, and a word that moves all the others."""
    found = json.loads(python(forked("A new domain", place), "-c", SEARCH))
    assert found == {"levels": ["easy", "hard"], "world": repr(WORLD)}
    _, metrics, groups = trained("A new domain", place, "--prompts 6 --log-rollouts 24")
    assert all("search" in step["domain"] and len(step["domain"]) == 6 for step in metrics)
    assert {group[0]["task"]["domain"] for group in groups[5::6]} == {"search"}
