"""Model directories made by somebody else: read as they are meant, or refused in one line that names file and place."""

import json
import shutil
import time

import pytest
import torch
from helpers import random_directory
from safetensors.torch import load_file, save_file

import model as model_file
from harness import modeldir
from harness.rundir import load_policy, policy_directory


@pytest.fixture
def directory(tmp_path):
    """A model directory that a test may damage."""
    return shutil.copytree(random_directory(), tmp_path / "model")


def change(directory, without=(), **fields) -> None:
    path = directory / "config.json"
    raw = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in raw.items() if name not in without}))


def refused(directory, kind=ValueError) -> str:
    """The message of the refusal: one line, and nothing in it as long as what a stranger's file may hold."""
    with pytest.raises(kind) as error:
        load_policy(directory)
    message = str(error.value)
    assert "\n" not in message and len(message.replace(str(directory), "")) < 300
    return message


# --- config.json ------------------------------------------------------------------------------------------------

ROPES = {
    "transformers 5, null at the top": {
        "rope_theta": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "transformers 5": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "transformers 4": {"rope_theta": 1e6, "rope_scaling": None},
    "transformers 4, in rope_scaling": {"rope_scaling": {"rope_type": "default", "rope_theta": 1e6}},
    "before 4.45, in rope_scaling": {"rope_scaling": {"type": "default", "rope_theta": 1e6}},
    "twice the same": {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1_000_000}},
}


@pytest.mark.parametrize("spelling", ROPES)
def test_the_base_of_the_rotation_is_read_wherever_it_stands(directory, spelling):
    """Catches a base of 10,000 in place of the model's own, without a word, or a TypeError in the first forward."""
    change(directory, without=("rope_theta", "rope_scaling"))
    change(directory, **ROPES[spelling])
    assert model_file.load(directory).config.rope_theta == 1e6


def test_a_config_without_the_base_of_the_rotation_is_refused(directory):
    """Catches a silent default: every logit would be wrong."""
    change(directory, without=("rope_theta",))
    assert "config.json: missing rope_theta" in refused(directory)
    change(directory, rope_theta=None, rope_parameters={"rope_type": "default"})
    assert "config.json: missing rope_theta" in refused(directory)


def test_two_bases_of_the_rotation_are_refused(directory):
    """Catches a loader that takes one of the two, whichever comes first."""
    change(directory, rope_theta=1e4, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    message = refused(directory)
    assert "config.json: rope_theta" in message and "10000.0" in message and "1000000.0" in message


FIELDS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim")
NONSENSE = ("7", -1, 0, None, [1], {}, True, 1.5, float("nan"), float("inf"), 10**5000 // 10**1000, "x" * 10_000)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: repr(value)[:9])
def test_a_size_that_is_no_size_is_refused_with_its_field(directory, name, value):
    """Catches a traceback from inside torch, or a model of another size than the file's."""
    change(directory, **{name: value})
    assert f"config.json: {name} is " in refused(directory)


@pytest.mark.parametrize(
    "name, value",
    [
        ("rms_norm_eps", "1e-6"),
        ("rms_norm_eps", -1e-6),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", "1e6"),
        ("rope_theta", -1),
        ("rope_theta", float("inf")),
        ("rope_theta", 10**400),
        ("tie_word_embeddings", "true"),
        ("tie_word_embeddings", None),
        ("rope_scaling", "linear"),
        ("rope_parameters", [1]),
        ("model_type", "y" * 10_000),
        ("hidden_act", ["silu"] * 10_000),
        ("head_dim", 15),
        ("num_key_value_heads", 3),
    ],
)
def test_any_other_field_that_makes_no_sense_is_refused_with_its_name(directory, name, value):
    """Catches NaN logits, a rotation of half a pair, and a string that counts as true."""
    change(directory, **{name: value})
    assert f"config.json: {name} " in refused(directory)


@pytest.mark.parametrize("layers", [10**5, 10**9])
def test_an_absurd_number_of_layers_is_refused_before_anything_is_built(directory, layers):
    """Catches a loader that lays out a hundred thousand layers, for minutes, to compare them with the file."""
    change(directory, num_hidden_layers=layers)
    start = time.perf_counter()
    assert f"num_hidden_layers is {layers}" in refused(directory)
    assert time.perf_counter() - start < 1


def test_a_byte_order_mark_is_read(directory):
    """Catches "not JSON" for a file that an editor saved with a mark at its beginning."""
    path = directory / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    load_policy(directory)


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"[" * 10**5, b"[]", b""], ids=["utf-16", "deep", "list", "empty"])
def test_a_config_that_is_no_json_object_is_refused(directory, content):
    """Catches a UnicodeDecodeError or a RecursionError that names no file."""
    (directory / "config.json").write_bytes(content)
    assert "config.json: " in refused(directory)


# --- weights ----------------------------------------------------------------------------------------------------


def weights(directory) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused_with_its_name(directory, value):
    """Catches a model that loads, and fails while it samples: "index 2000 is out of bounds"."""
    tensors = weights(directory)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, directory / "model.safetensors")
    assert "model.safetensors: layers.1.mlp.up_proj.weight holds NaN or infinity" in refused(directory)


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_refused(directory):
    """Catches a head that is dropped in silence: the logits would be another model's."""
    tensors = weights(directory)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, directory / "model.safetensors")
    load_policy(directory)
    tensors["lm_head.weight"][7, 7] += 1e-3
    save_file(tensors, directory / "model.safetensors")
    assert "model.safetensors: lm_head.weight does not fit" in refused(directory)


def shards(directory, parts: dict[str, dict], weight_map: dict | None = None) -> None:
    """Replace the one file by these, and write their index."""
    (directory / "model.safetensors").unlink()
    for name, tensors in parts.items():
        save_file(tensors, directory / name)
    found = {tensor: name for name, tensors in parts.items() for tensor in tensors}
    index = {"weight_map": found if weight_map is None else weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8-sig")


def test_shards_are_read_and_so_is_an_index_with_a_byte_order_mark(directory):
    """Catches checks that refuse a sound directory."""
    tensors = weights(directory)
    names = sorted(tensors)
    one, other = ({name: tensors[name] for name in part} for part in (names[:5], names[5:]))
    before = model_file.load(directory).state_dict()
    shards(directory, {"a.safetensors": one, "b.safetensors": other})
    after = model_file.load(directory).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("where", ["up", "absolute", "below", "number", "nothing"])
def test_a_shard_outside_the_directory_is_refused(directory, tmp_path, where):
    """Catches an index that makes the loader read any file of the machine."""
    save_file(weights(directory), tmp_path / "x.safetensors")
    names = {"up": "../x.safetensors", "absolute": str(tmp_path / "x.safetensors"), "below": "sub/x.safetensors"}
    name = names.get(where, 7 if where == "number" else "")
    shards(directory, {}, {"model.norm.weight": name})
    message = refused(directory)
    assert "model.safetensors.index.json: model.norm.weight is in " in message and "beside the index" in message


@pytest.mark.parametrize("weight_map", [None, [], {}, "a", 7])
def test_an_index_without_a_map_is_refused(directory, weight_map):
    """Catches an AttributeError, and an empty map that means a model without weights."""
    shards(directory, {})
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "model.safetensors.index.json: not an index of shards" in refused(directory)


def test_a_tensor_in_two_shards_is_refused(directory):
    """Catches a loader in which the last one wins."""
    tensors = weights(directory)
    again = {"model.norm.weight": tensors["model.norm.weight"] + 1}
    shards(directory, {"a.safetensors": tensors, "b.safetensors": again})
    message = refused(directory)
    assert "b.safetensors: norm.weight stands in a.safetensors already" in message


def test_a_name_from_a_file_stays_within_its_line(directory):
    """Catches a message that a stranger's tensor name breaks into lines, or fills the screen with."""
    save_file(weights(directory) | {"a\nb" + "c" * 10_000: torch.zeros(1)}, directory / "model.safetensors")
    assert "unexpected 'a\\nbccc" in refused(directory)


# --- names ------------------------------------------------------------------------------------------------------


def test_a_name_on_the_hub_is_told_how_to_be_fetched():
    """Catches "no policy here" for the first thing that anybody types."""
    for name in ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B-Instruct.v2"):
        message = refused(name, FileNotFoundError)
        assert f"hf download {name} --local-dir {name.split('/')[1]}" in message
    assert "no policy here" in refused("Qwen3-4B", FileNotFoundError)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_directory_without_one_of_its_files_is_told_which(directory, name):
    """Catches "no policy here" for a directory that plainly holds a model."""
    (directory / name).unlink()
    message = refused(directory, FileNotFoundError)
    assert f"{name} is missing" in message and "copy it" in message


def test_the_checks_take_what_this_code_writes(tmp_path):
    """Catches a check that refuses our own checkpoints, in any of the dtypes that they are saved in."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model = model_file.load(random_directory(), dtype=dtype)
        place = tmp_path / str(dtype)
        model_file.save(model, place, like=random_directory())
        assert policy_directory(place) == place
        assert load_policy(place, dtype=dtype)[0].config == model.config
    assert modeldir.shorten("z" * 200) == "'" + "z" * 78 + "…"


@pytest.mark.parametrize(
    "field",
    [{"layer_types": ["full_attention", "sliding_attention"]}, {"rope_parameters": {"partial_rotary_factor": 0.5}}],
    ids=["sliding layers", "a part of the head is rotated"],
)
def test_what_transformers_5_may_say_and_is_not_computed_here_is_refused(directory, field):
    """Catches a window, or a rotation of half a head, that is ignored: every logit would be wrong, without a word."""
    change(directory, **field)
    assert "is not supported" in refused(directory)
    change(directory, layer_types=["full_attention"] * 2, rope_parameters={"partial_rotary_factor": 1.0})
    load_policy(directory)


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused(tmp_path):
    """Catches an added token beyond the embedding: an IndexError at the first question that holds it."""
    directory = shutil.copytree(random_directory(), tmp_path / "model")
    raw = json.loads((directory / "tokenizer.json").read_text())
    token = {**raw["added_tokens"][-1], "content": "<|beyond|>", "id": 400}
    (directory / "tokenizer.json").write_text(json.dumps({**raw, "added_tokens": [*raw["added_tokens"], token]}))
    with pytest.raises(ValueError, match="tokenizer.json has 401 ids, the model 400 rows"):
        load_policy(directory)
