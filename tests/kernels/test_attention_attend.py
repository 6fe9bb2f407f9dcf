"""`disentangled_attention`: what holds on any device, which implementation runs, what is refused."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from attention_problems import arguments, layout

from kernels.attention import attend, disentangled_attention

IMPLEMENTATIONS = {"reference": torch.float64, "strided": torch.float64, "c": torch.float32}
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_other_sequences_are_never_read(name: str) -> None:
    lengths = [12, 5]
    qkv, *tables = arguments(2, 4, lengths, IMPLEMENTATIONS[name])
    before = disentangled_attention(qkv, *tables, *layout(lengths), implementation=name)
    qkv[12:, :, 1:] = 1e6
    after = disentangled_attention(qkv, *tables, *layout(lengths), implementation=name)
    torch.testing.assert_close(after[:12], before[:12], rtol=0, atol=0)
    assert (after[12:] != before[12:]).all()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_dropout_keeps_the_mean_and_drops_its_share(name: str) -> None:
    lengths = [32] * 4
    qkv, *tables = arguments(4, 32, lengths, IMPLEMENTATIONS[name])
    qkv[:] = torch.tensor([0.0, 0.0, 1.0])[:, None]  # so that the output is the sum of the kept weights
    torch.manual_seed(3)
    out = disentangled_attention(qkv, *tables, *layout(lengths), dropout_p=0.25, implementation=name)
    kept = out[..., 0] * 0.75 * 32  # uniform weights: the number of keys kept of 32
    torch.testing.assert_close(kept, kept.round(), atol=1e-5, rtol=0)
    assert abs(float(kept.mean()) / 32 - 0.75) < 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": (8, 2, 4, 3)}, "qkv must be"),
        ({"rel_k": (15, 2, 4)}, "rel_k, rel_q must be"),
        ({"cu_seqlens": (1,)}, "cu_seqlens must have 2 to 9 entries"),
        ({"qkv": (20, 2, 3, 4)}, "some are longer than 8"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: dict[str, tuple[int, ...]], message: str) -> None:
    shapes = {"qkv": (8, 2, 3, 4), "rel_k": (16, 2, 4), "rel_q": (16, 2, 4), "cu_seqlens": (3,)} | change
    with pytest.raises(ValueError, match=message):
        disentangled_attention(*(torch.ones(shape) for shape in shapes.values()), 8)


@pytest.mark.parametrize("dropout_p", [-0.1, 1.0])
def test_a_share_to_drop_that_is_none_is_refused(dropout_p: float) -> None:
    with pytest.raises(ValueError, match="dropout_p must be at least 0 and less than 1"):
        disentangled_attention(*arguments(1, 3, [2], torch.float64), *layout([2]), dropout_p=dropout_p)


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="'magic', choose from"):
        disentangled_attention(*arguments(1, 3, [2], torch.float64), *layout([2]), implementation="magic")


@needs_triton
@pytest.mark.parametrize(
    ("device", "capability", "dtype", "has_kernel", "name"),
    [
        ("cuda", (8, 0), torch.bfloat16, True, "triton"),
        ("cuda", (7, 5), torch.float32, True, "strided"),
        ("cuda", (9, 0), torch.bfloat16, False, "strided"),
        ("cpu", None, torch.float32, True, "c"),
        ("cpu", None, torch.bfloat16, True, "strided"),
    ],
)
def test_what_auto_takes(
    device: str,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    has_kernel: bool,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    assert attend._choice("auto", torch.device(device), dtype, has_kernel) == name


def test_without_a_compiler_attention_pads_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attend, "why_not_in_c", lambda: "no C compiler")
    monkeypatch.setattr("kernels.backend._logged", set())
    assert attend.pads_sequences(torch.device("cpu"), torch.float32, 64)
    assert "c is left out: no C compiler" in caplog.text
    monkeypatch.undo()
    assert not attend.pads_sequences(torch.device("cpu"), torch.float32, 64)
    assert attend.pads_sequences(torch.device("cpu"), torch.bfloat16, 64)
    with pytest.raises(ValueError, match="'c' cannot run here: it is for float32 on a CPU"):
        disentangled_attention(*arguments(1, 3, [2], torch.float64), *layout([2]), implementation="c")


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "head_width"), [(torch.float64, 32), (torch.float16, 24), (torch.float32, 128)]
)
def test_heads_without_a_fused_kernel_are_an_error(
    dtype: torch.dtype, head_width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    tensors = arguments(1, head_width, [3], dtype)
    with pytest.raises(ValueError, match=f"'triton' cannot run here: it is for {dtype} heads of width"):
        disentangled_attention(*tensors, *layout([3]), implementation="triton")


@needs_triton
def test_without_a_gpu_and_without_the_interpreter_the_fused_kernels_cannot_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    tensors = arguments(1, 32, [3], torch.float32)
    with pytest.raises(ValueError, match="'triton' cannot run here: the tensors are on cpu, not on a GPU"):
        disentangled_attention(*tensors, *layout([3]), implementation="triton")


def test_importing_attention_does_not_import_the_compiler() -> None:
    program = "import sys, kernels.attention; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
