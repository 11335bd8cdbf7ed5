"""The hand-written Qwen3 against `transformers`, against itself without a cache, and against files that do not fit."""

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import randomise
from safetensors.torch import load_file, save_file

import model

# (tied, KV heads of 8, head dim, hidden size, vocabulary): head dim is hidden / heads in none of them
SHAPES = [(True, 1, 6, 40, 97), (False, 2, 10, 33, 101), (True, 4, 2, 17, 64), (False, 8, 14, 24, 131)]


def config_of(tied, kv_heads, head_dim, hidden, vocab, **changes):
    shape = model.Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden + 1,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-5,
        rope_theta=50_000.0,
        tie_word_embeddings=tied,
    )
    return replace(shape, **changes)


def reference(config, seed=0):
    """A random Qwen3 of `transformers` in the same shape; skips the test where the library is not installed."""
    transformers = pytest.importorskip("transformers")
    fields = {name: getattr(config, name) for name in model.Config.__dataclass_fields__}
    theta = fields.pop("rope_theta")
    rope = {"rope_type": "default", "rope_theta": theta}
    theirs = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**fields, rope_parameters=rope, max_position_embeddings=256)
    )
    return randomise(theirs, seed, scale=0.15).eval()


def some_ids(config, rows=3, length=21, seed=0):
    return torch.randint(config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def write_checkpoint(directory, config=None, **raw_changes):
    """A model directory whose config.json has `raw_changes` on top."""
    model.save(randomise(model.Qwen3(config or config_of(*SHAPES[0]))), directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | raw_changes))
    return directory


# --- parity -----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_of_a_transformers_checkpoint_are_its_own(shape, tmp_path):
    """Would catch a wrong norm, rotary layout or base, head grouping, eps, tying, or a weight under a wrong name."""
    config = config_of(*shape)
    theirs = reference(config)
    theirs.save_pretrained(tmp_path)
    ours, ids = model.load(tmp_path), some_ids(config)
    difference = (ours.logits(ours(ids)) - theirs(ids).logits).abs()
    assert difference.max() < 1e-4
    assert difference.mean() < 1e-5


@torch.no_grad()
def test_shards_hold_the_same_model_as_one_file(tmp_path):
    """Would catch an index that is not read, or shards after the first that are dropped."""
    config = config_of(*SHAPES[1])
    theirs = reference(config)
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "many", max_shard_size="10KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = model.load(tmp_path / "one").state_dict(), model.load(tmp_path / "many").state_dict()
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


@torch.no_grad()
def test_bf16_is_no_further_from_fp32_than_transformers_bf16(tmp_path):
    """Would catch a step that rounds to bf16 where the published model does not."""
    config = config_of(*SHAPES[1])
    theirs = reference(config)
    theirs.save_pretrained(tmp_path)
    ids = some_ids(config, rows=4, length=60)
    exact = theirs(ids).logits
    ours = model.load(tmp_path, dtype=torch.bfloat16)
    our_error = (ours.logits(ours(ids)).float() - exact).abs()
    their_error = (theirs.to(torch.bfloat16)(ids).logits.float() - exact).abs()
    assert our_error.mean() < 1.1 * their_error.mean()
    assert our_error.max() < 1.5 * their_error.max()


@torch.no_grad()
def test_greedy_generation_with_our_cache_is_that_of_transformers(tmp_path):
    """Would catch positions or a mask that go wrong only after many cached steps."""
    config = config_of(*SHAPES[3])
    theirs = reference(config)
    theirs.save_pretrained(tmp_path)
    ours, ids = model.load(tmp_path), some_ids(config, rows=2, length=9)
    expected = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    cache, generated, unread = ours.new_cache(2, 9 + 64), ids, ids
    for _ in range(64):
        unread = ours.logits(ours(unread, cache)[:, -1:]).argmax(-1)
        generated = torch.cat([generated, unread], dim=1)
    assert len(set(expected[0, 9:].tolist())) > 8, "a model that repeats itself proves nothing"
    assert torch.equal(generated, expected)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES[:2], ids=["tied", "untied"])
def test_transformers_loads_what_save_wrote(shape, tmp_path):
    """Would catch a config field or tensor name of ours that the rest of the world reads otherwise (rope_theta!)."""
    transformers = pytest.importorskip("transformers")
    ours = randomise(model.Qwen3(config_of(*shape)), scale=0.15)
    model.save(ours, tmp_path)
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert theirs.dtype == torch.float32
    ids = some_ids(ours.config)
    torch.testing.assert_close(theirs(ids).logits, ours.logits(ours(ids)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES[:2], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_load_returns_what_save_wrote(shape, dtype, tmp_path):
    """Would catch a save that rounds, drops a field of the config, or unties the head."""
    saved = randomise(model.Qwen3(config_of(*shape))).to(dtype)
    model.save(saved, tmp_path)
    loaded = model.load(tmp_path, dtype=dtype)
    assert loaded.config == saved.config
    before, after = saved.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == shape[0]


def test_a_model_saved_like_another_keeps_what_it_does_not_write(tmp_path):
    """Would catch a checkpoint without its tokenizer or a config field of somebody else's, and one that still holds the
    old weights: a second file of them, an index, or the config fields that they had."""
    like, out = (
        write_checkpoint(tmp_path / "like", config_of(*SHAPES[1]), max_position_embeddings=777),
        tmp_path / "out",
    )
    for name in ("tokenizer.json", "generation_config.json", "LICENSE"):
        (like / name).write_text(f"the {name} that came with it")
    stale = ("model.safetensors.index.json", "model-00001-of-00002.safetensors", "pytorch_model.bin", "state.json")
    for name in stale:
        (like / name).write_text("{}")
    (like / "figures").mkdir()
    saved = randomise(model.Qwen3(config_of(*SHAPES[0])), seed=5)
    model.save(saved, out, like=like)
    kept = {path.name: path.read_text() for path in out.iterdir() if path.suffix != ".safetensors"}
    config = json.loads(kept.pop("config.json"))
    assert kept == {
        name: f"the {name} that came with it" for name in ("tokenizer.json", "generation_config.json", "LICENSE")
    }
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]
    assert config["max_position_embeddings"] == 777
    loaded = model.load(out)
    assert loaded.config == saved.config
    assert torch.equal(loaded.norm.weight, saved.norm.weight)


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
def test_a_model_saved_like_another_states_its_own_dtype(name, tmp_path):
    """Would catch weights in bf16 under the fp32 of the directory that they are like; transformers 5 calls it dtype."""
    like = write_checkpoint(tmp_path / "like", **{name: "float32"})
    model.save(randomise(model.Qwen3(config_of(*SHAPES[0]))).bfloat16(), tmp_path / "out", like=like)
    assert json.loads((tmp_path / "out" / "config.json").read_text())[name] == "bfloat16"


def test_a_loaded_model_can_be_trained(tmp_path):
    """Would catch weights that arrive without requires_grad, or a tied head that is a copy."""
    loaded = model.load(write_checkpoint(tmp_path))
    loaded.logits(loaded(some_ids(loaded.config))).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in loaded.parameters())
    assert "lm_head.weight" not in dict(loaded.named_parameters())  # one parameter under one name


def test_a_stored_copy_of_a_tied_head_is_accepted(tmp_path):
    """Would catch a refusal of the published small checkpoints, which store the tied head as well."""
    write_checkpoint(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors"
    )
    assert model.load(tmp_path).config.tie_word_embeddings


PUBLISHED = {  # name: hidden, MLP, layers, query heads, tied, parameters as published
    "0.6B": (1024, 3072, 28, 16, True, 596_049_920),
    "1.7B": (2048, 6144, 28, 16, True, 1_720_574_976),
    "4B": (2560, 9728, 36, 32, True, 4_022_468_096),
    "8B": (4096, 12288, 36, 32, False, 8_190_735_360),
    "14B": (5120, 17408, 40, 40, False, 14_768_307_200),
    "32B": (5120, 25600, 64, 64, False, 32_762_123_264),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_have_the_published_number_of_parameters(name):
    """Would catch a bias, a norm too many, or a head dim taken from hidden / heads (0.6B, 4B and 32B differ)."""
    hidden, mlp, layers, heads, tied, total = PUBLISHED[name]
    with torch.device("meta"):
        big = model.Qwen3(model.Config(151_936, hidden, mlp, layers, heads, 8, 128, tie_word_embeddings=tied))
    attention = hidden * 128 * (2 * heads + 2 * 8) + 2 * 128  # q, o, k, v; the norms of queries and keys
    closed_form = layers * (attention + 3 * hidden * mlp + 2 * hidden) + hidden + 151_936 * hidden * (1 if tied else 2)
    assert sum(parameter.numel() for parameter in big.parameters()) == closed_form == total


# --- cache ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_append_of_seven_is_one_by_one_is_no_cache(qwen):
    """Would catch is_causal used on a past: its triangle is aligned top left, so an append attends wrongly."""
    ids = some_ids(qwen.config, rows=3, length=5 + 7)
    whole = qwen(ids)
    together, single = qwen.new_cache(3, 12), qwen.new_cache(3, 12)
    appended = torch.cat([qwen(ids[:, :5], together), qwen(ids[:, 5:], together)], dim=1)
    stepped = torch.cat([qwen(ids[:, t : t + 1], single) for t in range(12)], dim=1)
    torch.testing.assert_close(appended, whole, atol=2e-5, rtol=0)
    torch.testing.assert_close(stepped, whole, atol=2e-5, rtol=0)
    assert together.lengths.tolist() == single.lengths.tolist() == [12, 12, 12]


@torch.no_grad()
def test_rows_of_different_lengths_are_as_if_alone(qwen):
    """Would catch attention to the right padding of a prefill, or an append that starts at the longest row's end."""
    ids, lengths = some_ids(qwen.config, rows=3, length=16), torch.tensor([4, 9, 6])
    cache = qwen.new_cache(3, 16)
    prefilled = qwen(ids[:, :9], cache)
    cache.lengths = lengths.clone()
    positions = lengths[:, None] + torch.arange(7)
    appended = qwen(ids.gather(1, positions), cache)
    for row, length in enumerate(lengths.tolist()):
        alone = qwen(ids[row : row + 1, : length + 7])[0]
        torch.testing.assert_close(prefilled[row, :length], alone[:length], atol=2e-5, rtol=0)
        torch.testing.assert_close(appended[row], alone[length:], atol=2e-5, rtol=0)
    assert cache.lengths.tolist() == [11, 16, 13]


@torch.no_grad()
def test_a_token_does_not_see_later_ones(qwen):
    """Would catch a missing causal mask: a changed last token must leave all earlier states as they are."""
    ids = some_ids(qwen.config, rows=1)
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % qwen.config.vocab_size
    assert torch.equal(qwen(ids)[:, :-1], qwen(changed)[:, :-1])
    assert not torch.equal(qwen(ids)[:, -1], qwen(changed)[:, -1])


def test_heads_that_share_keys_attend_as_if_each_had_its_own():
    """Catches keys that are dealt to the wrong heads, and shapes that only fit where a kernel shares them."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 5, heads, 8, generator=rng, dtype=torch.float64) for heads in (6, 2, 2))
    mask = torch.zeros(2, 1, 5, 5, dtype=torch.float64).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    for given in (None, mask):
        found = model.attend(q, k, v, given)
        for head in range(6):
            scores = torch.einsum("btd,bsd->bts", q[:, :, head], k[:, :, head // 3]) / 8**0.5 + mask[:, 0]
            expected = scores.softmax(-1) @ v[:, :, head // 3]
            assert (found[:, :, head] - expected).abs().max() < 1e-12
        elsewhere = [None if tensor is None else tensor.to("meta") for tensor in (q, k, v, given)]
        assert model.attend(*elsewhere).shape == found.shape


@torch.no_grad()
def test_positions_can_be_given(qwen):
    """Would catch an explicit position that is ignored: the same tokens written out of order must be the same past."""
    ids = some_ids(qwen.config, rows=1, length=6)
    cache = qwen.new_cache(1, 6)
    qwen(ids[:, :3], cache)
    shuffled = torch.tensor([[5, 3, 4]])
    out = qwen(ids[:, shuffled[0]], cache, shuffled)
    # the last position sees everything that was written in the same call, whatever its order
    torch.testing.assert_close(out[:, 0], qwen(ids)[:, 5], atol=2e-5, rtol=0)


@torch.no_grad()
def test_taken_rows_go_on_as_the_rows_they_came_from(qwen):
    """Would catch a fan-out that mixes rows, or copies that share memory so that one rollout writes into another."""
    ids = some_ids(qwen.config, rows=2, length=8)
    cache = qwen.new_cache(2, 10)
    qwen(ids, cache)
    fanned = cache.take(torch.tensor([1, 0, 1]))
    next_ids = torch.tensor([[3], [4], [5]])
    out = qwen(next_ids, fanned)
    for row, source in enumerate([1, 0, 1]):
        alone = qwen(torch.cat([ids[source : source + 1], next_ids[row : row + 1]], dim=1))
        torch.testing.assert_close(out[row, 0], alone[0, -1], atol=2e-5, rtol=0)
    assert cache.lengths.tolist() == [8, 8]
    assert cache.keys[:, :, :, 8:].abs().sum() == 0


@torch.no_grad()
def test_rows_that_part_and_rows_that_come_in_go_on_as_alone(qwen):
    """Would catch copies that share memory, rows in another order, and newcomers with another number of slots."""
    ids, others = some_ids(qwen.config, rows=2, length=8), some_ids(qwen.config, rows=1, length=11)
    for slots, other_slots in ((9, 12), (40, 12)):
        cache, newcomers = qwen.new_cache(2, slots), qwen.new_cache(1, other_slots)
        qwen(ids, cache)
        qwen(others, newcomers)
        cache.keep(torch.tensor([1, 1]))
        cache.extend(newcomers)
        assert cache.lengths.tolist() == [8, 8, 11]
        cache.reserve(12)
        next_ids = torch.tensor([[3], [4], [5]])
        out = qwen(next_ids, cache)
        for row, before in enumerate((ids[1], ids[1], others[0])):
            alone = qwen(torch.cat([before, next_ids[row]])[None])
            torch.testing.assert_close(out[row, 0], alone[0, -1], atol=2e-5, rtol=0)


@torch.no_grad()
def test_put_is_the_inverse_of_take(qwen):
    """Would catch rows put back in another order, or lengths left behind."""
    cache = qwen.new_cache(4, 6)
    qwen(some_ids(qwen.config, rows=4, length=5), cache)
    before = [tensor.clone() for tensor in (cache.keys, cache.values, cache.lengths)]
    rows = torch.tensor([3, 1])
    part = cache.take(rows)
    qwen(torch.tensor([[7], [8]]), part)
    cache.put(rows, part)
    assert cache.lengths.tolist() == [5, 6, 5, 6]
    assert torch.equal(cache.keys[:, rows], part.keys) and torch.equal(cache.values[:, rows], part.values)
    others = torch.tensor([0, 2])
    assert torch.equal(cache.keys[:, others], before[0][:, others])
    assert torch.equal(cache.values[:, others], before[1][:, others])


@torch.no_grad()
def test_an_append_past_the_last_slot_is_an_error(qwen):
    """Would catch a cache that wraps round or drops keys silently when it is full."""
    cache = qwen.new_cache(1, 6)
    qwen(some_ids(qwen.config, rows=1, length=6), cache)
    with pytest.raises(ValueError, match=r"cache has 6 slots.*position 6"):
        qwen(torch.tensor([[1]]), cache)


@torch.no_grad()
def test_float64_agrees_with_float32_to_rounding():
    """Would catch a difference between cached and uncached that is small enough to hide in the rounding of fp32."""
    config = config_of(*SHAPES[1])
    single, double = randomise(model.Qwen3(config), scale=0.15), model.Qwen3(config).double()
    double.load_state_dict({name: tensor.double() for name, tensor in single.state_dict().items()})
    ids = some_ids(config)
    exact = double(ids)
    assert exact.dtype == torch.float64
    assert (single(ids) - exact).abs().max() < 1e-4
    cache = double.new_cache(3, 21)
    cached = torch.cat([double(ids[:, :10], cache), double(ids[:, 10:], cache)], dim=1)
    assert (cached - exact).abs().max() < 1e-12


# --- the two formulas that are written out ----------------------------------------------------------------------

ROUNDING = {torch.bfloat16: 2**-8, torch.float32: 2**-22, torch.float64: 2**-50}  # of one result; a few, in the wider


@torch.no_grad()
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_a_norm_rounds_only_its_result(dtype):
    """Would catch mean squares summed in bf16, whose error is several roundings, or a fp64 model that uses fp32."""
    x = torch.randn(8, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    wide = x.double()
    expected = wide / (wide.square().sum(-1, keepdim=True) / 300 + 1e-6).sqrt()
    error = (model.RMSNorm(300, 1e-6).to(dtype)(x).double() / expected - 1).abs()
    assert error.max() < 1.01 * ROUNDING[dtype]


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_far_positions_keep_their_angle(dtype):
    """Would catch angles in bf16: from position 256 on, neighbours would be the same."""
    positions, size, theta = torch.tensor([[0, 1, 257, 40_000]]), 8, 1e6
    cos, sin = model.rotary_tables(positions, size, theta, dtype)
    turns = max(ROUNDING[dtype], 40_000 * 2**-23 if dtype != torch.float64 else 40_000 * 2**-51)
    for t, position in enumerate(positions[0].tolist()):
        for i in range(size // 2):
            angle = position * theta ** (-2 * i / size)
            assert cos[0, t, 0, i].item() == pytest.approx(math.cos(angle), abs=turns)
            assert sin[0, t, 0, i].item() == pytest.approx(math.sin(angle), abs=turns)


# --- files that do not fit --------------------------------------------------------------------------------------


def test_a_directory_without_a_model_is_named(tmp_path):
    """Would catch a bare 'No such file' from somewhere inside."""
    with pytest.raises(FileNotFoundError, match=r"nowhere.*config\.json is missing"):
        model.load(tmp_path / "nowhere")


def test_missing_weights_are_named(tmp_path):
    """Would catch a model of random weights where model.safetensors is absent."""
    (write_checkpoint(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        model.load(tmp_path)


def test_saving_over_shards_replaces_them(tmp_path):
    """Would catch an index that is left behind: the next load would read the old weights."""
    config = config_of(*SHAPES[1])
    reference(config, seed=1).save_pretrained(tmp_path, max_shard_size="10KB")
    saved = randomise(model.Qwen3(config), seed=2)
    model.save(saved, tmp_path)
    assert torch.equal(model.load(tmp_path).norm.weight, saved.norm.weight)


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_damaged_index_is_named(content, tmp_path):
    """Would catch a KeyError that names no file."""
    (write_checkpoint(tmp_path) / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        model.load(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    """Would catch a partly downloaded checkpoint that loads."""
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00002\.safetensors is missing"):
        model.load(tmp_path)


def test_all_tensors_that_do_not_fit_are_in_one_message(tmp_path):
    """Would catch a loader that stops at the first problem, or never checks that every tensor arrived."""
    tensors = load_file(write_checkpoint(tmp_path) / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(48)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(5, 7)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        model.load(tmp_path)
    message = str(error.value)
    assert "3 tensors do not fit" in message
    assert "missing norm.weight" in message
    assert "unexpected layers.0.self_attn.q_proj.bias" in message
    assert "layers.1.mlp.up_proj.weight has shape [5, 7], config.json says [81, 40]" in message


@pytest.mark.parametrize("damage", ["cut", "overwritten", "empty"])
def test_a_damaged_weight_file_is_named(damage, tmp_path):
    """Would catch an interrupted download that ends in a bare error of the safetensors library."""
    path = write_checkpoint(tmp_path) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "overwritten": b"x" * 64, "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a readable safetensors file"):
        model.load(tmp_path)


def test_a_damaged_config_is_named(tmp_path):
    """Would catch a JSON error that does not say which file."""
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        model.load(tmp_path)


def test_missing_fields_of_a_config_are_named(tmp_path):
    """Would catch a TypeError about an argument of a constructor."""
    write_checkpoint(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["intermediate_size"], raw["num_hidden_layers"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"config\.json: missing intermediate_size, num_hidden_layers"):
        model.load(tmp_path)


UNSUPPORTED = {
    "mixture of experts": ({"model_type": "qwen3_moe", "num_experts": 128}, "qwen3_moe"),
    "another architecture": ({"model_type": "llama"}, "llama"),
    "no architecture": ({"model_type": None}, "model_type is None"),
    "rope scaling, transformers 4": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    "rope scaling, before 4.45": ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
    "rope scaling, transformers 5": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "yarn"),
    "rope scaling, both spellings": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_scaling": {"type": "yarn"}},
        "yarn",
    ),
    "quantised weights": ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    "biases": ({"attention_bias": True}, "attention_bias"),
    "sliding windows": ({"use_sliding_window": True}, "use_sliding_window"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_computed_is_refused(name, tmp_path):
    """Would catch a config option that is ignored silently: the model then loads and is subtly another one."""
    changes, named = UNSUPPORTED[name]
    write_checkpoint(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"config\.json: .*{named}"):
        model.load(tmp_path)


@pytest.mark.parametrize("spelling", ["rope_theta", "rope_parameters"])
def test_rope_theta_is_read_in_both_spellings(spelling, tmp_path):
    """Would catch a checkpoint of transformers 5 that is rotated with the default base."""
    write_checkpoint(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["rope_theta"]
    raw |= {"rope_theta": 777.0} if spelling == "rope_theta" else {"rope_parameters": {"rope_theta": 777.0}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert model.load(tmp_path).config.rope_theta == 777.0


@torch.no_grad()
def test_a_cache_that_grows_forgets_nothing_and_takes_back_what_did_not_grow(qwen):
    """Would catch keys lost in growing, and rows put back that see what another row has left in their place."""
    ids = some_ids(qwen.config, rows=2, length=9)
    cache = qwen.new_cache(2, 6)
    qwen(ids[:, :6], cache)
    part = cache.take(torch.tensor([1]))
    cache.reserve(7)
    qwen(ids[:, 6:7] + 1, cache)  # row 1 goes another way here, and is then put back to where it was
    cache.put(torch.tensor([1]), part)
    assert cache.lengths.tolist() == [7, 6] and cache.keys.shape[3] >= 7
    cache.lengths = torch.tensor([6, 6])
    cache.reserve(9)
    out = qwen(ids[:, 6:], cache)
    torch.testing.assert_close(out, qwen(ids)[:, 6:], atol=2e-5, rtol=0)
