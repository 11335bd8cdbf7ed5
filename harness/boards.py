"""Metrics where people look at them: TensorBoard and Weights & Biases, both optional (--log).

    --log tensorboard -> events in the run directory;  --log wandb -> a run of the project translate-r1

Names are those of metrics.jsonl, joined by slashes: accuracy, tier/low/tool_rate, validation/accuracy. Both are extras,
imported when they are asked for.
"""

from pathlib import Path

BOARDS = ("none", "tensorboard", "wandb")


class Board:
    """A place where metrics are shown; this one is nowhere."""

    def log(self, step: int, metrics: dict) -> None:
        """The metrics of a step, numbers within numbers."""

    def close(self) -> None:
        """No more steps come."""


class TensorBoard(Board):
    """Event files in the run directory. Those of steps that are run again are dropped from its view."""

    def __init__(self, directory: Path, first: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=first + 1)

    def log(self, step: int, metrics: dict) -> None:
        for name, value in flat(metrics).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # it is watched while it runs

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Board):
    """A run of the project translate-r1, resumed under the same name. WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, directory: Path, options: dict):
        import wandb

        name = "-".join(directory.resolve().parts[-2:])
        self._run = wandb.init(
            project="translate-r1", id=name, name=name, dir=str(directory), config=options, resume="allow"
        )

    def log(self, step: int, metrics: dict) -> None:
        self._run.log(flat(metrics), step=step, commit=True)  # shown now, not with the next step

    def close(self) -> None:
        self._run.finish()


def open_board(kind: str, directory: Path, options: dict, first: int) -> Board:
    """The board of `--log`, for a run with these options that goes on behind step `first`."""
    if kind == "tensorboard":
        return TensorBoard(directory, first)
    return WeightsAndBiases(directory, options) if kind == "wandb" else Board()


def flat(metrics: dict, prefix: str = "") -> dict[str, float]:
    """Numbers within dictionaries -> name/name -> number; what has no value in this step is left out."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return {name: value for name, value in found.items() if value is not None}
