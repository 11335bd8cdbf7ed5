"""The run directory: configuration, logs, checkpoints that survive a kill, and where to find a policy.

A directory is written beside its place and renamed into it, so what carries its final name is complete. Logs are
appended line by line; on resuming, lines from after the checkpoint are dropped, because those steps are run again, to
the same bits. Of several ranks only one writes, but all must call the methods that save.
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import model as model_file
from data import load_tokenizer
from harness import distributed
from harness.metrics import rounded
from harness.options import deciding
from model import Qwen3


class Run:
    """A run directory that one process writes."""

    def __init__(self, directory, config, resume: bool):
        """Begin a run, or find the last checkpoint of one. Writes nothing yet.

        Raises ValueError if there is a run already and `resume` is false, or if the options differ from those of the
        run to be resumed in anything that decides a result, but for `steps`.
        """
        self.path, self.config, self.is_writer = Path(directory), config, distributed.rank() == 0
        self.state = {"step": 0, "best": None}  # steps done, and the summary of what best/ holds
        self.is_resumed = False  # from a checkpoint
        saved = self.path / "config.json"
        if not resume:
            if saved.exists():
                raise ValueError(f"{directory} holds a run already: --resume goes on with it, --out names another")
            return
        if not saved.is_file():
            raise ValueError(f"{directory}: no run to resume (config.json is missing)")
        before, now = json.loads(saved.read_text()), json.loads(json.dumps(asdict(config)))
        different = [
            f"{name} was {before.get(name)!r}, is {now[name]!r}"
            for name in deciding(type(config))
            if name != "steps" and before.get(name) != now[name]
        ]
        if different:
            raise ValueError(f"{directory}: the options differ from the run's: {'; '.join(different)}")
        if checkpoint := self.last_checkpoint():
            self.state, self.is_resumed = json.loads((checkpoint / "state.json").read_text()), True

    def last_checkpoint(self) -> Path | None:
        return max(self.path.glob("step-*[0-9]"), default=None)

    def open(self, model: Qwen3, optimizer) -> None:
        """Create the directory, write the configuration, cut the logs to the checkpoint and restore its moments."""
        if self.is_resumed:
            self._restore_optimizer(model, optimizer)
        distributed.barrier()  # all ranks have seen what was there
        if not self.is_writer:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "config.json", asdict(self.config))
        for old in self.path.glob(".*.old"):  # killed between two renames: what was there is still the best there is
            place = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
            if not place.exists():
                os.rename(old, place)
        for name in ("metrics.jsonl", "timings.jsonl", "rollouts.jsonl"):
            log = self.path / name
            if log.exists():
                kept = [line for line in read_lines(log) if _before(line, self.state["step"])]
                partial = log.with_name(f".{name}.partial")
                partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
                os.replace(partial, log)

    def log(self, name: str, row: dict) -> None:
        """Append one line to a log and hand it to the system: a line outlives this process, not a power cut."""
        with open(self.path / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def log_step(self, step: int, metrics: dict, rollouts: list[dict], seconds: float, translator) -> None:
        """A step is done: its lines in the three logs. Nothing in metrics.jsonl differs between two runs of one seed:
        seconds, and what a translator's meters show by then, are in timings.jsonl."""
        self.state["step"] = step
        if not self.is_writer:
            return
        self.log("metrics.jsonl", rounded({"step": step, **metrics}))
        self.log("timings.jsonl", rounded({"step": step, "seconds": round(seconds, 3), **_meters(translator)}))
        for row in rollouts:
            self.log("rollouts.jsonl", row)

    def save_checkpoint(self, model: Qwen3, optimizer, source) -> None:
        """`step-000040/`: a Hugging Face directory like `source`, plus optimizer and state. The two newest are kept."""
        names = [name for name, _ in model.named_parameters()]
        policy = distributed.whole_model(model)
        moments = distributed.whole(
            {
                f"{names[i]}.{key}": value
                for i, entry in optimizer.state_dict()["state"].items()
                for key, value in entry.items()
            }
        )
        if not self.is_writer:
            return

        def write(directory: Path) -> None:
            model_file.save(policy, directory, like=source)
            tensors = {name: value.contiguous() if value.ndim else value.reshape(1) for name, value in moments.items()}
            save_file(tensors, directory / "optimizer.safetensors")
            write_json(directory / "state.json", self.state)

        write_directory(self.path / f"step-{self.state['step']:06d}", write)
        for old in sorted(self.path.glob("step-*[0-9]"))[:-2]:
            shutil.rmtree(old)

    def _restore_optimizer(self, model: Qwen3, optimizer) -> None:
        """Put the saved moments back; the parameters have the optimizer's order."""
        state = {}
        place = {name: (i, parameter) for i, (name, parameter) in enumerate(model.named_parameters())}
        for full_name, tensor in load_file(self.last_checkpoint() / "optimizer.safetensors").items():
            name, key = full_name.rsplit(".", 1)
            i, parameter = place[name]
            part = tensor.reshape(()) if key == "step" else distributed.split_like(tensor, parameter)
            state.setdefault(i, {})[key] = part
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    def keep_best(self, model: Qwen3, source, step: int, validation: dict) -> None:
        """`best/`: the policy with the highest validation utility so far."""
        if self.state["best"] is not None and validation["utility"] <= self.state["best"]["utility"]:
            return
        self.state["best"] = {"step": step, **validation}
        policy = distributed.whole_model(model)
        if not self.is_writer:
            return

        def write(directory: Path) -> None:
            model_file.save(policy, directory, like=source)
            write_json(directory / "state.json", self.state["best"])

        write_directory(self.path / "best", write)

    def write_report(self, compared: dict, result: Path, translator, seconds: float) -> None:
        """`report.json`: the closing comparison, what is known of the result, seconds, and the translator's meters."""
        if self.is_writer:
            best = json.loads((result / "state.json").read_text())
            found = {"groups": compared, "result": best, "seconds": round(seconds, 1), **_meters(translator)}
            write_json(self.path / "report.json", found)


def write_directory(path: Path, write) -> None:
    """Let `write(directory)` fill a directory beside `path`, then rename it into place."""
    partial, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    if path.exists():
        os.rename(path, old)
    os.rename(partial, path)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_lines(path: Path) -> list[str]:
    """The lines of a log, a half-written last one included. (str.splitlines also splits at U+2028 and U+0085.)"""
    return path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")


def _meters(translator) -> dict:
    """What a translator that counts has counted."""
    return {"translator": translator.meters} if hasattr(translator, "meters") else {}


def _before(line: str, step: int) -> bool:
    """Whether a log line is whole and from a step that the checkpoint has seen."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def policy_directory(path) -> Path:
    """The model directory that a policy's name means: a run's `best/`, else its last checkpoint, else the path itself
    or its `base/`. FileNotFoundError if there is none."""
    path = Path(path)
    candidates = [path / "best", *sorted(path.glob("step-*[0-9]"), reverse=True), path, path / "base"]
    for candidate in candidates:
        if (candidate / "config.json").is_file() and (candidate / "tokenizer.json").is_file():
            return candidate
    raise FileNotFoundError(f"{path}: no policy here (a model directory, or a run that has saved one)")


def load_policy(path, device: str = "cpu", dtype: torch.dtype = torch.float32):
    """(model, tokenizer) of a policy. ValueError if the two do not fit, or if there is no such device."""
    directory = policy_directory(path)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch finds no such device here")
    model, tokenizer = model_file.load(directory, device, dtype), load_tokenizer(directory)
    if tokenizer.size > model.config.vocab_size:
        sizes = f"tokenizer.json has {tokenizer.size} ids, the model {model.config.vocab_size} rows"
        raise ValueError(f"{directory}: {sizes}")
    return model, tokenizer
