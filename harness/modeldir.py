"""A Hugging Face model directory, read and written with care: config.json, safetensors, shards.

    directory -> read_config -> the fields that shape the computation
    directory -> read_tensors -> name -> tensor;  fit: every tensor arrived, in its shape

What is in a directory was made by somebody else: each error names the file and the field or the tensor.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

WEIGHTS = "model.safetensors"
# What a directory holds of a run, or of its weights, and what is therefore not copied from one to the next.
OWN_FILES = ("config.json", "state.json", f"{WEIGHTS}.index.json")


def read_config(directory, known: tuple[str, ...], required: tuple[str, ...]) -> dict:
    """The `known` fields of a dense Qwen3's config.json, with `rope_theta` from where either version of transformers
    writes it.

    Raises FileNotFoundError without a config.json, ValueError naming the file and the field for anything that
    is not computed here: another architecture, rope scaling, sliding windows, biases, quantisation.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: no model here (config.json is missing)")
    raw = _json_object(path)
    if raw.get("model_type") != "qwen3":
        raise ValueError(f"{path}: model_type is {raw.get('model_type')!r}, only 'qwen3' (dense) is implemented")
    ropes = [raw.get(name) or {} for name in ("rope_parameters", "rope_scaling")]  # transformers 5, transformers 4
    unsupported = {
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "attention_bias": raw.get("attention_bias", False),
        "use_sliding_window": raw.get("use_sliding_window", False),
        "quantization_config": raw.get("quantization_config") is not None,
        "rope type": any(rope.get(key, "default") != "default" for rope in ropes for key in ("rope_type", "type")),
    }
    for name, is_unsupported in unsupported.items():
        if is_unsupported:
            value = ropes if name == "rope type" else raw.get(name)
            raise ValueError(f"{path}: {name} = {value!r} is not supported")
    found = {name: raw[name] for name in known if name in raw}
    found.setdefault("rope_theta", ropes[0].get("rope_theta", 10_000.0))
    if missing := [name for name in required if name not in found]:
        raise ValueError(f"{path}: missing {', '.join(missing)}")
    return found


def read_tensors(directory, device, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of the directory, by name without the leading `model.`: of one file, or of shards with an index."""
    files = _weight_files(Path(directory))
    return {name: tensor for path in files for name, tensor in _tensors_of(path, device, dtype)}


def fit(directory, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """ValueError listing the missing, the unexpected and the mis-shaped tensors, all at once."""
    problems = [f"missing {name}" for name in expected.keys() - found.keys()]
    problems += [f"unexpected {name}" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} has shape {list(found[name].shape)}, config.json says {list(expected[name].shape)}"
        for name in expected.keys() & found.keys()
        if found[name].shape != expected[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:8]) + ("; …" if len(problems) > 8 else "")
        raise ValueError(f"{directory}: {len(problems)} tensors do not fit: {shown}")


def write(directory, config: dict, tensors: dict[str, Tensor], like=None) -> None:
    """Write config.json and model.safetensors; `like` is a directory whose other files and config fields are kept."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if like is not None:
        kept = _json_object(Path(like) / "config.json")
        config = {**kept, **config, **({"dtype": config["torch_dtype"]} if "dtype" in kept else {})}
        for path in Path(like).iterdir():
            if path.is_file() and path.name not in OWN_FILES and path.suffix not in (".safetensors", ".bin"):
                shutil.copyfile(path, directory / path.name)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _json_object(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected an object, found {type(found).__name__}")
    return found


def _weight_files(directory: Path) -> list[Path]:
    index, names = directory / f"{WEIGHTS}.index.json", [WEIGHTS]
    if index.is_file() and not (directory / WEIGHTS).is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index}: not an index of shards ({error!r})") from None
    for name in names:
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory}: {name} is missing")
    return [directory / name for name in names]


def _tensors_of(path: Path, device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """One at a time, so that a file is never in memory twice."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name in file.keys():
                yield name.removeprefix("model."), file.get_tensor(name).to(dtype)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
