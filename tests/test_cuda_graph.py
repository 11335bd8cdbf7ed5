"""A decoding step that is recorded: when it is, and that it computes what the step as written does."""

import importlib.util
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from conftest import randomise

from data import load_tokenizer
from harness import cuda_graph
from harness.cuda_graph import Recorder, Recording, step
from harness.rundir import load_policy, policy_directory
from model import Cache, Config, Layer, Qwen3
from sampler import Sampling, rollout
from tiny.languages import LexiconTranslator, languages
from tiny.world import tasks

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


class Played:
    """A recording without a GPU: the step as it would be recorded, over all slots."""

    made = 0

    def __init__(self, model: Qwen3, cache: Cache):
        type(self).made += 1
        self.model, self.cache = (
            model,
            replace(cache, lengths=cache.lengths.clone(), recorder=None, sees_all_slots=True),
        )

    def replay(self, ids, lengths):
        self.cache.lengths.copy_(lengths)
        return self.model(ids, self.cache)


@torch.no_grad()
def test_a_cache_is_recorded_once_it_stands_still_and_again_after_it_moved(qwen, monkeypatch):
    """Catches a graph that reads keys where they were before the cache grew or lost rows, and one for every step."""
    monkeypatch.setattr(cuda_graph, "Recording", Played)
    monkeypatch.setattr(Played, "made", 0)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(qwen.config.vocab_size, (3, 40), generator=generator)
    cache, expected = qwen.new_cache(3, 4), qwen(ids)
    qwen(ids[:, :3], cache)
    for t in range(3, 40):
        if t == 24:
            cache.keep(torch.tensor([2, 0, 1]))
            ids, expected = ids[[2, 0, 1]], expected[[2, 0, 1]]
        cache.reserve(t + 1)  # moves at 4, 20 and 36
        cache.recorder = cache.recorder or Recorder()
        hidden = cache.recorder.step(qwen, ids[:, t : t + 1], cache)
        torch.testing.assert_close(hidden[:, 0], expected[:, t], atol=2e-5, rtol=0)
        assert cache.lengths.tolist() == [t + 1] * 3
    assert Played.made == 2, "from 8, from 28; the four steps between 20 and 24 and the four behind 36 are not worth it"


@pytest.mark.parametrize("move", [lambda c: c.keep(torch.tensor([0])), lambda c: c.extend(c.take(torch.tensor([0])))])
def test_a_cache_that_moves_lets_its_recording_go(qwen, move):
    """Catches a second copy of a cache that is held by the recording of where it was."""
    cache = qwen.new_cache(2, 4)
    cache.recorder = Recorder()
    cache.reserve(4)
    assert cache.recorder, "it had room"
    move(cache)
    assert cache.recorder is None


@torch.no_grad()
def test_a_step_that_sees_all_slots_is_the_step(qwen):
    """Catches a mask that lets a row see what stands behind its last token."""
    ids = torch.randint(qwen.config.vocab_size, (2, 6), generator=torch.Generator().manual_seed(1))
    cache = qwen.new_cache(2, 20)
    cache.keys.normal_()
    cache.values.normal_()
    qwen(ids[:, :5], cache)
    cache.lengths = torch.tensor([5, 3])
    other = replace(cache, keys=cache.keys.clone(), values=cache.values.clone(), lengths=cache.lengths.clone())
    last = torch.stack([ids[0, 5:], ids[1, 3:4]])
    out = qwen(last, replace(other, sees_all_slots=True))
    torch.testing.assert_close(out, qwen(last, cache), atol=2e-5, rtol=0)
    torch.testing.assert_close(out[1, 0], qwen(ids[1:, :4])[0, 3], atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("heads, key_heads", [(4, 1), (4, 2), (4, 4)])
def test_a_single_token_attends_as_the_last_of_many(heads, key_heads):
    """Catches query heads that are laid out beside another key head's keys."""
    model = randomise(Qwen3(Config(50, 24, 32, 2, heads, key_heads, 8)))
    ids = torch.randint(50, (3, 7), generator=torch.Generator().manual_seed(2))
    cache = model.new_cache(3, 7)
    model(ids[:, :6], cache)
    torch.testing.assert_close(model(ids[:, 6:], cache)[:, 0], model(ids)[:, 6], atol=2e-5, rtol=0)


@pytest.fixture
def no_gpu(monkeypatch):
    """What a recording asks of CUDA, written down: (what, of which stream or device)."""
    asked = []

    @contextmanager
    def noted(what, given=None, **options):
        asked.append((what, options.get("stream", given)))
        yield

    class Stream:
        def wait_stream(self, other):
            asked.append(("wait", self))

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: noted("device", device))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: noted("warm up", stream))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: noted("record", **options))
    one = Stream()
    monkeypatch.setattr(cuda_graph, "side_stream", lambda device: one)
    return asked, one


@torch.no_grad()
def test_a_step_is_recorded_on_the_device_of_its_cache_and_on_one_stream(qwen, no_gpu, monkeypatch):
    """Catches an empty graph of another GPU, whose replay returns the same state for ever, and a workspace for each."""
    asked, one = no_gpu
    monkeypatch.setattr(cuda_graph, "fused", lambda: Layer.forward)
    cache = qwen.new_cache(2, 4)
    Recording(qwen, cache)
    assert asked == [("device", cache.lengths.device), ("wait", one), ("warm up", one), ("record", one)]
    assert cache.lengths.tolist() == [0, 0], "the cache's own are those of its rows"


@torch.no_grad()
def test_a_recording_that_fails_leaves_the_layers_as_written(qwen, no_gpu, monkeypatch):
    """Catches a training step through layers that were fused for decoding."""

    def fails(*given):
        raise RuntimeError("no compiler")

    before = Layer.forward
    monkeypatch.setattr(cuda_graph, "fused", lambda: fails)
    with pytest.raises(RuntimeError, match="no compiler"):
        Recording(qwen, qwen.new_cache(2, 4))
    assert Layer.forward is before


def test_without_triton_layers_are_recorded_as_written(monkeypatch):
    """Catches a decoder that needs a compiler where the trainer does not."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cuda_graph.fused.__wrapped__() is Layer.forward


@needs_gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype, apart", [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_on_a_gpu_the_recording_is_the_step(dtype, apart):
    """Catches a fused layer that computes something else, and a replay that reads or writes the wrong slots."""
    torch.manual_seed(0)
    model = randomise(Qwen3(Config(500, 256, 512, 4, 8, 2, 64))).to("cuda", dtype)
    ids = torch.randint(500, (5, 40), device="cuda")
    caches = [model.new_cache(5, 44) for _ in range(2)]
    for cache in caches:
        model(ids[:, :20], cache)
    for t in range(20, 40):
        recorded, written = step(model, ids[:, t : t + 1], caches[0]), model(ids[:, t : t + 1], caches[1])
        assert (recorded - written).norm() <= apart * written.norm()
    assert isinstance(caches[0].recorder.recording, Recording)
    assert caches[0].lengths.tolist() == caches[1].lengths.tolist() == [40] * 5
    assert (caches[0].keys - caches[1].keys).norm() <= apart * caches[1].keys.norm()


@needs_gpu
def test_on_a_gpu_rollouts_are_the_same_with_recordings_and_without(monkeypatch):
    """Catches a row that draws from another one's state, or from that of the step before."""
    model, _ = load_policy("tiny/eager", "cuda")
    tokenizer = load_tokenizer(policy_directory("tiny/eager"))
    some = tasks("test", languages()[:8], 24, 0)

    def sampled():
        generator = torch.Generator().manual_seed(0)
        return rollout(model, tokenizer, some, 4, LexiconTranslator(), generator, Sampling(max_new_tokens=96))

    made = []
    monkeypatch.setattr(cuda_graph, "PATIENCE", 1)
    monkeypatch.setattr(cuda_graph, "Recording", lambda *given: made.append(0) or Recording(*given))
    recorded = sampled()
    assert made
    monkeypatch.setattr(cuda_graph, "PATIENCE", 10**9)
    assert sum(a.ids == b.ids for a, b in zip(recorded, sampled(), strict=True)) >= 0.97 * len(recorded)
