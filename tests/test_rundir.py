"""The run directory: what it holds survives a kill at any moment, and names mean the policy that they should."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from helpers import files_under, hand_made, random_directory

import model as model_file
from data import Chat, Task, load_tokenizer
from harness import metrics
from harness.guard import Diverged
from harness.metrics import logged_rows, rollout_row
from harness.modeldir import CHECKSUMS
from harness.options import Neutral
from harness.rundir import Run, load_policy, policy_directory, write_directory, write_json
from reward import Score
from sampler import Rollout
from tools import Call


@dataclass(frozen=True)
class Options:
    steps: int = 10
    seed: int = 0
    out: Neutral[str] = ""
    resume: Neutral[bool] = False
    device: Neutral[str] = "cpu"
    max_rows: Neutral[int] = 4
    policy: tuple = ("a",)
    cost_weight: float = 0.1 + 0.2
    chat_format: ClassVar[Chat] = Chat()


def begin(directory, resume=False, **options) -> Run:
    run = Run(directory, Options(**options), resume)
    run.open(*fresh())
    return run


def take_step(run: Run, step: int, text: str = "") -> None:
    """Log a step with a rollout."""
    run.log_step(step, {"text": text}, [{"step": step, "text": text}], 0.5, None)


def train_a_little(model, optimizer, steps=3, seed=0):
    """A few optimizer steps that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        ids = torch.randint(0, 300, (2, 6), generator=generator)
        model.logits(model(ids)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def fresh():
    model = model_file.load(random_directory())
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)


# --- directories ------------------------------------------------------------------------------------------------


def test_a_directory_appears_complete_or_not_at_all(tmp_path):
    """Catches a checkpoint whose final name exists while it is still being written."""
    place = tmp_path / "step-000001"

    def write(directory):
        (directory / "weights").write_text("half")
        assert not place.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_directory(place, write)
    assert not place.exists()


def test_a_failed_write_leaves_the_old_directory_alone(tmp_path):
    """Catches a best policy that is deleted before its successor is on disk."""
    place = tmp_path / "best"
    write_directory(place, lambda d: (d / "weights").write_text("old"))

    def fail(directory):
        (directory / "weights").write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_directory(place, fail)
    assert (place / "weights").read_text() == "old"


def test_replacing_a_directory_leaves_nothing_of_the_old_one(tmp_path):
    """Catches files of two policies in one directory, and leftovers beside it."""
    place = tmp_path / "best"
    write_directory(place, lambda d: (d / "old-shard").write_text("old"))
    write_directory(place, lambda d: (d / "weights").write_text("new"))
    assert files_under(tmp_path) == {"best", "best/weights", "best/checksums.json"}


def test_leftovers_of_a_killed_write_are_ignored_and_swept_away(tmp_path):
    """Catches a half-written checkpoint that is resumed from, or that makes the next write fail."""
    killed, before = [], files_under(begin(tmp_path).path)

    def write(directory):
        (directory / "weights").write_text("half")
        killed.append(directory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_directory(tmp_path / "step-000002", write)
    assert killed[0].exists()
    assert Run(tmp_path, Options(), True).last_checkpoint() is None
    write_directory(tmp_path / "step-000002", lambda d: (d / "weights").write_text("whole"))
    new = {"step-000002", "step-000002/weights", "step-000002/checksums.json"}
    assert files_under(tmp_path) == before | new


def test_a_directory_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Catches a rename that a power cut makes durable before the weights are: a checkpoint of zeros."""
    events, fsync, rename = [], os.fsync, os.rename

    def spy(handle):
        events.append(os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), tmp_path))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(os, "rename", lambda *names: (events.append("rename"), rename(*names)))
    write_directory(tmp_path / "best", lambda d: (d / "weights").write_text("new"))
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    assert ".best.partial/weights" in before and before[-1] == ".best.partial"
    assert any("checksums.json" in name for name in before) and after == ["."]


# --- checkpoints ------------------------------------------------------------------------------------------------


def test_a_checkpoint_gives_back_weights_and_moments_bit_for_bit(tmp_path):
    """Catches moments that are saved rounded, under the wrong parameter, or without their step count."""
    model, optimizer = fresh()
    train_a_little(model, optimizer)
    run = begin(tmp_path / "run")
    take_step(run, 3)
    run.save_checkpoint(model, optimizer, random_directory())
    resumed = Run(tmp_path / "run", Options(), True)
    other, _ = load_policy(resumed.last_checkpoint())
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    resumed.open(other, other_optimizer)
    assert resumed.is_resumed and resumed.state == {"step": 3, "best": None}
    before, after = optimizer.state_dict(), other_optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"] and before["state"].keys() == after["state"].keys()
    for i, entry in before["state"].items():
        assert entry.keys() == after["state"][i].keys()
        assert all(torch.equal(value, after["state"][i][key]) for key, value in entry.items())
    for m, o in ((model, optimizer), (other, other_optimizer)):
        train_a_little(m, o, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_checkpoint_before_the_first_update_can_be_resumed(tmp_path):
    """Catches an optimizer without state, after steps that had no usable group, that cannot be saved or restored."""
    model, optimizer = fresh()
    run = begin(tmp_path / "run")
    take_step(run, 1)
    run.save_checkpoint(model, optimizer, random_directory())
    resumed = Run(tmp_path / "run", Options(), True)
    resumed.open(model, optimizer)
    assert optimizer.state_dict()["state"] == {}


def test_the_last_two_checkpoints_are_kept(tmp_path):
    """Catches a disk that fills up, and a directory without any checkpoint while one is replaced."""
    model, optimizer = fresh()
    run = begin(tmp_path / "run")
    for step in (2, 10, 100, 1000):
        take_step(run, step)
        run.save_checkpoint(model, optimizer, random_directory())
    assert sorted(path.name for path in run.path.glob("step-*")) == ["step-000100", "step-001000"]
    assert run.last_checkpoint().name == "step-001000"
    assert Run(run.path, Options(), True).state["step"] == 1000


# --- damage -----------------------------------------------------------------------------------------------------


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "one bit flipped": flip,
    "empty": lambda content: b"",
    "missing": None,
}
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "config.json", "tokenizer.json", "checksums.json")


def damage(path, how: str) -> None:
    if DAMAGES[how] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGES[how](path.read_bytes()))


def run_of_six_steps(directory) -> Run:
    """A run with checkpoints after steps 4 and 6, and a best/ of step 4."""
    model, optimizer = fresh()
    run = begin(directory)
    for step in range(1, 7):
        train_a_little(model, optimizer, steps=1, seed=step)
        if step == 4:
            run.keep_best(model, random_directory(), step, {"accuracy": 0.5})
        take_step(run, step)
        if step in (4, 6):
            run.save_checkpoint(model, optimizer, random_directory())
    return run


def steps_logged(directory) -> list[int]:
    return [json.loads(line)["step"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, capsys, name, how):
    """Catches training that goes on from damaged weights or moments, in silence, or ends in a traceback."""
    run = run_of_six_steps(tmp_path / "run")
    damage(run.path / "step-000006" / name, how)
    resumed = begin(tmp_path / "run", resume=True)
    assert resumed.state["step"] == 4 and resumed.last_checkpoint().name == "step-000004"
    assert steps_logged(run.path) == [1, 2, 3, 4]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("going on from ")]
    named = "step-000006: " if name == CHECKSUMS else f"step-000006: {name}"  # whose line of it was hit is chance
    assert "step-000004" in line and named in line


def seal_again(checkpoint) -> None:
    """Checksums that are right for what stands there."""
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in checkpoint.iterdir() if p.name != CHECKSUMS}
    (checkpoint / CHECKSUMS).write_text(json.dumps(sums))


STATES = [
    "{}",
    '{"step": "6", "best": null}',
    '{"step": 6.0, "best": null}',
    '{"step": true, "best": null}',
    '{"step": 7, "best": null}',
    '{"step": 6}',
    '{"step": 6, "best": {"accuracy": "high"}}',
    "[6]",
    "",
    "6",
]


@pytest.mark.parametrize("state", STATES)
def test_a_state_that_makes_no_sense_is_passed_over_too(tmp_path, capsys, state):
    """Catches a silent start at step 0, or a step that is text: both would cut the logs first."""
    run = run_of_six_steps(tmp_path / "run")
    (run.path / "step-000006" / "state.json").write_text(state)
    seal_again(run.path / "step-000006")
    resumed = begin(tmp_path / "run", resume=True)
    assert resumed.state["step"] == 4 and steps_logged(run.path) == [1, 2, 3, 4]
    assert "step-000006: state.json" in capsys.readouterr().out


def test_without_a_good_checkpoint_nothing_is_cut_and_the_error_names_them_all(tmp_path):
    """Catches a run that begins at 0 in silence, over logs that it has emptied."""
    run = run_of_six_steps(tmp_path / "run")
    damage(run.path / "step-000006" / "model.safetensors", "zeroed")
    damage(run.path / "step-000004" / "optimizer.safetensors", "missing")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError) as error:
        Run(tmp_path / "run", Options(), True)
    message = str(error.value)
    assert "no good checkpoint" in message and "\n" not in message
    assert "step-000006: model.safetensors is not what was saved" in message
    assert "step-000004: optimizer.safetensors is missing" in message
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_checkpoint_that_was_passed_over_does_not_count_as_one_of_the_two_that_are_kept(tmp_path):
    """Catches good checkpoints that are deleted in favour of a damaged one with a higher number."""
    run, (model, optimizer) = run_of_six_steps(tmp_path / "run"), fresh()
    damage(run.path / "step-000006" / "model.safetensors", "cut")
    resumed = begin(tmp_path / "run", resume=True)
    take_step(resumed, 5)
    resumed.save_checkpoint(model, optimizer, random_directory())
    assert sorted(path.name for path in run.path.glob("step-*")) == ["step-000004", "step-000005"]


@pytest.mark.parametrize("how", ["missing", "one bit flipped"])
def test_a_checkpoint_that_stands_in_for_the_best_policy_is_announced(tmp_path, capsys, how):
    """Catches an evaluation of the last weights under the name of the best, or of damaged ones."""
    run = run_of_six_steps(tmp_path / "run")
    assert policy_directory(run.path) == run.path / "best"
    if how == "missing":
        shutil.rmtree(run.path / "best")
    else:
        damage(run.path / "best" / "model.safetensors", how)
    capsys.readouterr()
    assert policy_directory(run.path) == run.path / "step-000006"
    (line,) = capsys.readouterr().out.splitlines()
    reason = "there is no policy in" if how == "missing" else "model.safetensors is not what was saved"
    assert "step-000006 stands in for the best policy: " in line and reason in line


def test_a_run_whose_policies_are_all_damaged_has_none(tmp_path):
    """Catches a damaged policy that is taken because there is no other."""
    run = run_of_six_steps(tmp_path / "run")
    for place in ("best", "step-000004", "step-000006"):
        damage(run.path / place / "model.safetensors", "one bit flipped")
    with pytest.raises(FileNotFoundError, match="no undamaged policy here.*best.*step-000006.*step-000004"):
        policy_directory(run.path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["weight", "moment"])
def test_what_is_not_finite_is_never_saved(tmp_path, what, value):
    """Catches NaN weights that become the newest checkpoint, and push the good ones out."""
    run, (model, optimizer) = begin(tmp_path / "run"), fresh()
    train_a_little(model, optimizer)
    norm = model.norm.weight
    (norm.data if what == "weight" else optimizer.state[norm]["exp_avg"])[3] = value
    with pytest.raises(Diverged, match="norm.weight.* is not finite, so it was not saved"):
        run.save_checkpoint(model, optimizer, random_directory())
    assert not list(run.path.glob("*step*"))
    if what == "weight":
        with pytest.raises(Diverged, match="norm.weight is not finite"):
            run.keep_best(model, random_directory(), 1, {"accuracy": 1.0})
        assert not (run.path / "best").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_never_logged(tmp_path, value):
    """Catches a NaN in a log: it is no JSON, and no other program reads the file."""
    run = begin(tmp_path / "run")
    with pytest.raises(Diverged, match=r"metrics\.jsonl is not finite"):
        run.log_step(1, {"tier": {"low": {"cost": value}}}, [], 0.5, None)
    with pytest.raises(ValueError):
        write_json(run.path / "report.json", {"cost": value})
    assert {path.name for path in run.path.iterdir()} == {"config.json"}


# --- beginning and resuming -------------------------------------------------------------------------------------


def test_the_saved_configuration_is_the_resolved_one(tmp_path):
    """Catches a config.json that holds only what was given on the command line, or rounds it."""
    run = begin(tmp_path / "run", seed=3)
    saved = json.loads((run.path / "config.json").read_text())
    assert saved == {
        "steps": 10,
        "seed": 3,
        "out": "",
        "resume": False,
        "device": "cpu",
        "max_rows": 4,
        "policy": ["a"],
        "cost_weight": 0.1 + 0.2,
    }


def test_an_existing_run_is_not_overwritten(tmp_path):
    """Catches a second start that silently mixes two runs in one directory."""
    begin(tmp_path / "run")
    with pytest.raises(ValueError, match="--resume"):
        Run(tmp_path / "run", Options(), False)


def test_resuming_what_is_not_there_is_an_error(tmp_path):
    """Catches a mistyped --out that starts from scratch."""
    with pytest.raises(ValueError, match="no run to resume"):
        Run(tmp_path / "run", Options(), True)
    assert not (tmp_path / "run").exists()


def test_resuming_with_other_options_names_them(tmp_path):
    """Catches a run that is half one experiment and half another."""
    begin(tmp_path / "run")
    with pytest.raises(ValueError, match="seed was 0, is 1.*policy was .*b"):
        Run(tmp_path / "run", Options(seed=1, policy=("b",)), True)
    for free in (dict(steps=20), dict(out="elsewhere"), dict(device="cuda"), dict(max_rows=1), dict(resume=True)):
        Run(tmp_path / "run", replace(Options(), **free), True)


def test_constructing_a_run_writes_nothing(tmp_path):
    """Catches a directory that is left behind by a start that fails later, at the model say."""
    Run(tmp_path / "run", Options(), False)
    assert files_under(tmp_path) == set()


# --- logs -------------------------------------------------------------------------------------------------------


def test_logs_are_cut_to_the_checkpoint_and_lose_a_half_written_line(tmp_path):
    """Catches steps that stand twice in a log after a resume, and a broken line that stays in its middle."""
    model, optimizer = fresh()
    run = begin(tmp_path / "run")
    for step in (1, 2, 3):
        take_step(run, step, "…")
        if step == 2:
            run.save_checkpoint(model, optimizer, random_directory())
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write('{"step": 4, "accu…'.encode()[:-1])  # in the middle of a character
    begin(tmp_path / "run", resume=True)
    for name, row in (
        ("metrics.jsonl", {"text": "…"}),
        ("rollouts.jsonl", {"text": "…"}),
        ("timings.jsonl", {"seconds": 0.5}),
    ):
        rows = [json.loads(line) for line in (run.path / name).read_text().split("\n")[:-1]]
        assert rows == [{"step": 1, **row}, {"step": 2, **row}]


def test_resuming_without_a_checkpoint_starts_the_logs_again(tmp_path):
    """Catches a run killed before its first checkpoint whose steps then stand twice in the log."""
    run = begin(tmp_path / "run")
    run.log("metrics.jsonl", {"step": 1})
    again = begin(tmp_path / "run", resume=True)
    assert not again.is_resumed and again.state == {"step": 0, "best": None}
    assert (run.path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("character", ["\u2028", "\x85", "\x0c", "\r", "\n"])
def test_line_separators_of_unicode_within_a_text_do_not_break_its_line(tmp_path, character):
    """Catches str.splitlines, which also splits at U+2028 and U+0085: rollouts would vanish on resuming."""
    model, optimizer = fresh()
    run = begin(tmp_path / "run")
    take_step(run, 1, f"a{character}b")
    run.save_checkpoint(model, optimizer, random_directory())
    begin(tmp_path / "run", resume=True)
    (line,) = (run.path / "rollouts.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert json.loads(line)["text"] == f"a{character}b"


# --- finding a policy -------------------------------------------------------------------------------------------


def test_a_policys_name_means_best_then_last_checkpoint_then_itself_then_base(tmp_path):
    """Catches an evaluation of the wrong weights, and a half-written directory that is taken for a policy."""

    def put(path):
        shutil.copytree(random_directory(), path)

    with pytest.raises(FileNotFoundError, match="no policy here"):
        policy_directory(tmp_path / "nowhere")
    run = tmp_path / "run"
    put(run / "base")
    assert policy_directory(run) == run / "base"
    put(run / ".best.partial")
    put(run / "step-000009")
    assert policy_directory(run) == run / "step-000009"
    put(run / "step-000010")
    assert policy_directory(run) == run / "step-000010"
    put(run / "best")
    assert policy_directory(run) == run / "best"
    os.remove(run / "best" / "tokenizer.json")
    assert policy_directory(run) == run / "step-000010"
    assert policy_directory(random_directory()) == random_directory()


def test_the_best_policy_replaces_the_one_before(tmp_path):
    """Catches a best/ that mixes the weights of one step with the figures of another."""
    run = begin(tmp_path / "run")
    for step in (1, 2):
        model, optimizer = fresh()
        train_a_little(model, optimizer, steps=step)
        run.keep_best(model, random_directory(), step, {"accuracy": 0.5 + step})
    best, tokenizer = load_policy(run.path)
    assert all(torch.equal(a, b) for a, b in zip(best.parameters(), model.parameters(), strict=True))
    assert json.loads((run.path / "best" / "state.json").read_text()) == {"step": 2, "accuracy": 2.5}
    assert tokenizer.control == load_tokenizer(random_directory()).control


@pytest.mark.parametrize("accuracy", [0.5, 0.4])
def test_a_policy_that_is_no_better_than_the_best_replaces_nothing(tmp_path, accuracy):
    """Catches a best/ that is the last of equals, or that a resumed run, having forgotten it, overwrites."""
    run, (model, optimizer) = begin(tmp_path / "run"), fresh()
    run.keep_best(model, random_directory(), 1, {"accuracy": 0.5})
    take_step(run, 1)
    run.save_checkpoint(model, optimizer, random_directory())
    kept = (run.path / "best" / "model.safetensors").read_bytes()
    train_a_little(model, optimizer)
    for again in (run, begin(tmp_path / "run", resume=True)):
        again.keep_best(model, random_directory(), 2, {"accuracy": accuracy})
        assert again.state["best"] == {"step": 1, "accuracy": 0.5}
    assert (run.path / "best" / "model.safetensors").read_bytes() == kept
    assert json.loads((run.path / "best" / "state.json").read_text()) == {"step": 1, "accuracy": 0.5}


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_an_error(tmp_path):
    """Catches a tokenizer.json of another model: an index error in the first step, or silently wrong words."""
    model, tokenizer = model_file.load(random_directory()), load_tokenizer(random_directory())
    small = model_file.Qwen3(replace(model.config, vocab_size=tokenizer.size - 1))
    model_file.save(small, tmp_path)
    shutil.copyfile(random_directory() / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=str(tokenizer.size)):
        load_policy(tmp_path)


# --- rows -------------------------------------------------------------------------------------------------------


def test_a_rollout_row_is_json_and_holds_every_part():
    """Catches a field that is lost on the way to the viewer."""
    tokenizer = load_tokenizer(random_directory())
    task = Task("t", "low-01", "low", "trained", "math", "a b?", ("x", "y"), "5", "c d?", "Be brief.", 1.5)
    rollout = hand_made(tokenizer, task, "5", called=True)
    row = json.loads(json.dumps(rollout_row(rollout, Score(1, 0.5, "5", True, 1.0, True), step=7, advantage=0.5)))
    assert row["step"] == 7 and row["task"]["choices"] == ["x", "y"] and row["score"]["used_tool"] is True
    assert (row["task"]["system"], row["task"]["cost_weight"], row["score"]["reward"]) == ("Be brief.", 1.5, 0.5)
    assert (tuple(row["ids"]), tuple(map(bool, row["sampled"]))) == (rollout.ids, rollout.sampled)
    assert row["calls"][0]["cost"] == 1.0 and row["stop"] == "end" and len(row["logps"]) == len(row["ids"])


def test_step_metrics_by_hand():
    """Catches means over groups where means over rollouts are meant, and parts that do not hold all their rollouts."""
    tasks = [
        Task(str(i), "low-01", tier, "trained", domain, "?", (), "5")
        for i, (tier, domain) in enumerate([("low", "math"), ("low", "logic"), ("high", "math")])
    ]
    scores = [
        Score(c, float(c), "5", k < 2, k, k > 0)
        for c, k in [(1, 0.0), (1, 2.0), (0, 0.0), (0, 0.0), (1, 1.0), (0, 1.0)]
    ]
    good, bad, down = (Call(None, "", 1.0, error, 0.0) for error in (None, "malformed", "engine"))
    calls = [(), (bad, bad), (), (), (good,), (bad, down)]
    rollouts = [
        Rollout(tasks[i // 2], (1,), (7,) * (i + 1), (True,) * (i + 1), (0.0,) * (i + 1), calls[i], "end")
        for i in range(6)
    ]
    gates, kappa = torch.tensor([1.0, 0, 0]), torch.tensor([1.0, 0, 0.5])
    shaped = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.75, 0.0]])
    found = metrics.step_metrics(tasks, rollouts, scores, kappa, gates, shaped, shaped - shaped.mean(1, keepdim=True))
    assert found["accuracy"] == 0.5 and found["tool_rate"] == 0.5 and found["cost"] == pytest.approx(4 / 6)
    assert found["gate_rate"] == pytest.approx(1 / 3) and found["confidence"] == 0.5
    assert found["tier"]["low"] == pytest.approx(
        dict(accuracy=0.5, tool_rate=0.25, cost=0.5, gate_rate=0.5, confidence=0.5, no_evidence_rate=0.0)
        | dict(reversed_rate=0.0, mixed_reversed_rate=None)
    )
    assert found["domain"]["math"]["cost"] == 1.0 and found["tier"]["high"]["no_evidence_rate"] == 1.0
    assert set(found["domain"]) == {"math", "logic"}
    assert found["no_evidence_rate"] == pytest.approx(1 / 3)
    assert found["reward"] == pytest.approx(2.75 / 6)
    assert (found["all_right_rate"], found["all_wrong_rate"]) == pytest.approx((1 / 3, 1 / 3))
    assert (found["unanswered"], found["tool_error_rate"]) == pytest.approx((1 / 6, 1 / 6))
    assert (found["malformed_calls"], found["tokens"]) == (3, 3.5)


def test_a_reversed_answer_is_a_right_one_with_a_call_that_is_pushed_down():
    """Catches answers without a call, wrong answers or failed calls that are counted, and a group of right answers that
    counts as mixed."""
    task = Task("0", "low-01", "low", "trained", "math", "?", (), "5")
    right, call, down = (
        Score(1, 1.0, "5", True, 0.0, False),
        Score(1, 1.0, "5", True, 1.0, True),
        Call(None, "", 1.0, "engine", 0.0),
    )
    wrong = Score(0, 0.0, "4", True, 1.0, True)
    scores = [right, call, call, right, call, wrong, call, call, wrong]
    calls = [()] * 8 + [(down,)]
    advantages = torch.tensor([[0.2, -0.1, -0.1], [-0.5, 0.1, -0.5], [-0.1, 0.1, 0.0]])
    rollouts = [Rollout(task, (1,), (7,), (True,), (0.0,), calls[i], "end") for i in range(9)]
    found = metrics.step_metrics([task] * 3, rollouts, scores, torch.ones(3), torch.ones(3), advantages, advantages)
    assert found["reversed_rate"] == pytest.approx(
        3 / 5
    )  # two of the first group, none of the second, one of the third
    assert found["mixed_reversed_rate"] == 0.0  # the second group alone: in the third the wrong answer is a failed call
    none = metrics.step_metrics([task], rollouts[:1], [right], torch.ones(1), torch.ones(1), *[advantages[:1, :1]] * 2)
    assert none["reversed_rate"] is None and none["mixed_reversed_rate"] is None


@pytest.mark.parametrize(
    "step, count, kept",
    [
        (1, 0, []),
        (1, 2, [0, 1]),
        (1, 3, [0, 1, 2]),
        (2, 3, [3, 4, 5]),
        (2, 6, [3, 4, 5, 9, 10, 11]),
        (6, 4, [3, 4, 5, 9]),
        (1, 12, list(range(12))),
        (3, 50, list(range(12))),
    ],
)
def test_whole_groups_are_logged_and_others_in_the_next_step(step, count, kept):
    """Catches rollouts without the others of their group, a log that is longer than asked for, one that keeps the same
    group in each step, and an advantage, a confidence or a gate of another rollout."""
    task = Task("t", "low-01", "low", "trained", "math", "?", (), "5")
    rollouts = [Rollout(task, (1,), (i,), (True,), (0.0,), (), "end") for i in range(12)]
    scores = [Score(1, 1.0, str(i), True, 0.0, False) for i in range(12)]
    kappa, gates = torch.tensor([0.0, 0.25, 0.5, 1.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    rows = logged_rows(rollouts, scores, torch.arange(12.0).view(4, 3), kappa, gates, step, count)
    assert [(row["ids"], row["score"]["answer"], row["advantage"]) for row in rows] == [([i], str(i), i) for i in kept]
    assert [(row["confidence"], row["gate"]) for row in rows] == [(float(kappa[i // 3]), i // 9) for i in kept]
    assert {row["step"] for row in rows} <= {step}
