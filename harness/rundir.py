"""The run directory: configuration, logs, checkpoints that survive a kill, and where to find a policy.

A directory is written beside its place, with the checksums of its files, and renamed into it. So what carries its final
name is complete, and what was damaged later is found out. Logs are appended line by line; on resuming, lines from after
the checkpoint are dropped, because those steps are run again, to the same bits. Of several ranks only one writes, but
all must call the methods that save.
"""

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import model as model_file
from data import Tokenizer, load_tokenizer
from harness import distributed, lora, template
from harness.escape import in_line
from harness.guard import Diverged
from harness.metrics import rounded
from harness.modeldir import damage_of, is_finite, shorten, stored_dtype, sync, write_directory, write_json
from harness.options import deciding, typed
from model import Qwen3

LOGS = ("metrics.jsonl", "timings.jsonl", "rollouts.jsonl")

# Options that decide a result and may change all the same: how far a run goes, how its sums are cut, when it looks.
MAY_CHANGE = ("steps", "micro_tokens", "eval_every")


class Run:
    """A run directory that one process writes."""

    def __init__(self, directory, config, resume: bool):
        """Begin a run, or find the last good checkpoint of one. Writes nothing yet.

        Raises ValueError if there is a run already and `resume` is false, if the options differ from those of the run
        to be resumed in anything that decides a result, but for MAY_CHANGE, or if all of its checkpoints are damaged.
        """
        self.path, self.config, self.is_writer = Path(directory), config, distributed.rank() == 0
        self.state: dict = {"step": 0, "best": None}  # steps done, and the summary of what best/ holds
        self.is_resumed = False  # from a checkpoint
        self._last_good: Path | None = None
        saved = self.path / "config.json"
        if not resume:
            if saved.exists():
                raise ValueError(f"{directory} holds a run already: --resume goes on with it, --out names another")
            return
        if not saved.is_file():
            raise ValueError(f"{directory}: no run to resume (config.json is missing)")
        now, defaults = (json.loads(json.dumps(asdict(options))) for options in (config, type(config)()))
        before = defaults | json.loads(saved.read_text())  # a run may be older than an option
        different = [name for name in deciding(type(config)) if not _goes_on(name, before.get(name), now[name])]
        if different:
            told = "; ".join(f"{name} was {before.get(name)!r}, is {now[name]!r}" for name in different)
            raise ValueError(f"{directory}: the options differ from the run's: {told}")
        for name in (name for name in MAY_CHANGE if name in now and before.get(name) != now[name]):
            print(f"going on with {typed(name, now[name])}, which was {typed(name, before.get(name))}")
        self._find_checkpoint()

    def _find_checkpoint(self) -> None:
        """Take the state of the newest checkpoint that is sound, and say so. ValueError if there are only others."""
        damaged = []
        for checkpoint in sorted(self.path.glob("step-*[0-9]"), reverse=True):
            damage, state = damage_of(checkpoint, must_be_sealed=True), {}
            if not damage:
                damage, state = _read_state(checkpoint)
            if not damage:
                self._last_good, self.state, self.is_resumed = checkpoint, state, True
                passed = f", the last good checkpoint; passed over {'; '.join(damaged)}" if damaged else ""
                print(in_line(f"going on from {checkpoint}{passed}"))
                return
            damaged.append(f"{checkpoint.name}: {damage}")
        if damaged:
            raise ValueError(f"{self.path}: no good checkpoint to go on from: {'; '.join(damaged)}")

    def last_checkpoint(self) -> Path | None:
        """The one that the run was resumed from, or that it has saved since."""
        return self._last_good

    def load_policy(self, base, device: str) -> tuple[Qwen3, Tokenizer]:
        """(model, tokenizer) to be trained: of the checkpoint that the run goes on from, else of `base`, in fp32.

        With --lora-rank that is always `base`, in the dtype of the computation; `open` gives it its adapters back.
        """
        if not self.config.lora_rank:
            return load_policy(self.last_checkpoint() if self.is_resumed else base, device)
        model, tokenizer = load_policy(base, device, getattr(torch, self.config.dtype))
        return lora.adapt(model, self.config.lora_rank, self.config.lora_alpha, self.config.seed), tokenizer

    def open(self, model: Qwen3, optimizer) -> None:
        """Create the directory, write the configuration, cut the logs to the checkpoint and restore its moments."""
        if self.is_resumed:
            if lora.is_adapted(model):
                lora.restore(model, self.last_checkpoint())
            self._restore_optimizer(model, optimizer)
        distributed.barrier()  # all ranks have seen what was there
        with self._writing("config.json and the logs were"):
            if self.is_writer:
                self.path.mkdir(parents=True, exist_ok=True)
                write_json(self.path / "config.json", asdict(self.config))
                self._cut_logs()

    def _cut_logs(self) -> None:
        for old in self.path.glob(".*.old"):  # killed between two renames: what was there is still the best there is
            place = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
            if not place.exists():
                os.rename(old, place)
        for name in LOGS:
            log = self.path / name
            if log.exists():
                partial = log.with_name(f".{name}.partial")
                with open(partial, "w", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in read_lines(log) if _before(line, self.state["step"]))
                os.replace(partial, log)

    @contextlib.contextmanager
    def _writing(self, what: str):
        """Around what is written: a full, lost or read-only disk ends the run with a line, on all ranks, which must all
        come here. What is half-written has no final name, or is a half line, and counts for nothing on resuming."""
        reason = ""
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else in_line(str(error))
        if not distributed.any_rank(reason):
            return
        if not self.is_writer:
            sys.exit(1)
        if self._last_good:
            advice = f"last good checkpoint: {self._last_good}; with room on the disk, --resume goes on from there"
        elif (self.path / "config.json").exists():
            advice = "there is no checkpoint yet; with room on the disk, --resume begins again"
        else:
            advice = "nothing was begun"
        sys.exit(f"stopped after step {self.state['step']}: {self.path}: {what} not written ({reason}); {advice}")

    def log(self, name: str, row: dict) -> None:
        """Append one line to a log and hand it to the system: a line outlives this process, and a power cut from the
        next checkpoint on. Diverged if a number is not finite."""
        line = _line(name, row)
        with open(self.path / name, "a", encoding="utf-8") as file:
            file.write(line)

    def log_step(self, step: int, metrics: dict, rollouts: list[dict], seconds: float, translator) -> None:
        """A step is done: its lines in the three logs. Nothing in metrics.jsonl differs between two runs of one seed:
        seconds, and what a translator's meters show by then, are in timings.jsonl."""
        rows = [("metrics.jsonl", rounded({"step": step, **metrics}))]
        rows += [("timings.jsonl", rounded({"step": step, "seconds": round(seconds, 3), **_meters(translator)}))]
        rows += [("rollouts.jsonl", row) for row in rollouts]
        for name, row in rows:
            _line(name, row)  # Diverged, on all ranks, before any of them is written
        self.state["step"] = step
        with self._writing("the step's lines in the logs were"):
            for name, row in rows if self.is_writer else []:
                self.log(name, row)

    def save_checkpoint(self, model: Qwen3, optimizer, source) -> None:
        """`step-000040/`: a Hugging Face directory like `source`, plus optimizer and state. The two newest are kept.

        Diverged, and nothing is written, if a weight or a moment is not finite.
        """
        names = list(distributed.trained(model))
        policy = distributed.whole_model(model)
        moments = distributed.whole(
            {
                f"{names[i]}.{key}": value
                for i, entry in optimizer.state_dict()["state"].items()
                for key, value in entry.items()
            }
        )
        _require_finite(policy, moments)
        place = self.path / f"step-{self.state['step']:06d}"

        def write(directory: Path) -> None:
            model_file.save(policy, directory, like=source)
            template.keep(directory, self.config.chat_format)
            tensors = {name: value.contiguous() if value.ndim else value.reshape(1) for name, value in moments.items()}
            save_file(tensors, directory / "optimizer.safetensors")
            if lora.is_adapted(model):
                lora.save(model, directory)
            write_json(directory / "state.json", self.state)

        with self._writing(f"{place.name} was"):
            if self.is_writer:
                for name in LOGS:
                    if (self.path / name).exists():
                        sync(self.path / name)
                write_directory(place, write)
                self._last_good = place
                self._delete_checkpoints_but(place)

    def _delete_checkpoints_but(self, newest: Path) -> None:
        """Keep this one and the one before; later ones were damaged, and passed over."""
        found = sorted(self.path.glob("step-*[0-9]"))
        kept = [path for path in found if path.name <= newest.name][-2:]
        for old in set(found) - set(kept):
            shutil.rmtree(old)

    @contextlib.contextmanager
    def until_divergence(self):
        """Around the steps: Diverged ends the run with a line, the step's rollouts in `bad-step-000012.jsonl`."""
        try:
            yield
        except Diverged as reason:
            if not self.is_writer:
                sys.exit(1)
            step, kept = self.state["step"] + 1, ""
            if reason.rows:
                bad = self.path / f"bad-step-{step:06d}.jsonl"
                lines = [json.dumps(_without_nan(row), ensure_ascii=False) + "\n" for row in reason.rows]
                try:
                    bad.write_text("".join(lines), encoding="utf-8")
                    kept = f"; its rollouts are in {bad}"
                except OSError as error:
                    kept = f"; nor could its rollouts be kept ({error.strerror})"
            last = self._last_good or "none"
            sys.exit(
                f"stopped in step {step}: {reason}. Nothing of the step was saved{kept}. Last good checkpoint: {last}. "
                f"{'--replay shows which. ' if 'rollouts are in' in kept else ''}"
                "To resume would come to the same: begin anew with a lower --learning-rate"
            )

    def _restore_optimizer(self, model: Qwen3, optimizer) -> None:
        """Put the saved moments back; the parameters have the optimizer's order."""
        state = {}
        place = {name: (i, parameter) for i, (name, parameter) in enumerate(distributed.trained(model).items())}
        for full_name, tensor in load_file(self.last_checkpoint() / "optimizer.safetensors").items():
            name, key = full_name.rsplit(".", 1)
            i, parameter = place[name]
            part = tensor.reshape(()) if key == "step" else distributed.split_like(tensor, parameter)
            state.setdefault(i, {})[key] = part
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    def keep_best(self, model: Qwen3, source, step: int, validation: dict) -> None:
        """`best/`: the policy with the highest validation accuracy so far, in `source`'s dtype. Diverged as above."""
        if self.state["best"] is not None and validation["accuracy"] <= self.state["best"]["accuracy"]:
            return
        self.state["best"] = {"step": step, **validation}
        policy = distributed.whole_model(model)
        _require_finite(policy)

        def write(directory: Path) -> None:
            model_file.save(_as_stored(policy, source), directory, like=source)
            template.keep(directory, self.config.chat_format)
            write_json(directory / "state.json", self.state["best"])

        with self._writing("best/ was"):
            if self.is_writer:
                write_directory(self.path / "best", write)

    def write_report(self, compared: dict, result: Path, translator, seconds: float) -> None:
        """`report.json`: the closing comparison, what is known of the result, seconds, and the translator's meters."""
        best = json.loads((result / "state.json").read_text()) if self.is_writer else None
        found = {"groups": compared, "result": best, "seconds": round(seconds, 1), **_meters(translator)}
        with self._writing("report.json was"):
            if self.is_writer:
                write_json(self.path / "report.json", found)


def _goes_on(name: str, before, now) -> bool:
    """Whether a run may be resumed with this value: the same one, another of MAY_CHANGE, or the same translator at
    another address."""
    if name == "translator" and isinstance(before, str):
        before, now = (re.sub(r"^(\w+)\+https?://[^?]*", r"\1", spec) for spec in (before, now))
    return name in MAY_CHANGE or before == now


def _read_state(checkpoint: Path) -> tuple[str, dict]:
    """(what is wrong with a checkpoint's state.json, its content): steps done, as in its name, and the best so far."""
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"state.json is not readable ({type(error).__name__})", {}
    step = state.get("step") if isinstance(state, dict) else None
    if type(step) is not int or f"step-{step:06d}" != checkpoint.name:
        return f"state.json says step {shorten(step)}", {}
    best = state.get("best", "nothing")
    if best is not None and not (isinstance(best, dict) and isinstance(best.get("accuracy"), int | float)):
        return f"state.json says best {shorten(best)}", {}
    return "", state


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a log, one at a time, a half-written last one included: one of rollouts may not fit into memory."""
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n")


def _line(name: str, row: dict) -> str:
    """A row as a line of a log. Diverged if a number is not finite, which JSON cannot say."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:
        raise Diverged(f"a number for {name} is not finite") from None


def _meters(translator) -> dict:
    """What a translator that counts has counted."""
    return {"translator": translator.meters} if hasattr(translator, "meters") else {}


def _before(line: str, step: int) -> bool:
    """Whether a log line is whole and from a step that the checkpoint has seen."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def _require_finite(policy: Qwen3 | None, moments: dict | None = None) -> None:
    """Diverged, on all ranks, if the one that writes holds a weight or a moment that is not finite."""
    tensors = (dict(policy.named_parameters()) if policy else {}) | (moments or {})
    bad = next((name for name, tensor in tensors.items() if not is_finite(tensor.detach())), "")
    if bad := distributed.any_rank(bad):
        raise Diverged(f"{bad} is not finite, so it was not saved")


def _as_stored(policy: Qwen3, source) -> Qwen3:
    """The policy in the dtype of the directory's weights; trained weights are float32."""
    dtype = stored_dtype(source)
    tensors = {name: tensor.detach().to(dtype) for name, tensor in policy.state_dict().items()}
    return model_file.assemble(policy.config, tensors)


def _without_nan(row: dict) -> dict:
    """A row as JSON can say it: null where a number is not finite."""
    return json.loads(json.dumps(row), parse_constant=lambda _: None)


def policy_directory(path) -> Path:
    """The model directory that a policy's name means: a run's `best/`, else its last checkpoint, else the path itself
    or its `base/`. Damaged ones are passed over; a line says so where a checkpoint stands in for `best/`.

    FileNotFoundError, saying what is missing and how to get it, if there is none.
    """
    name, path, damaged = str(path), Path(path), []
    checkpoints = sorted(path.glob("step-*[0-9]"), reverse=True)
    for candidate in (path / "best", *checkpoints, path, path / "base"):
        if not ((candidate / "config.json").is_file() and (candidate / "tokenizer.json").is_file()):
            continue
        if damage := damage_of(candidate):
            damaged.append(f"{candidate}: {damage}")
            continue
        if candidate in checkpoints:
            reason = "; ".join(damaged) or f"there is no policy in {path / 'best'}"
            print(in_line(f"{candidate} stands in for the best policy: {reason}"))
        return candidate
    if damaged:
        raise FileNotFoundError(f"{path}: no undamaged policy here: {'; '.join(damaged)}")
    if any(path.glob("*.safetensors")):
        missing = " and ".join(file for file in ("config.json", "tokenizer.json") if not (path / file).is_file())
        raise FileNotFoundError(f"{path}: {missing} is missing; copy it from where the weights come from")
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        there = name.split("/")[1]
        raise FileNotFoundError(
            f"{name}: no such directory, and nothing is downloaded here; if it is a name on the Hugging Face hub: "
            f"hf download {name} --local-dir {there}, and then name {there}"
        )
    raise FileNotFoundError(f"{path}: no policy here (a model directory, or a run that has saved one)")


def load_policy(path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Qwen3, Tokenizer]:
    """(model, tokenizer) of a policy. ValueError if the two do not fit, or if there is no such device."""
    directory = policy_directory(path)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch finds no such device here")
    template.require_a_free_start(directory)
    model, tokenizer = model_file.load(directory, device, dtype), load_tokenizer(directory)
    if tokenizer.size > model.config.vocab_size:
        sizes = f"tokenizer.json has {tokenizer.size} ids, the model {model.config.vocab_size} rows"
        raise ValueError(f"{directory}: {sizes}")
    return model, tokenizer
