"""chatglm.devices: choices of device and type, memory of the machine and of a model."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chatglm import devices
from chatglm.devices import (
    available_memory,
    choose_device,
    choose_dtype,
    container_available,
    describe_devices,
    dtype_warning,
)
from chatglm.errors import DeviceError
from chatglm.loading.memory_estimate import (
    cache_bytes,
    count_parameters,
    memory_message,
    memory_needed,
    precision_name,
    type_for,
)
from chatglm.models import family_of
from chatglm.sizes import format_bytes
from tests import forking
from tests.no_cuda import forbid_cuda

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda:0"), torch.device("mps")
ROOT = Path(__file__).parents[1]
# Everything a program on a CPU does, from the first import on.
ON_A_CPU = """
import sys
import torch
from tests.no_cuda import forbid_cuda
torch.set_num_threads(1)
forbid_cuda()
from chatglm.pipeline import load_pipeline
from tests.serving.servers import serving
for options in ({}, {"quantize": 4}):
    with load_pipeline("demo", device="cpu", **options) as pipeline:
        for seed in (None, 1):
            assert pipeline.chat("hello", seed=seed, max_new_tokens=3)[0]
        assert pipeline.chat("hello", do_sample=False, max_new_tokens=3)[0]
with load_pipeline("demo", device="cpu") as pipeline, serving(pipeline) as server:
    assert server.post("/", json={"prompt": "hello", "max_length": 64}).json()["response"]
try:
    torch.cuda.is_available()
except AssertionError:
    sys.exit(0)
sys.exit("CUDA could be touched")
"""


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5_000_000_000, 16_000_000_000))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Test GPU")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_cpu_never_asks_about_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> bool:
        raise AssertionError("CUDA was touched")

    monkeypatch.setattr(torch.cuda, "is_available", explode)
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == choose_device(" CPU ") == CPU


@pytest.mark.slow
def test_a_program_on_a_cpu_never_touches_cuda() -> None:
    done = forking.run(
        [sys.executable, "-c", ON_A_CPU], preload=forking.TORCH, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_planning_for_mps_never_touches_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    forbid_cuda(monkeypatch.setattr)
    family = family_of({"model_type": "chatglm"})
    device = choose_device("mps")
    for bits in (0, 4):
        network = family.empty_network(family.config({"num_layers": 1, "quantization_bit": bits}))
        parameters = list(network.parameters())
        dtype = type_for("auto", device, parameters)
        assert (device, dtype) == (MPS, torch.float16)
        assert not dtype_warning(dtype, device)
        need = memory_needed(parameters, network.config, network.spec, dtype, device)
        precision = precision_name(network.config, dtype, device)
        assert precision == ("int4 on mps (activations fp16)" if bits else "fp16 on mps")
        assert f"{precision}: needs " in memory_message(need, precision, available_memory(device))


@pytest.mark.usefixtures("no_gpu")
def test_no_mps_device() -> None:
    with pytest.raises(DeviceError, match=r"no MPS device here .*Use --device cpu\."):
        choose_device("mps")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("name", "index"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_is_chosen(name: str, index: int) -> None:
    assert choose_device(name) == torch.device("cuda", index)


@pytest.mark.usefixtures("no_gpu")
def test_auto_without_a_gpu() -> None:
    assert choose_device() == CPU


@pytest.mark.usefixtures("no_gpu")
def test_auto_on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device() == choose_device("mps") == torch.device("mps")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "tpu", "cuda:x", "cpu:1", ""])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(DeviceError) as raised:
        choose_device(name)
    assert raised.value.remedy


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_beyond_the_last() -> None:
    with pytest.raises(DeviceError, match=r"no device cuda:2; this machine has 2\. Use cuda:0 to cuda:1"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp32", torch.float32),
        ("float32", torch.float32),
        ("BF16", torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("fp16", torch.float16),
        ("half", torch.float16),
        ("torch.float16", torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_types_by_name(name: str | torch.dtype, dtype: torch.dtype) -> None:
    assert choose_dtype(name, CPU, 0) == dtype


def test_auto_types() -> None:
    assert choose_dtype("auto", CPU, 999_999_999) == torch.float32
    assert choose_dtype("auto", CPU, 1_000_000_000) == torch.bfloat16
    assert choose_dtype("auto", CUDA, 1) == torch.float16
    assert choose_dtype("auto", MPS, 1) == torch.float16


@pytest.mark.parametrize("name", ["int8", torch.int8, "fp64", ""])
def test_a_type_that_is_none(name: str | torch.dtype) -> None:
    with pytest.raises(DeviceError, match="Use auto, fp32, bf16 or fp16"):
        choose_dtype(name, CPU, 0)


def test_fp16_on_a_cpu_is_remarked() -> None:
    assert "slow" in dtype_warning(torch.float16, CPU)
    assert not dtype_warning(torch.float16, CUDA)
    assert not dtype_warning(torch.bfloat16, CPU)


@pytest.mark.parametrize(("capability", "is_remarked"), [((7, 5), True), ((8, 0), False), ((12, 0), False)])
def test_bf16_on_an_old_gpu_is_remarked(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], is_remarked: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert ("slow" in dtype_warning(torch.bfloat16, CUDA)) == is_remarked
    assert not dtype_warning(torch.float16, CUDA)


def test_estimate_of_chatglm_6b() -> None:
    family = family_of({"model_type": "chatglm"})
    spec = family.spec(family.config({}))
    assert cache_bytes(spec, torch.float16) == 2 * 28 * 4096 * 2048 * 2
    grouped = replace(spec, num_kv_heads=2, context_limit=8192)
    assert cache_bytes(grouped, torch.float32) == 2 * 28 * 2 * 128 * 8192 * 4


@pytest.mark.parametrize("bits", [0, 8, 4])
def test_parameters_are_counted_not_bytes(bits: int) -> None:
    """6.17 billion, however many bits each has; a tied embedding counts once."""
    family = family_of({"model_type": "chatglm"})
    config = family.config({"quantization_bit": bits, "quantization_embedding_bit": bits})
    count = count_parameters(family.empty_network(config), [])
    per_layer = 12 * 4096**2 + (3 + 1 + 4 + 1) * 4096 + 4 * 4096
    assert count == 28 * per_layer + 130528 * 4096 + 2 * 4096


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (15_800, "16 kB"),
        (820_000_000, "820 MB"),
        (13_400_000_000, "13.4 GB"),
        (2 * 10**12, "2.0 TB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_bytes(size) == text


def test_memory_of_this_machine() -> None:
    available = available_memory(CPU)
    assert available is not None
    assert 10**8 < available < 10**14


@pytest.mark.usefixtures("two_gpus")
def test_memory_of_a_gpu() -> None:
    assert available_memory(CUDA) == 5_000_000_000
    assert describe_devices()[1:3] == [f"cuda:{i}: Test GPU, 5.0 GB of 16.0 GB free" for i in range(2)]


def test_memory_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: /proc is absent, the physical memory is known."""

    def absent(self: Path, encoding: str) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", absent)
    assert available_memory(CPU)
    monkeypatch.delattr(devices.os, "sysconf")
    assert available_memory(CPU) is None


def group(folder: Path, limit: str, used: int, reclaimable: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {reclaimable}\n")


def test_limits_of_control_groups_version_2(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("0::/outer/inner\n")
    assert container_available(tmp_path, membership) is None
    group(tmp_path / "outer", "5000", 1000, 300)
    group(tmp_path / "outer" / "inner", "max", 900, 0)
    assert container_available(tmp_path, membership) == 5000 - 1000 + 300
    group(tmp_path / "outer" / "inner", "2000", 900, 100)
    assert container_available(tmp_path, membership) == 2000 - 900 + 100


def test_limits_of_control_groups_version_1(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("5:cpu,cpuacct:/box\n4:memory:/box\n")
    folder = tmp_path / "memory" / "box"
    folder.mkdir(parents=True)
    for limit, left in ((9000, 9000 - 4000 + 500), (9223372036854771712, None)):
        (folder / "memory.limit_in_bytes").write_text(str(limit))
        (folder / "memory.usage_in_bytes").write_text("4000")
        (folder / "memory.stat").write_text("total_inactive_file 500\n")
        assert container_available(tmp_path, membership) == left


def test_no_control_groups(tmp_path: Path) -> None:
    assert container_available(tmp_path, tmp_path / "absent") is None


def test_the_tightest_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "container_available", lambda: 123)
    assert available_memory(CPU) == 123


def test_importing_it_starts_no_cuda() -> None:
    code = "import torch, chatglm.devices, chatglm.loading; assert not torch.cuda.is_initialized()"
    forking.run([sys.executable, "-c", code], preload=forking.TORCH, check=True)
