"""What a run is kept from, in real processes: numbers that are none, a second process, signals at any time."""

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT, base_directory, call_main, command, files_under, hand_made, sums, write_tasks
from test_distributed import FORKSERVER, on_ranks, torchrun

import gspo
import model as model_file
import train
from data import load_tokenizer
from harness import distributed
from harness.guard import SIGNALS, Diverged, finite_states, interrupts, locked, stop_at_divergence
from harness.options import parse
from harness.rundir import load_policy
from harness.viewer import show
from sampler import Sampling, rollout
from tiny.languages import LexiconTranslator
from tiny.world import render

TASKS = [render(item, "low-01") for item in sums()[:4]]
SMALL = train.Config(prompts=4, group_size=3, minibatches=1, learning_rate=1e-2, max_new_tokens=100)


def batch():
    """Twelve hand-made rollouts and their advantages."""
    tokenizer = load_tokenizer(base_directory())
    rollouts = [hand_made(tokenizer, task, answer) for task in TASKS for answer in ("3", "12", "4 or perhaps 5")]
    return rollouts, torch.tensor([1.0, -0.5, -0.5] * 4)


# --- numbers ----------------------------------------------------------------------------------------------------

FAULTS = {
    "the loss is nan": lambda loss: loss * float("nan"),
    "the loss is inf": lambda loss: loss + float("inf"),  # and its gradient is finite
    "the gradient norm is inf": lambda loss: loss * 1e30 * 1e8,
    "the gradient norm is nan": lambda loss: loss + (loss - loss.detach()).abs().sqrt() * 0,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_loss_or_gradient_that_is_not_finite_stops_the_step_before_the_optimizer_moves(monkeypatch, fault):
    """Catches an optimizer that writes NaN into every weight, and moments that stay NaN for ever."""
    model = model_file.load(base_directory())
    optimizer = train.adamw(model, SMALL)
    train.update(model, optimizer, *batch(), SMALL, 400)  # there are moments
    before = [parameter.detach().clone() for parameter in model.parameters()]
    state, loss_of = str(optimizer.state_dict()), gspo.gspo_loss

    def faulty(*args):
        loss, metrics = loss_of(*args)
        return FAULTS[fault](loss), metrics

    monkeypatch.setattr(gspo, "gspo_loss", faulty)
    with pytest.raises(Diverged, match=fault):
        train.update(model, optimizer, *batch(), SMALL, 400)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert str(optimizer.state_dict()) == state


def test_a_weight_that_is_not_finite_is_named():
    """Catches an optimizer step of infinite length that is noticed in the next step, while sampling, or never."""
    model = model_file.load(base_directory())
    stop_at_divergence({"loss": 1.0}, model)
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[3, 5] = -float("inf")
    with pytest.raises(Diverged, match=r"the weight layers\.1\.mlp\.up_proj\.weight is not finite"):
        stop_at_divergence({"loss": 1.0}, model)


def test_states_that_are_not_finite_stop_the_sampling_before_a_token_is_drawn():
    """Catches "index 400 is out of bounds" on the CPU, and a lost device on the GPU."""
    model, tokenizer = load_policy(base_directory())
    with torch.no_grad():
        model.layers[0].mlp.down_proj.weight.mul_(1e38)
    arguments = (tokenizer, TASKS, 1, LexiconTranslator(), torch.Generator().manual_seed(0), Sampling(20))
    with pytest.raises(Diverged, match="states are not finite"), finite_states(model):
        rollout(model, *arguments)
    assert not model._forward_hooks


def diverging(directory, faulty_rank):
    """What each rank says when the loss of one is NaN."""
    model = distributed.shard(model_file.load(directory), torch.float32)
    gathered = []
    for number, weighs in ((float("nan"), True), (1.0, False)):
        mine = distributed.rank() == faulty_rank
        with torch.no_grad():
            local = distributed.parts(model)["norm.weight"]
            if local.numel() and not weighs and mine:
                local[0] = float("inf")
        try:
            stop_at_divergence({"loss": number if mine and weighs else 1.0}, None if weighs else model)
            gathered.append("")
        except Diverged as reason:
            gathered.append(str(reason))
    return distributed.gather([gathered])


def test_all_ranks_stop_for_what_one_of_them_has_seen(tmp_path):
    """Catches ranks that wait in a collective for one that has stopped."""
    for_all = ["the loss is nan", "the weight norm.weight is not finite"]
    assert on_ranks(2, tmp_path, diverging, base_directory(), 1) == [for_all, for_all]


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A run of small steps, with a checkpoint after each."""
    data = write_tasks(tmp_path_factory.mktemp("data") / "tasks.jsonl")
    given = f"""--model {base_directory()} --data {data} --lang-tier low --prompts 4 --group-size 6 --save-every 1
        --eval-every 2 --validation-items 4 --test-items 4 --max-new-tokens 100 --advantage-scale none"""
    return given.split()


def strict(path: Path) -> list[dict]:
    """The rows of a log, in which NaN and Infinity are no numbers."""

    def refuse(name):
        raise ValueError(name)

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_absurd_learning_rate_ends_with_a_line(options, tmp_path):
    """Catches a run whose newest checkpoint is NaN, and a traceback about an index in the sampler."""
    out = tmp_path / "run"
    done = command("train.py", *options, "--steps", 9, "--out", out, "--learning-rate", 1e9)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert last.startswith("stopped in step 1: the gradient norm is ") and "Last good checkpoint: none" in last
    assert files_under(out) == {"config.json", "bad-step-000001.jsonl"}
    assert len(strict(out / "bad-step-000001.jsonl")) == 4 * 6


def test_a_policy_that_overflows_ends_with_a_line(options, tmp_path):
    """Catches weights that are finite, and too large to compute with: the sampler would fail by an index."""
    model, base, out = model_file.load(base_directory()), tmp_path / "base", tmp_path / "run"
    with torch.no_grad():
        model.layers[0].mlp.down_proj.weight.mul_(1e38)
    model_file.save(model, base, like=base_directory())
    with pytest.raises(SystemExit) as stop:
        call_main(train.main, *options, "--model", base, "--steps", 9, "--out", out)
    assert stop.value.code.startswith("stopped in step 1: the policy's states are not finite. ")
    assert files_under(out) == {"config.json"}


def test_the_rollouts_of_a_bad_step_are_kept_and_can_be_looked_at(options, tmp_path, monkeypatch):
    """Catches a batch that is lost with the process: nobody could say what made the step bad."""
    loss_of, out = gspo.gspo_loss, tmp_path / "run"

    def faulty(*args):
        loss, metrics = loss_of(*args)
        return (loss * float("nan") if (out / "step-000002").exists() else loss), metrics

    monkeypatch.setattr(gspo, "gspo_loss", faulty)
    with pytest.raises(SystemExit) as stop:
        call_main(train.main, *options, "--steps", 9, "--out", out)
    step = len(strict(out / "metrics.jsonl")) + 1
    bad = out / f"bad-step-{step:06d}.jsonl"
    assert f"stopped in step {step}: the loss is nan." in stop.value.code and str(bad) in stop.value.code
    assert f"Last good checkpoint: {out}/step-{step - 1:06d}" in stop.value.code
    rows = strict(bad)
    assert len(rows) == 4 * 6 and {row["step"] for row in rows} == {step}
    assert rows[0].keys() == strict(out / "rollouts.jsonl")[0].keys()
    show(bad, 3, shown := io.StringIO())
    assert shown.getvalue().count(f"--- step {step} ") == 3
    load_policy(out / f"step-{step - 1:06d}")


# --- one process ------------------------------------------------------------------------------------------------


def in_a_process(printed: str, terminal: str, function, *arguments) -> None:
    """What a process of a test does: its output goes to a file, or to a terminal that it owns."""
    torch.set_num_threads(1)
    if terminal:
        os.setsid()  # the first terminal that it opens is its own
    handle = os.open(terminal or printed, os.O_RDWR | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    function(*arguments)


STARTED = []


@pytest.fixture(autouse=True)
def ended():
    """No process outlives its test, a stopped one included."""
    yield
    while STARTED:
        STARTED.pop().kill()


class Started:
    """A process of its own that runs a function; torch is there already, so it begins at once."""

    def __init__(self, directory, function, *arguments, terminal=""):
        directory.mkdir(exist_ok=True)
        self.place = directory / "printed.txt"
        self.process = FORKSERVER.Process(
            target=in_a_process, args=(str(self.place), terminal, function, *arguments), daemon=True
        )
        self.process.start()
        self.pid = self.process.pid
        STARTED.append(self.process)

    @property
    def printed(self) -> str:
        return self.place.read_text() if self.place.exists() else ""

    def wait_for(self, condition) -> None:
        for _ in range(12_000):
            if condition():
                return
            if not self.process.is_alive():
                break
            time.sleep(0.01)
        raise AssertionError(f"it did not come to that:\n{self.printed}")

    def send(self, number) -> None:
        os.kill(self.pid, number)

    def ends(self) -> int:
        """Its exit code."""
        self.process.join(60)
        return self.process.exitcode


def training(directory, out, options, *more, **where) -> Started:
    return Started(directory, train.main, [*map(str, (*options, "--out", out, *more))], **where)


def steps_logged(out) -> list[int]:
    return [row["step"] for row in strict(out / "metrics.jsonl")] if (out / "metrics.jsonl").exists() else []


def contents(out) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def assert_saved(out) -> None:
    """Every step that was logged is in a checkpoint, and nothing of the process is left."""
    steps = steps_logged(out)
    assert steps == list(range(1, len(steps) + 1)) and (out / f"step-{steps[-1]:06d}" / "checksums.json").exists()
    assert not list(out.glob(".*"))


def test_a_run_directory_belongs_to_one_process_until_that_is_stopped_by_sigterm(options, tmp_path):
    """Catches two processes that write into one log and delete each other's checkpoints; and a SIGTERM, which is what
    every scheduler sends, that loses the step, or that is not obeyed because it came twice."""
    out = tmp_path / "run"
    first = training(tmp_path, out, options, "--steps", 10_000)
    first.wait_for((out / "step-000001").exists)
    first.send(signal.SIGSTOP)
    before = contents(out)
    for more in ([], ["--resume"]):
        second = training(tmp_path / f"second{len(more)}", out, options, "--steps", 10_000, *more)
        assert second.ends() == 2
        (line,) = second.printed.splitlines()
        assert f"{out} belongs to process {first.pid} on {socket.gethostname()}" in line
        assert re.search(r"running since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", line)
    assert contents(out) == before
    first.send(signal.SIGTERM)
    first.send(signal.SIGCONT)
    time.sleep(0.01)
    first.send(signal.SIGTERM)
    assert first.ends() == 143 and "Traceback" not in first.printed and "--resume" in first.printed
    assert_saved(out)


def holding(directory) -> None:
    with locked(directory):
        time.sleep(99)


def test_the_system_lets_go_of_the_lock_of_a_process_that_was_killed(tmp_path):
    """Catches a lock that is a file: a killed run could never be resumed."""
    out = tmp_path / "run"
    holder = Started(tmp_path, holding, out)
    holder.wait_for(lambda: (out / ".lock").exists() and (out / ".lock").read_text())
    with pytest.raises(SystemExit) as stop, locked(out):
        pass
    assert stop.value.code == 2
    holder.send(signal.SIGKILL)
    assert holder.ends() == -signal.SIGKILL and (out / ".lock").exists()
    with locked(out):
        assert json.loads((out / ".lock").read_text())["pid"] == os.getpid()
    assert files_under(out) == set()


def wanting(directory) -> list[int]:
    """The exit code of each rank that wants a directory which is another's."""
    try:
        with locked(directory):
            return distributed.gather([0])
    except SystemExit as stop:
        return distributed.gather([stop.code])


def test_all_ranks_are_refused_where_the_one_that_writes_is(tmp_path):
    """Catches ranks that refuse each other, and ranks that wait for one that was refused."""
    assert on_ranks(2, tmp_path, wanting, tmp_path / "run") == [0, 0]
    with locked(tmp_path / "run"):
        (tmp_path / "again").mkdir()
        assert on_ranks(2, tmp_path / "again", wanting, tmp_path / "run") == [2, 2]


def test_a_start_that_fails_leaves_no_directory_and_a_finished_one_no_lock(tmp_path):
    """Catches an empty run directory after a mistyped option, and one that was there before and is taken away."""
    with locked(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert files_under(tmp_path) == set()
    (tmp_path / "old").mkdir()
    with locked(tmp_path / "old"):
        pass
    assert files_under(tmp_path) == {"old"}


def test_a_lock_file_that_its_last_holder_took_away_is_not_held(tmp_path, monkeypatch):
    """Catches a lock on a file that is no longer there: the next process would lock a new one, and both would run."""
    flock, ended = fcntl.flock, []

    def last_holder_ends_first(file, how):
        if not ended:
            ended.append(os.unlink(tmp_path / ".lock"))
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", last_holder_ends_first)
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def contending(directory, inside) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        for _ in range(200):
            with contextlib.suppress(SystemExit), locked(directory):
                os.mkdir(inside)  # fails if another one is inside
                os.rmdir(inside)


def test_of_many_processes_that_want_a_directory_at_once_one_has_it(tmp_path):
    """Catches a lock that two of them can take between the look and the taking."""
    (tmp_path / "run").mkdir()
    many = [Started(tmp_path, contending, tmp_path / "run", tmp_path / "inside") for _ in range(4)]
    assert [process.ends() for process in many] == [0] * 4, many[0].printed


# --- signals ----------------------------------------------------------------------------------------------------


def test_a_closed_terminal_ends_the_step_and_saves_it(options, tmp_path):
    """Catches a SIGHUP that loses the step, and an error of printing to a terminal that is gone, which does so too."""
    out = tmp_path / "run"
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    process = training(tmp_path, out, options, "--eval-every", 1, "--steps", 10_000, terminal=os.ttyname(theirs))

    def has_begun() -> bool:
        with contextlib.suppress(BlockingIOError):  # a terminal that nobody reads stops its writer
            os.read(ours, 1 << 16)
        return (out / "step-000001").exists()

    process.wait_for(has_begun)
    os.close(theirs)
    os.close(ours)
    assert process.ends() == 129
    assert_saved(out)


def test_what_was_to_be_ignored_is_ignored_and_so_is_what_comes_after_the_first(monkeypatch):
    """Catches a handler in the place of nohup's "ignore", and a job that dies of its second SIGTERM while it saves."""
    before = [signal.getsignal(number) for number in SIGNALS]
    nohup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert asked == []
            signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # else the next line ends the tests
            signal.raise_signal(signal.SIGTERM)
            assert asked == [signal.SIGTERM]
            assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # a Ctrl-C ends it all the same
    finally:
        signal.signal(signal.SIGHUP, nohup)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_ctrl_c_while_loading_ends_with_a_line_and_leaves_nothing(options, tmp_path):
    """Catches a traceback of thirty lines, and a directory that the next start takes for a run."""
    fifo, out, handle = tmp_path / "tasks.jsonl", tmp_path / "run", []
    os.mkfifo(fifo)  # whoever reads the tasks waits: it is loading for as long as we like
    process = training(tmp_path, out, options, "--data", fifo, "--steps", 2)

    def is_reading() -> bool:
        with contextlib.suppress(OSError):
            handle.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(handle)

    process.wait_for(is_reading)
    process.send(signal.SIGINT)
    assert process.ends() == 130
    os.close(handle[0])
    assert process.printed.strip().splitlines() == ["stopped by SIGINT: no step was lost"]
    assert not out.exists()


def test_a_signal_in_the_closing_evaluation_says_how_to_get_the_table(options, tmp_path):
    """Catches a traceback after the last step, and a user who trains again for a table.

    Also: a checkpoint that stands in for a best/ that is gone is announced before the table.
    """
    out = tmp_path / "run"
    options = [*options, "--data", "tiny", "--steps", 2]
    call_main(train.main, *options, "--out", out)
    shutil.rmtree(out / "best")
    process = training(tmp_path, out, options, "--resume", "--test-items", 100_000)
    process.wait_for(lambda: " stands in for the best policy: there is no policy in " in process.printed)
    process.send(signal.SIGINT)
    assert process.ends() == 130 and "Traceback" not in process.printed
    last = process.printed.strip().splitlines()[-1]
    assert last.startswith("stopped by SIGINT: the run is complete; ")
    assert f"python eval.py --policy {base_directory()} --policy {out} makes the table" in last


def stopping(options, out, number):
    """The exit code of each rank of a run in which one of them, not the one that writes, gets a signal."""

    def send() -> None:
        while not (out / "step-000001").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    if distributed.rank() == 1:
        threading.Thread(target=send, daemon=True).start()
    try:
        train.train(parse(train.Config, "", [*options, "--out", str(out)]), "cpu")
    except SystemExit as stop:
        return distributed.gather([stop.code])


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_all_ranks_end_their_step_for_a_signal_to_one(options, tmp_path, number, code):
    """Catches a rank that leaves the others waiting, and an exit code that says success or something else."""
    out = tmp_path / "run"
    assert on_ranks(2, tmp_path, stopping, [*options, "--steps", "10000"], out, number) == [code, code]
    assert_saved(out)


def test_two_ranks_end_their_step_on_a_sigterm_to_torchrun(options, tmp_path):
    """Catches a rank that waits for the other, or that dies of the signal, which torchrun hands on, unsaved."""
    out = tmp_path / "run"
    process = torchrun(*options, "--steps", 10_000, "--out", out)
    while not (out / "step-000001").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and printed.count("stopped after step") == 1
    assert "another rank is gone" not in printed
    assert_saved(out)


# --- the page ---------------------------------------------------------------------------------------------------


def test_every_test_that_the_page_on_reliability_names_exists():
    """Catches a promise whose test was renamed or deleted."""
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    named, defined = set(re.findall(r"`(test_\w+)`", page)), set(re.findall(r"^def (test_\w+)", tests, re.MULTILINE))
    assert len(named) > 40 and named <= defined
    mine = [ROOT / "tests" / name for name in ("test_guard.py", "test_modeldir.py")]
    tested = {name for path in mine for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    unnamed = {
        "test_the_checks_take_what_this_code_writes",
        "test_every_test_that_the_page_on_reliability_names_exists",
    }
    assert tested - named == unnamed
