"""A Hugging Face model directory, read and written with care: config.json, safetensors, shards.

    directory -> read_config -> the fields that shape the computation, each of them checked
    directory -> read_tensors -> name -> tensor, finite;  fit: every tensor arrived, in its shape
    write_directory -> a directory that is there as a whole, with checksums;  damage_of: what has changed since

What is in a directory was made by somebody else: each error is one line that names the file and the field or the
tensor, and shows no more than 80 characters of what stands there.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

Place = str | os.PathLike[str]  # a file or a directory
WEIGHTS = "model.safetensors"
CHECKSUMS = "checksums.json"  # file -> SHA-256, of every other file of the directory
# What a directory holds of a run, or of its weights, and what is therefore not copied from one to the next.
OWN_FILES = ("config.json", "state.json", CHECKSUMS)
# The whole numbers of a config.json, and the most that each may be: far above any published model, and still few
# enough layers to be laid out in a second before a file turns out not to hold them.
SIZES = {
    "vocab_size": 10**7,
    "hidden_size": 10**6,
    "intermediate_size": 10**7,
    "num_hidden_layers": 1000,
    "num_attention_heads": 10**4,
    "num_key_value_heads": 10**4,
    "head_dim": 10**4,
}


def read_config(directory, known: tuple[str, ...], required: tuple[str, ...]) -> dict:
    """The `known` fields of a dense Qwen3's config.json, with `rope_theta` from where either version of transformers
    writes it.

    Raises FileNotFoundError without a config.json, ValueError naming the file and the field for a value that makes no
    sense, and for anything that is not computed here: another architecture, rope scaling, sliding windows, biases,
    quantisation.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: no model here (config.json is missing)")
    raw = _json_object(path)
    if raw.get("model_type") != "qwen3":
        found = shorten(raw.get("model_type"))
        raise ValueError(f"{path}: model_type is {found}, only 'qwen3' (dense) is implemented")
    ropes = {name: raw.get(name) or {} for name in ("rope_parameters", "rope_scaling")}  # transformers 5, and 4
    for name, rope in ropes.items():
        if not isinstance(rope, dict):
            raise ValueError(f"{path}: {name} is {shorten(rope)}, expected an object")
    rope_types = [rope[key] for rope in ropes.values() for key in ("rope_type", "type") if key in rope]
    unsupported = {
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "attention_bias": raw.get("attention_bias", False),
        "use_sliding_window": raw.get("use_sliding_window", False),
        "quantization_config": raw.get("quantization_config") is not None,
        "layer_types": any(kind != "full_attention" for kind in raw.get("layer_types") or ()),
        "partial_rotary_factor": any(place.get("partial_rotary_factor", 1) != 1 for place in (raw, *ropes.values())),
        "rope type": any(kind != "default" for kind in rope_types),
    }
    for name, is_unsupported in unsupported.items():
        if is_unsupported:
            value = rope_types if name == "rope type" else raw.get(name)
            raise ValueError(f"{path}: {name} = {shorten(value)} is not supported")
    found = {name: raw[name] for name in known if name in raw}
    thetas = [place["rope_theta"] for place in (raw, *ropes.values()) if place.get("rope_theta") is not None]
    if any(theta != thetas[0] for theta in thetas[1:]):
        raise ValueError(f"{path}: rope_theta has several values, {shorten(thetas)}")
    found.pop("rope_theta", None)  # may be null, where transformers 5 has moved it to rope_parameters
    if thetas:
        found["rope_theta"] = thetas[0]
    if missing := [name for name in (*required, "rope_theta") if name not in found]:
        raise ValueError(f"{path}: missing {', '.join(missing)}")
    _check_fields(path, found)
    return found


def _check_fields(path: Path, found: dict) -> None:
    """ValueError naming the first field that is not what it should be."""
    for name, value in found.items():
        if name in SIZES:
            fits, expected = type(value) is int and 1 <= value <= SIZES[name], f"a whole number from 1 to {SIZES[name]}"
        elif name == "tie_word_embeddings":
            fits, expected = isinstance(value, bool), "true or false"
        elif name == "rms_norm_eps":
            fits, expected = _is_number(value) and 0 < value < 1, "a number between 0 and 1"
        elif name == "rope_theta":
            fits, expected = _is_number(value) and 0 < value < 1e30, "a positive number"
        else:
            fits, expected = True, ""
        if not fits:
            raise ValueError(f"{path}: {name} is {shorten(value)}, expected {expected}")
    if found["num_attention_heads"] % found["num_key_value_heads"]:
        heads, shared = found["num_attention_heads"], found["num_key_value_heads"]
        raise ValueError(f"{path}: num_key_value_heads is {shared}, which does not divide {heads} heads")
    if found["head_dim"] % 2:
        raise ValueError(f"{path}: head_dim is {found['head_dim']}, expected an even number (it is rotated in pairs)")


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shorten(value) -> str:
    """A value from a file as a piece of one line: what it is, and no more than its first 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def read_tensors(directory, device, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of the directory, by name without the leading `model.`: of one file, or of shards with an index.

    Raises ValueError naming file and tensor for one that holds NaN or infinity, that stands in two shards, or that is
    a head of its own where config.json says that the head is the embedding.
    """
    directory = Path(directory)
    found, file_of = {}, {}
    for path in _weight_files(directory):
        for name, tensor in _tensors_of(path, device, dtype):
            if name in found:
                raise ValueError(f"{path}: {_plain(name)} stands in {file_of[name].name} already")
            if not is_finite(tensor):
                raise ValueError(f"{path}: {_plain(name)} holds NaN or infinity")
            found[name], file_of[name] = tensor, path
    head, embedding = found.get("lm_head.weight"), found.get("embed_tokens.weight")
    is_tied = _json_object(directory / "config.json").get("tie_word_embeddings") is True
    if is_tied and head is not None and embedding is not None and not torch.equal(head, embedding):
        tied = "config.json says tie_word_embeddings, but it is not a copy of embed_tokens.weight"
        raise ValueError(f"{file_of['lm_head.weight']}: lm_head.weight does not fit: {tied}")
    return found


def stored_dtype(directory) -> torch.dtype:
    """In what the directory's weights are stored, by their embedding; of a header, nothing is loaded."""
    names = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    for path in _weight_files(Path(directory)):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                if name.removeprefix("model.") == "embed_tokens.weight":
                    return names.get(file.get_slice(name).get_dtype(), torch.float32)
    raise ValueError(f"{directory}: embed_tokens.weight is missing")


def is_finite(tensor: Tensor) -> bool:
    """Whether all of it is; makes no copy of it."""
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def fit(directory, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """ValueError listing the missing, the unexpected and the mis-shaped tensors, all at once."""
    problems = [f"missing {name}" for name in expected.keys() - found.keys()]
    problems += [f"unexpected {_plain(name)}" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} has shape {shorten(list(found[name].shape))}, config.json says {list(expected[name].shape)}"
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
            is_weights = path.suffix in (".safetensors", ".bin") or path.name.endswith(".index.json")
            if path.is_file() and path.name not in OWN_FILES and not is_weights:
                shutil.copyfile(path, directory / path.name)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _json_object(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))  # a byte-order mark is no part of the text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected an object, found {type(found).__name__}")
    return found


def _weight_files(directory: Path) -> list[Path]:
    """The safetensors files that make up the model; those of an index lie beside it."""
    index, names = directory / f"{WEIGHTS}.index.json", [WEIGHTS]
    if index.is_file() and not (directory / WEIGHTS).is_file():
        shards = _json_object(index).get("weight_map")
        if not (isinstance(shards, dict) and shards):
            raise ValueError(f"{index}: not an index of shards (weight_map is {shorten(shards)})")
        for tensor, name in shards.items():
            if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
                raise ValueError(f"{index}: {_plain(tensor)} is in {shorten(name)}, expected a file beside the index")
        names = sorted(set(shards.values()))
    for name in names:
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory}: {_plain(name)} is missing")
    return [directory / name for name in names]


def _plain(name: str) -> str:
    """A name from a file, as it is if it fits into a line."""
    return name if name.isprintable() and len(name) <= 80 else shorten(name)


def _tensors_of(path: Path, device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """One at a time, so that a file is never in memory twice."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name in file.keys():
                yield name.removeprefix("model."), file.get_tensor(name).to(dtype)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None


# --- whole directories ------------------------------------------------------------------------------------------------


def write_directory(path: Path, write) -> None:
    """Let `write(directory)` fill a directory beside `path`, add its checksums, and rename it into place.

    Files and directories are synced on the way: what is in place outlives a power cut.
    """
    partial, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
        files = sorted(file for file in partial.rglob("*") if file.is_file())
        write_json(partial / CHECKSUMS, {file.relative_to(partial).as_posix(): _sha256(file) for file in files})
        for written in (*files, partial):
            sync(written)
    except (OSError, SafetensorError):  # the disk is full, say: what is half-written only takes more of it
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if path.exists():
        os.rename(path, old)
    os.rename(partial, path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def damage_of(directory: Path, must_be_sealed: bool = False) -> str:
    """What differs from the directory's checksums, in a few words; "" if nothing does, or if it has none and may."""
    seal = directory / CHECKSUMS
    if not seal.is_file() and not must_be_sealed:
        return ""
    try:
        sums = json.loads(seal.read_text(encoding="utf-8"))
        for name, expected in sums.items():
            if not (directory / name).is_file():
                return f"{_plain(name)} is missing"
            if _sha256(directory / name) != expected:
                return f"{_plain(name)} is not what was saved"
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{CHECKSUMS} is not readable ({type(error).__name__})"
    return "" if sums else f"{CHECKSUMS} is empty"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's list of names, is on the disk. Only POSIX can say so."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value) -> None:
    """Write a JSON file beside its place and rename it into it. OSError naming the file if that fails."""
    partial = path.with_name(f".{path.name}.partial")
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        sync(partial)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
