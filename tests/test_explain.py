"""train.py --explain: the group that training would see, with the figures that training computes."""

import importlib
import json
import re
from dataclasses import asdict, replace

import pytest
import torch
from helpers import base_directory, call_main, hand_made, sums

import gspo
import train
from data import load_tokenizer
from harness.explain import Group, explain, lesson_of, logged, sampled, story
from harness.metrics import logged_rows
from harness.rundir import load_policy
from reward import score
from tiny.languages import LexiconTranslator
from tiny.world import render

TOKENIZER = load_tokenizer(base_directory())
TASK = render(sums()[0], "low-01")
CONFIG = train.Config(
    model=str(base_directory()), lang_tier="low", prompts=4, group_size=4, explain="first", gate="always"
)


def made(config=CONFIG):
    """A group of a right and a wrong answer, with and without a call."""
    rollouts = [hand_made(TOKENIZER, TASK, TASK.answer if i < 3 else "no", called=i % 2 == 0) for i in range(4)]
    longest = max(len(r.ids) for r in rollouts)
    logps = torch.zeros(4, longest)
    return Group(rollouts, [score(r, TOKENIZER) for r in rollouts], logps, None, "by hand")


@pytest.mark.parametrize("ratio, terms", [("token", False), ("sequence", True)])
@pytest.mark.parametrize("form", gspo.FORMS)
def test_a_tokens_weight_is_its_advantage_over_what_is_averaged(ratio, terms, form):
    """Catches a weight with the sign of the loss, one of another form's advantage, and one that counts inserted ids."""
    group, config = made(), replace(CONFIG, ratio=ratio, advantage=form)
    lesson = lesson_of(group, config)
    for i, r in enumerate(group.rollouts):
        expected = float(lesson.advantages[form][0, i]) / 4 / (sum(r.sampled) if terms else 1)
        drawn = torch.tensor(r.sampled)
        assert lesson.weights[i, : len(r.ids)][drawn].tolist() == pytest.approx([expected] * sum(r.sampled), abs=1e-6)
        assert not lesson.weights[i, : len(r.ids)][~drawn].any() and not lesson.weights[i, len(r.ids) :].any()


def test_the_lesson_is_that_of_a_training_step(monkeypatch):
    """Catches an explanation that computes something else than train_step does."""
    group, logs = made(), []
    monkeypatch.setattr(train, "sample", lambda *_: (group.rollouts, []))
    monkeypatch.setattr(train, "update", lambda model, optimizer, rollouts, A, *_: logs.append(A) or {"updates": 0})
    model, tokenizer = load_policy(base_directory())
    for config in (CONFIG, replace(CONFIG, gate="threshold", advantage="decoupled", penalty="subtract")):
        train.train_step(model, tokenizer, train.adamw(model, config), [TASK], None, config, 0)
        assert logs.pop().tolist() == lesson_of(group, config).advantages[config.advantage][0].tolist()


def test_the_group_is_one_that_training_would_sample():
    """Catches an example that the run never sees: other tasks, other uniform numbers, another temperature."""
    translator = LexiconTranslator(CONFIG.noise)
    group, tokenizer = sampled(CONFIG, translator, train.generator)
    model, _ = load_policy(base_directory())
    tasks = train.training_tasks(CONFIG, CONFIG.tiers, CONFIG.seed)(0, CONFIG.prompts)
    rollouts, _ = train.sample(model, tokenizer, tasks, translator, CONFIG, 0)
    groups = [rollouts[i : i + 4] for i in range(0, 16, 4)]
    assert [r.ids for r in group.rollouts] in [[r.ids for r in some] for some in groups]
    first = group.rollouts[0]
    assert group.logps[0, : len(first.ids)].tolist() == pytest.approx(list(first.logps), abs=1e-4)


def test_every_paragraph_names_a_function_and_its_stage():
    """Catches a function that was renamed, and a stage that it has left."""
    text = "\n".join(story(made(), lesson_of(made(), CONFIG), CONFIG, TOKENIZER))
    named = re.findall(r"^\[([\d, ]+)\] (\w+)\.(\w+)", text, flags=re.MULTILINE)
    assert [stage for stage, _, _ in named] == ["1", "1", "2, 4", "3", "5", *["7"] * 5, "6", "7", "7", "9"]
    for stages, module, name in named:
        there = importlib.import_module(module)
        assert hasattr(there, name) and there.__doc__.startswith(f"[{stages.split(', ')[-1]}]")
    assert all(len(line) <= 120 for line in text.splitlines())
    assert "1, 3: " in text and "⟦" in text and TASK.question in text.replace("\n     ", " ")


@pytest.fixture
def log(tmp_path):
    """A run directory with two logged groups in step 3."""
    (tmp_path / "best").symlink_to(base_directory())
    other = render(sums()[1], "low-01")
    rollouts = [*made().rollouts, *(hand_made(TOKENIZER, other, other.answer) for _ in range(4))]
    scores = [score(r, TOKENIZER) for r in rollouts]
    advantages = torch.cat([lesson_of(made(), CONFIG).advantages["joint"], torch.zeros(1, 4)])
    rows = logged_rows(rollouts, scores, advantages, torch.zeros(2), torch.ones(2), 3, 8)
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps(asdict(replace(CONFIG, explain="", cost_weight=0.5))))
    return tmp_path / "rollouts.jsonl"


def test_a_logged_group_is_explained_as_its_run_was_configured(log):
    """Catches an explanation with the command's cost weight, and a rollout that does not come back from its row."""
    config, group, _ = logged(train.Config(explain=f"{log}:3:{TASK.id}"))
    assert (config.cost_weight, config.group_size) == (0.5, 4)
    assert [(r.ids, r.sampled, r.calls, r.task) for r in group.rollouts] == [
        (r.ids, r.sampled, r.calls, r.task) for r in made().rollouts
    ]
    assert group.scores == made().scores
    assert explain(train.Config(explain=f"{log}:3"), None, None).count("[7]") == 7


@pytest.mark.parametrize(
    "rest, says",
    [(":4", "holds no rollout of step 4"), (":3:nothing", "of step 3 there are"), ("", "FILE:STEP:TASK was expected")],
)
def test_a_group_that_is_not_there_is_one_line(log, capsys, rest, says):
    """Catches a traceback, or the explanation of another group."""
    with pytest.raises(SystemExit) as stop:
        call_main(train.main, "--explain", f"{log}{rest}")
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1 and says in line


def test_half_a_group_is_not_explained(log):
    """Catches advantages of the rollouts that happen to be in the log."""
    log.write_text("".join(f"{line}\n" for line in log.read_text(encoding="utf-8").splitlines()[:3]), encoding="utf-8")
    with pytest.raises(ValueError, match="3 of the group's 4 rollouts are logged; --log-rollouts 4"):
        logged(train.Config(explain=f"{log}:3"))


def test_the_command_line_takes_it_with_and_without_a_value(capsys):
    """Catches --explain that swallows the option behind it."""
    words = ["--explain", "--lang-tier", "low", "--model", base_directory(), "--prompts", 4, "--group-size", 2]
    call_main(train.main, *words, "--max-new-tokens", 40)
    assert "One prompt and its 2 rollouts: group" in capsys.readouterr().out
