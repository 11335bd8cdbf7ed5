"""logprob.py against closed forms in float64, and its Triton kernels against its torch path.

How rows are packed is held by the docstring's example here, and against rows that are run alone in test_train.py.

Without a GPU the kernels run under Triton's interpreter. It must be asked for before triton is imported, hence a second
process: this file run as a script.
"""

import doctest
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import logprob

needs_triton = pytest.mark.skipif(logprob.triton is None, reason="triton is not installed")
not_interpreted = pytest.mark.skipif(logprob.INTERPRETED, reason="TRITON_INTERPRET=1 replaces what this test is about")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def make_inputs(N, C, V, dtype=torch.float64, valid_vocab=None, seed=0, scale=1.0):
    """Random hidden [N, C], head_weight [V, C] with logits of deviation about 3 * scale, and targets [N]."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, C, generator=generator, dtype=torch.float64)
    head = torch.randn(V, C, generator=generator, dtype=torch.float64) * 3 * scale / C**0.5
    targets = torch.randint(valid_vocab or V, (N,), generator=generator)
    return hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_(), targets


def closed_form(hidden, head, targets, temperature=1.0, valid_vocab=None):
    """The definition in float64: log-probs and entropies [N], from all of the logits at once."""
    log_softmax = (hidden.double() @ head.double()[:valid_vocab].T / temperature).log_softmax(-1)  # [N, valid_vocab]
    return log_softmax.gather(1, targets[:, None]).squeeze(1), -(log_softmax.exp() * log_softmax).sum(-1)


def gradients(function, hidden, head, *args):
    """logps, entropy, and the gradients by hidden and head of the sum of logps weighted 1, 3, 5, ..."""
    logps, entropy = function(hidden, head, *args)
    weights = torch.arange(1, 2 * len(logps) + 1, device=logps.device, dtype=logps.dtype)[::2]  # not contiguous
    return logps.detach(), entropy.detach(), *torch.autograd.grad(logps, (hidden, head), weights)


def set_chunk_rows(monkeypatch, rows, head):
    monkeypatch.setattr(logprob, "CHUNK_BYTES", rows * head.shape[0] * head.element_size())


def assert_equal_within(actual, expected, tolerance):
    worst = (actual.double() - expected.double()).abs().max().item()
    assert worst <= tolerance, f"off by {worst:.2e}, more than {tolerance:.2e}"


# The definition


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("valid_vocab", [None, 37, 1])
@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_values_and_gradients_equal_the_definition(monkeypatch, temperature, valid_vocab, chunk_rows):
    """Catches a wrong formula, a temperature applied once instead of in both passes, a lost or doubled last chunk."""
    hidden, head, targets = make_inputs(N=11, C=7, V=41, valid_vocab=valid_vocab)
    set_chunk_rows(monkeypatch, chunk_rows, head)
    actual = gradients(logprob.token_logps, hidden, head, targets, temperature, valid_vocab)
    expected = gradients(closed_form, hidden, head, targets, temperature, valid_vocab)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_equal_within(ours, theirs, 1e-12 * (1 + theirs.abs().max().item()))


def test_gradcheck(monkeypatch):
    """Catches a backward that agrees with the definition only for one choice of upstream gradient."""
    hidden, head, targets = make_inputs(N=5, C=3, V=7, valid_vocab=6)
    set_chunk_rows(monkeypatch, 2, head)
    assert torch.autograd.gradcheck(lambda h, w: logprob.token_logps(h, w, targets, 0.7, 6)[0], (hidden, head))


def test_entropy_of_a_uniform_and_of_a_certain_distribution():
    """Catches bits for nats, and a sign: log V where all logits are equal, 0 where one is far above the rest."""
    head = torch.tensor([[0.0, 500.0], [0.0, 0.0], [0.0, 0.0]])
    _, entropy = logprob.token_logps(torch.eye(2), head, torch.tensor([0, 0]))
    torch.testing.assert_close(entropy, torch.tensor([3.0, 1.0]).log(), atol=1e-6, rtol=0)


def test_no_gradient_flows_through_entropy():
    """Catches an entropy bonus that would train on a gradient that the backward does not compute."""
    hidden, head, targets = make_inputs(N=4, C=3, V=5)
    logps, entropy = logprob.token_logps(hidden, head, targets)
    assert logps.requires_grad and not entropy.requires_grad


def test_second_derivatives_are_refused():
    """Catches a silent zero where a gradient penalty expects the derivative of the gradient."""
    hidden, head, targets = make_inputs(N=4, C=3, V=5)
    logps, _ = logprob.token_logps(hidden, head, targets)
    (gradient,) = torch.autograd.grad((logps**2).sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_examples_of_the_docstrings_are_what_happens():
    """Catches a worked example that the code no longer computes: a reader checks the index algebra of `pack` by it."""
    failed, attempted = doctest.testmod(logprob)
    assert failed == 0 and attempted > 0


# Padded vocabulary


def test_padded_ids_have_no_probability():
    """Catches padded rows in the normaliser: the probabilities of the valid ids must add up to 1 without them."""
    hidden, head, _ = make_inputs(N=1, C=4, V=9)
    logps, entropy = logprob.token_logps(hidden.expand(6, 4), head, torch.arange(6), 1.3, valid_vocab=6)
    assert_equal_within(logps.exp().sum(), torch.tensor(1.0), 1e-14)
    assert_equal_within(-(logps.exp() * logps).sum(), entropy[0], 1e-14)


@pytest.mark.parametrize("padding", [50.0, float("nan")])
def test_padded_rows_of_the_head_are_neither_read_nor_trained(padding):
    """Catches masking by a large negative number or by a product with 0: what stands in padded rows must not matter."""
    hidden, head, targets = make_inputs(N=8, C=4, V=9, valid_vocab=6)
    clean = gradients(logprob.token_logps, hidden, head, targets, 1.0, 6)
    with torch.no_grad():
        head[6:] = padding
    dirty = gradients(logprob.token_logps, hidden, head, targets, 1.0, 6)
    for before, after in zip(clean, dirty, strict=True):
        assert torch.equal(before, after)
    assert torch.equal(dirty[3][6:], torch.zeros(3, 4, dtype=torch.float64))


# Precision


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_stays_within_its_bound(dtype, temperature):
    """Catches sums over the vocabulary in half precision.

    Against float64 on the same inputs, with e the largest error of a logit, logps is within
    2 e / temperature + 1e-6 (1 + |logps|) and entropy, to first order in e, within 2 entropy e / temperature + 1e-5.
    A logit x is rounded by up to 2^-24 |x| in fp32, but 2^-8 |x| in bf16, 0.06 near 20; hidden.float() avoids that.
    """
    hidden, head, targets = make_inputs(N=33, C=64, V=5003, dtype=dtype)
    logps, entropy = logprob.token_logps(hidden, head, targets, temperature)
    expected_logps, expected_entropy = closed_form(hidden, head, targets, temperature)
    e = ((hidden @ head.T).double() - hidden.double() @ head.double().T).abs().max()
    assert logps.dtype == entropy.dtype == torch.float32
    bound = 2 * e / temperature + 1e-6 * (1 + expected_logps.abs())
    assert ((logps - expected_logps).abs() <= bound).all()
    assert ((entropy - expected_entropy).abs() <= 2 * expected_entropy * e / temperature + 1e-5).all()


def test_logits_of_ten_thousand_are_exact():
    """Catches exp() of the raw logit (overflow), and a large maximum added before it is subtracted (lost digits)."""
    head = torch.tensor([[10000.0], [9999.0], [-10000.0]], requires_grad=True)
    hidden = torch.ones(3, 1)
    logps, entropy = logprob.token_logps(hidden, head, torch.arange(3))
    small = torch.tensor([0.0, -1.0, -20000.0], dtype=torch.float64).log_softmax(-1)
    torch.testing.assert_close(logps.detach().double(), small, atol=1e-7, rtol=1e-7)
    assert_equal_within(entropy, torch.full((3,), -(small.exp() * small).sum().item()), 1e-7)
    (gradient,) = torch.autograd.grad(logps[1], head)
    assert_equal_within(gradient[:, 0], torch.tensor([0.0, 1.0, 0.0]) - small.exp(), 1e-7)


def test_logits_of_minus_infinity_have_probability_zero():
    """Catches 0 * -inf = NaN in the entropy."""
    head = torch.tensor([[0.0], [float("-inf")], [0.0]])
    logps, entropy = logprob.token_logps(torch.ones(3, 1), head, torch.arange(3))
    torch.testing.assert_close(logps.exp(), torch.tensor([0.5, 0.0, 0.5]))
    torch.testing.assert_close(entropy, torch.full((3,), 2.0).log())


def test_head_gradient_of_many_chunks_is_summed_in_fp32(monkeypatch):
    """Catches accumulation in bf16: 600 gradients of 0.5 are 300, but a bf16 sum of them stops at 128."""
    hidden, head = torch.ones(600, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    set_chunk_rows(monkeypatch, 1, head)
    logprob.token_logps(hidden, head, torch.zeros(600, dtype=torch.int64))[0].sum().backward()
    assert head.grad.flatten().tolist() == [300.0, -300.0]


def test_autocast_around_the_forward_changes_nothing():
    """Catches a forward in bf16 and a backward, which runs outside autocast, that rebuilds its logits in fp32."""
    hidden, head, targets = make_inputs(N=9, C=8, V=50, dtype=torch.float32)
    plain = gradients(logprob.token_logps, hidden, head, targets)
    with torch.autocast("cpu", torch.bfloat16):
        logps, entropy = logprob.token_logps(hidden, head, targets)
    grads = torch.autograd.grad(logps, (hidden, head), torch.arange(1.0, 19.0, 2.0))
    for one, other in zip(plain, (logps, entropy, *grads), strict=True):
        assert torch.equal(one, other)


def test_fp32_head_with_bf16_hidden_gets_fp32_gradients():
    """Catches master weights that receive a gradient of the dtype of the activations."""
    hidden, head, targets = make_inputs(N=9, C=8, V=50, dtype=torch.bfloat16)
    master = head.detach().float().requires_grad_()
    mixed = gradients(logprob.token_logps, hidden, master, targets)
    half = gradients(logprob.token_logps, hidden, head, targets)
    assert mixed[2].dtype == torch.bfloat16 and mixed[3].dtype == torch.float32
    for one, other in zip(mixed, half, strict=True):
        assert torch.equal(one.to(other.dtype), other)


# Chunks and memory


def test_the_chunk_size_changes_nothing(monkeypatch):
    """Catches rows that see their neighbours: one chunk, many chunks and ragged chunks are the same computation."""
    hidden, head, targets = make_inputs(N=23, C=16, V=101, dtype=torch.float32, valid_vocab=97)
    whole = gradients(logprob.token_logps, hidden, head, targets, 0.8, 97)
    for rows in (1, 5, 22):
        set_chunk_rows(monkeypatch, rows, head)
        for one, other in zip(whole, gradients(logprob.token_logps, hidden, head, targets, 0.8, 97), strict=True):
            assert_equal_within(one, other, 1e-6 * (1 + one.abs().max().item()))


def test_the_same_inputs_give_the_same_bits(monkeypatch):
    """Catches anything that would make the ratio of unchanged weights differ from exactly 1."""
    hidden, head, targets = make_inputs(N=23, C=16, V=101, dtype=torch.bfloat16)
    set_chunk_rows(monkeypatch, 5, head)
    first, second = (gradients(logprob.token_logps, hidden, head, targets) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_only_inputs_and_vectors_are_saved_for_backward():
    """Catches autograd keeping logits: an [N, V] tensor among the saved ones is what chunking is there to avoid."""
    hidden, head, targets = make_inputs(N=13, C=4, V=50)
    shapes = []

    def pack(tensor):
        shapes.append(list(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logprob.token_logps(hidden, head, targets)
    assert shapes == [[13, 4], [50, 4], [13], [13], [13]]


class LiveMemory(TorchDispatchMode):
    """Counts matmuls, and sums the bytes of the living results of all operations: .peak is the largest sum."""

    def __init__(self):
        super().__init__()
        self.storages, self.peak, self.matmuls = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.matmuls += function in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.storages = {key: entry for key, entry in self.storages.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(nbytes for _, nbytes in self.storages.values()))
        return result


def live_memory(N, trained=("hidden", "head"), C=4):
    hidden, head, targets = make_inputs(N, C, V=1000, dtype=torch.float32)
    hidden.requires_grad_("hidden" in trained)
    head.requires_grad_("head" in trained)
    with LiveMemory() as memory:
        logprob.token_logps(hidden, head, targets)[0].sum().backward()
    return memory


@not_interpreted
def test_peak_memory_grows_by_vectors_not_by_logits(monkeypatch):
    """Catches chunks that are all kept until the backward, in whatever attribute or list: the peak would grow by V."""
    monkeypatch.setattr(logprob, "CHUNK_BYTES", 8 * 1000 * 4)
    growth = live_memory(N=96).peak - live_memory(N=32).peak
    assert growth < (96 - 32) * 80, "80 bytes per row hold 4 floats of gradient and a few vectors, not 1000 logits"


@not_interpreted
def test_nothing_of_the_heads_size_stands_beside_its_gradient(monkeypatch):
    """Catches a product [V, C] that is made for each chunk and then added."""
    monkeypatch.setattr(logprob, "CHUNK_BYTES", 2 * 1000 * 4)
    assert live_memory(N=8, C=400).peak < 2.1 * 1000 * 400 * 4, "the head and its gradient"


@pytest.mark.parametrize("rows, chunk_rows", [(0, 5), (1, 5), (10, 5), (11, 5), (23, 5), (2048, 441)])
def test_chunks_are_few_and_of_one_size(rows, chunk_rows):
    """Catches a last chunk of a few rows, whose products cost nearly a whole chunk's; a lost row; a chunk too large."""
    chunks = [list(range(rows)[part]) for part in logprob._chunks(rows, chunk_rows)]
    assert [row for chunk in chunks for row in chunk] == list(range(rows))
    assert len(chunks) == -(-rows // chunk_rows)
    sizes = [len(chunk) for chunk in chunks]
    assert not sizes or max(sizes) <= chunk_rows and max(sizes) - min(sizes) < len(chunks)


def test_gradients_that_nobody_needs_are_not_computed():
    """Catches a matmul a chunk, and for the head a buffer [V, C], that are thrown away."""
    assert live_memory(N=8).matmuls == 4  # logits, logits again, and one for each gradient
    assert live_memory(N=8, trained=("hidden",)).matmuls == live_memory(N=8, trained=("head",)).matmuls == 3


def test_no_rows():
    """Catches a crash, or a missing gradient under data parallelism, where a micro-batch has no sampled token."""
    hidden, head, targets = make_inputs(N=0, C=4, V=9)
    logps, entropy = logprob.token_logps(hidden, head, targets)
    logps.sum().backward()
    assert logps.shape == entropy.shape == (0,)
    assert hidden.grad.shape == (0, 4) and torch.equal(head.grad, torch.zeros(9, 4, dtype=torch.float64))


# Errors


@pytest.mark.parametrize("wrong, valid_vocab", [(-1, None), (9, None), (6, 6), (-100, 6)])
def test_a_target_outside_the_vocabulary_is_named(wrong, valid_vocab):
    """Catches an ignore-index or a padded id taken for a token: on a GPU that reads another row's memory."""
    hidden, head, targets = make_inputs(N=5, C=4, V=9, valid_vocab=6)
    targets[3] = wrong
    with pytest.raises(ValueError, match=rf"targets\[3\] is {wrong}, outside \[0, {valid_vocab or 9}\)"):
        logprob.token_logps(hidden, head, targets, valid_vocab=valid_vocab)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden": torch.zeros(2, 3, 4)}, r"hidden \[N, C\].* got \[\[2, 3, 4\], \[9, 4\], \[5\]\]"),
        ({"head_weight": torch.zeros(4, 9)}, r"head_weight \[V, C\].* got \[\[5, 4\], \[4, 9\], \[5\]\]"),
        ({"head_weight": torch.zeros(9, 4, dtype=torch.int64)}, r"must be floating point.*, got .*, torch.int64 and"),
        ({"targets": torch.zeros(4, dtype=torch.int64)}, r"targets \[N\].* got \[\[5, 4\], \[9, 4\], \[4\]\]"),
        ({"targets": torch.zeros(5)}, r"targets integer, got .* and torch.float32"),
        ({"temperature": 0.0}, r"temperature must be positive, .* got 0.0, 9"),
        ({"temperature": float("nan")}, r"temperature must be positive, .* got nan, 9"),
        ({"temperature": float("inf")}, r"temperature must be positive, .* got inf, 9"),
        ({"valid_vocab": 10}, r"valid_vocab in \[1, 9\], got 1.0, 10"),
        ({"valid_vocab": 0}, r"valid_vocab in \[1, 9\], got 1.0, 0"),
        ({"targets": torch.zeros(5, dtype=torch.int64, device="meta")}, "on one device, got cpu, cpu and meta"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    """Catches broadcasting that turns a wrong shape into a plausible number."""
    fitting = {"hidden": torch.zeros(5, 4), "head_weight": torch.zeros(9, 4), "targets": torch.zeros(5).long()}
    with pytest.raises(ValueError, match=message):
        logprob.token_logps(**(fitting | change))


# The kernels


@not_interpreted
def test_cpu_tensors_and_float64_take_the_torch_path():
    """Catches a dispatch that hands CPU tensors to a compiled kernel."""
    assert not logprob._use_triton(torch.zeros(1)) and not logprob._use_triton(torch.zeros(1, dtype=torch.float64))


def test_works_where_triton_is_not_installed(monkeypatch):
    """Catches a use of triton on import, which would break macOS and Windows."""
    monkeypatch.setitem(sys.modules, "triton", None)  # None makes the import statement raise ImportError
    spec = importlib.util.spec_from_file_location("logprob_without_triton", logprob.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hidden, head, targets = make_inputs(N=5, C=4, V=9, dtype=torch.float32)
    assert module.triton is None
    assert_equal_within(module.token_logps(hidden, head, targets)[0], closed_form(hidden, head, targets)[0], 1e-5)


KERNEL_CASES = {  # 4650 of 4700 ids: two blocks of 4096, the second one ragged, and padded columns behind it
    "fp32": {"dtype": torch.float32},
    "fp32, hot": {"dtype": torch.float32, "temperature": 2.5},
    "fp32, cold": {"dtype": torch.float32, "temperature": 0.01},
    "fp32, logits up to 1e4": {"dtype": torch.float32, "scale": 1e3},
    "fp32, small": {"dtype": torch.float32, "V": 40, "valid_vocab": 37},
    "fp32, one id": {"dtype": torch.float32, "V": 3, "valid_vocab": 1},
    "bf16": {"dtype": torch.bfloat16},
    "fp16": {"dtype": torch.float16},
}


def kernel_case(dtype, temperature=0.8, scale=1.0, V=4700, valid_vocab=4650, device="cpu"):
    """Values and gradients of 7 rows in chunks of 3, with targets and upstream gradients that are not contiguous."""
    hidden, head, targets = make_inputs(7, 16, V, dtype, valid_vocab, scale=scale)
    hidden, head = (tensor.detach().to(device).requires_grad_() for tensor in (hidden, head))
    targets = torch.stack([targets, targets], 1).to(device)[:, 0]
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_chunk_rows(monkeypatch, 3, head)
        return gradients(logprob.token_logps, hidden, head, targets, temperature, valid_vocab)


def infinite_case(stats):
    """A first block that is -inf throughout, a target with probability 0, and one with 1/2."""
    logits = torch.full((2, 4700), float("-inf"))
    logits[:, 4200] = logits[:, 4300] = 7.0
    return [result.tolist() for result in stats(logits, torch.tensor([4200, 3]), 1.0)]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """Results of the kernels under the interpreter, by case, from a process started with TRITON_INTERPRET=1."""
    path = tmp_path_factory.mktemp("kernels") / "results.pt"
    command = [sys.executable, "-W", "error::RuntimeWarning", __file__, str(path)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return torch.load(path)


def assert_kernel_matches_torch(kernel, reference, dtype):
    """Both start from the same logits. Values: fp32 sums in another order. Gradients: the same, or one rounding of each
    gradient by a logit to bf16 or fp16, where Triton's interpreter cuts off what a GPU rounds."""
    for ours, theirs in zip(kernel[:2], reference[:2], strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert ((ours - theirs).abs() <= 2e-6 * (1 + theirs.abs())).all()
    tolerance = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    for ours, theirs in zip(kernel[2:], reference[2:], strict=True):
        assert ours.dtype == theirs.dtype == dtype
        assert_equal_within((ours - theirs).float().norm(), torch.zeros(()), tolerance * theirs.float().norm().item())


@needs_triton
@pytest.mark.parametrize("name", KERNEL_CASES)
def test_interpreted_kernel_equals_the_torch_path(monkeypatch, interpreted, name):
    """Catches kernels that go wrong at block borders, on padded columns, in half precision or at a temperature."""
    assert interpreted["ran the kernels"]
    monkeypatch.setattr(logprob, "_use_triton", lambda logits: False)
    reference = kernel_case(**KERNEL_CASES[name])
    assert_kernel_matches_torch(interpreted[name], reference, KERNEL_CASES[name]["dtype"])


@needs_triton
def test_interpreted_kernel_equals_the_torch_path_on_minus_infinity(interpreted):
    """Catches inf - inf = NaN in a running maximum that has not yet seen a finite logit."""
    expected = infinite_case(logprob._stats_torch)
    assert expected[0] == pytest.approx([-0.693147, float("-inf")])
    assert expected[1] == pytest.approx([0.693147, 0.693147])
    for ours, theirs in zip(interpreted["minus infinity"], expected, strict=True):
        assert ours == pytest.approx(theirs)


@needs_triton
@not_interpreted
@pytest.mark.parametrize("target", [("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64)])
def test_kernels_compile_for_gpus(monkeypatch, tmp_path, target):
    """Catches what the interpreter accepts and the compiler does not; compiling needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    integers = {"targets_ptr": "*i64", "row_stride": "i32", "V": "i32", "temperature": "fp32", "BLOCK": "constexpr"}
    for kernel in (logprob._stats_kernel, logprob._gradient_kernel):
        types = {name: integers.get(name, "*bf16" if name == "logits_ptr" else "*fp32") for name in kernel.arg_names}
        source = ASTSource(kernel, types, constexprs={"BLOCK": logprob.VOCAB_BLOCK})
        compiled = logprob.triton.compile(source, target=GPUTarget(*target), options={"num_warps": 8})
        assert {"cubin", "hsaco"} & set(compiled.asm)


@needs_gpu
@needs_triton
@pytest.mark.parametrize("name", KERNEL_CASES)
def test_gpu_kernel_equals_the_torch_path(monkeypatch, name):
    """Catches what the interpreter cannot show: races, launch limits, the GPU's own exp, log and division."""
    kernel = kernel_case(**KERNEL_CASES[name], device="cuda")
    monkeypatch.setattr(logprob, "_use_triton", lambda logits: False)
    reference = kernel_case(**KERNEL_CASES[name], device="cuda")
    assert_kernel_matches_torch(kernel, reference, KERNEL_CASES[name]["dtype"])


@needs_gpu
@needs_triton
def test_gpu_kernel_reaches_rows_behind_2_to_the_31():
    """Catches 32-bit offsets: rows 2^30 apart put the third one where an int32 has wrapped around."""
    logits = torch.empty(2**31 + 4096, dtype=torch.bfloat16, device="cuda").as_strided((3, 4096), (2**30, 1))
    logits.copy_(torch.randn(3, 4096))
    targets = torch.tensor([0, 7, 4095], device="cuda")
    reference = logits.contiguous()
    stats = logprob._stats_triton(logits, targets, 1.0)
    logprob._gradient_triton_(logits, targets, stats[2], stats[3], torch.ones(3, device="cuda"), 1.0)
    expected = logprob._stats_torch(reference.clone(), targets, 1.0)
    for ours, theirs in zip(stats, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    logprob._gradient_torch_(reference, targets, expected[2], expected[3], torch.ones(3, device="cuda"), 1.0)
    torch.testing.assert_close(logits, reference)


if __name__ == "__main__":
    results = {name: kernel_case(**case) for name, case in KERNEL_CASES.items()}
    results["minus infinity"] = infinite_case(logprob._stats_triton)
    results["ran the kernels"] = logprob._use_triton(torch.zeros(1))
    torch.save(results, sys.argv[1])
