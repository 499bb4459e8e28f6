"""Plans at run time: what is pure, a fake engine at TensorRT's own interface, and real plans without a GPU."""

from __future__ import annotations

import shutil
import types
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx
import torch

import engines.build
import engines.tensorrt
from engines.build import NO_GPU, Toolkit, build_plan, cached_plan, toolkit
from engines.cuda import CudaDevice, CudaNetworks
from engines.export import example_inputs, part_module
from engines.spec import BuildSettings, GraphSpec, Range, RunSettings, TensorSpec, default_profiles, graph_spec
from engines.store import Store
from engines.tensorrt import Plan, PlanProgram, bindings, choose_profile, faults_named, tensorrt_networks
from telme.bundle import Bundle, load_bundle
from telme.config import Part
from telme.errors import EngineError, OutOfMemory, PredictorError
from telme.predictor import TorchNetworks
from tests.bundles import make_full_bundle, make_tiny_bundle
from tests.engines.fake_cuda import FakeContext, FakeDevice, FakeEngine, FakeRuntimeCache, FakeRuntimeConfig
from tests.engines.test_build import SETTINGS, SPEC, write_graph

PARTS: tuple[Part, ...] = ("text", "audio", "video", "fusion")
FLAGS = tensorrt_rtx.EngineInvalidityDiagnostics.__members__
Validity = tensorrt_rtx.EngineValidity


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(str(make_full_bundle(tmp_path_factory.mktemp("bundle"))))


def fake_toolkit(
    engine: FakeEngine | None, validity: Any = Validity.VALID, found: int = 0, unfit: bytes = b""
) -> Toolkit:
    """TensorRT-RTX whose runtime loads a fake engine, but for a plan that reads `unfit`."""

    class Runtime:
        engine_header_size = 64

        def __init__(self, log: Any) -> None:
            self._log = log

        def get_engine_validity(self, header: bytes) -> tuple[Any, int]:
            assert len(header) <= 64
            return (Validity.INVALID, int(FLAGS["UNSUPPORTED_CC"])) if header == unfit else (validity, found)

        def deserialize_cuda_engine(self, content: bytes) -> FakeEngine | None:
            if engine is None:
                self._log.log(tensorrt_rtx.ILogger.ERROR, "the body is damaged")
            else:
                engine.log = lambda message: self._log.log(tensorrt_rtx.ILogger.ERROR, message)
            return engine

    names = (
        "DynamicShapesKernelSpecializationStrategy",
        "EngineInvalidityDiagnostics",
        "EngineValidity",
        "ExecutionContextAllocationStrategy",
        "ILogger",
    )
    api = types.SimpleNamespace(Runtime=Runtime, **{name: getattr(tensorrt_rtx, name) for name in names})
    return Toolkit("tensorrt-rtx", "1.7.1", api)


def fake_networks(bundle: Bundle, folder: Path, graphs: bool) -> tuple[CudaNetworks, dict[Part, FakeEngine]]:
    (folder / "plan").write_bytes(b"a plan")
    device = FakeDevice()
    engines, programs = {}, {}
    for part in bundle.config.parts:
        spec = graph_spec(bundle.config, part)
        engines[part] = FakeEngine(spec, default_profiles(spec), part_module(bundle, part, "fp32"))
        plan = Plan(fake_toolkit(engines[part]), folder / "plan")
        programs[part] = PlanProgram(plan, spec, default_profiles(spec), device)
    return CudaNetworks(bundle, programs, device, "tensorrt-rtx-fp32", graphs), engines


@pytest.mark.parametrize("graphs", [True, False])
def test_a_plan_is_given_the_right_memory_shapes_and_profiles(bundle: Bundle, tmp_path: Path, graphs: bool) -> None:
    """The fake engine computes from the addresses it is given, so wrong ones give wrong answers."""
    found, engines = fake_networks(bundle, tmp_path, graphs)
    reference = TorchNetworks(bundle.model)
    with torch.inference_mode():
        for rows, length in ((3, 7), (1, 96), (2, 30)) * 2:  # launched and captured
            inputs = {part: example_inputs(graph_spec(bundle.config, part), rows, length) for part in ("text", "video")}
            expected, answer = reference.text(*inputs["text"].values()), found.text(*inputs["text"].values())
            assert torch.allclose(expected.feature, answer.feature, atol=1e-5)
            assert torch.allclose(expected.logits, answer.logits, atol=1e-5)
            pictures = inputs["video"]["pixel_values"]
            assert torch.allclose(reference.video(pictures), found.video(pictures), atol=1e-5)
            for samples in (401, 70_000):
                sound = example_inputs(graph_spec(bundle.config, "audio"), rows, samples)["input_values"]
                assert torch.allclose(reference.audio(sound), found.audio(sound), atol=1e-5)
            features = example_inputs(graph_spec(bundle.config, "fusion"), rows)
            assert torch.allclose(reference.fusion(**features), found.fusion(**features), atol=1e-5)
    # Sounds of 401 and of 70,000 samples, of three rows, of one and of two.
    assert engines["audio"].profiles_set == [2, 3, 0, 1, 2, 3] * 2


def test_kernels_of_captured_shapes_are_chosen_at_once(bundle: Bundle, tmp_path: Path) -> None:
    _, engines = fake_networks(bundle, tmp_path, graphs=True)
    strategies = tensorrt_rtx.DynamicShapesKernelSpecializationStrategy
    allocations = tensorrt_rtx.ExecutionContextAllocationStrategy
    assert engines["audio"].strategies == [allocations.USER_MANAGED, strategies.LAZY]
    assert engines["video"].strategies == [allocations.USER_MANAGED, strategies.EAGER]


def test_the_narrowest_profile_that_fits_is_chosen() -> None:
    profiles = SETTINGS.profiles
    for rows, tokens, chosen in ((1, 2, 0), (1, 128, 0), (1, 129, 1), (2, 5, 2), (16, 512, 3)):
        assert choose_profile(profiles, {"batch": rows, "tokens": tokens}) == chosen
    with pytest.raises(PredictorError, match=r"batch 17, tokens 5.*batch 1\.\.1, tokens 2\.\.128; "):
        choose_profile(profiles, {"batch": 17, "tokens": 5})


def test_memory_with_gaps_is_refused() -> None:
    whole, gaps = torch.ones(4, 6, 8), torch.ones(4, 8, 6).transpose(1, 2)
    (name, memory), (output, _) = bindings(SPEC, {"x": whole}, [torch.ones(4, 6, 4)])
    assert (name, output) == ("x", "y")
    assert memory is whole
    with pytest.raises(PredictorError, match="x with gaps"):
        bindings(SPEC, {"x": gaps}, [torch.ones(4, 6, 4)])


@pytest.mark.parametrize(
    ("said", "error"),
    [("Cuda Runtime (out of memory)", OutOfMemory), ("an internal error", PredictorError)],
)
def test_what_a_plan_refuses_is_told(bundle: Bundle, tmp_path: Path, said: str, error: type[PredictorError]) -> None:
    found, engines = fake_networks(bundle, tmp_path, graphs=False)
    engines["text"].refusal = said
    with pytest.raises(error, match=rf"the text plan refused .*{said.split('(')[0]}") as caught:
        found.text(*example_inputs(graph_spec(bundle.config, "text")).values())
    assert caught.type is error


def test_no_room_for_a_context_is_told(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(b"a plan")
    spec = graph_spec(bundle.config, "fusion")
    engine = FakeEngine(spec, default_profiles(spec), torch.nn.Identity())
    engine.no_context = True
    with pytest.raises(OutOfMemory, match="no execution context: Requested amount"):
        Plan(fake_toolkit(engine), tmp_path / "plan").context(captured=False)


def test_no_room_for_scratch_memory_is_told(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(b"a plan")
    spec = graph_spec(bundle.config, "fusion")
    engine = FakeEngine(spec, default_profiles(spec), torch.nn.Identity())
    engine.device_memory_size_v2 = 1 << 60
    plan = Plan(fake_toolkit(engine), tmp_path / "plan")
    with pytest.raises(OutOfMemory, match=r"no room on cpu for 1152921504606846976 bytes of the fusion plan"):
        PlanProgram(plan, spec, default_profiles(spec), FakeDevice())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("UNSUPPORTED_CC",), r"cannot run here: UNSUPPORTED_CC.*use --backend torch on this GPU"),
        (("VERSION_MISMATCH",), r"VERSION_MISMATCH.*telme-stream engines build"),
        (("OLD_CUDA_DRIVER", "VERSION_MISMATCH"), r"VERSION_MISMATCH, OLD_CUDA_DRIVER.*update the GPU's driver"),
        (("MALFORMED_ENGINE",), r"MALFORMED_ENGINE.*telme-stream engines build"),
        ((), r"install the GPU's driver"),
    ],
)
def test_tensorrts_own_check_is_the_last_word(tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    """Though the engine would load."""
    (tmp_path / "plan").write_bytes(bytes(100))
    engine = FakeEngine(SPEC, SETTINGS.profiles, torch.nn.Identity())
    found = sum(int(FLAGS[flag]) for flag in flags)
    assert sorted(faults_named(found, FLAGS)) == sorted(flags)
    with pytest.raises(EngineError, match=said):
        Plan(fake_toolkit(engine, Validity.INVALID, found), tmp_path / "plan")


def test_a_plan_that_is_not_at_its_best_runs_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "plan").write_bytes(bytes(100))
    engine = FakeEngine(SPEC, SETTINGS.profiles, torch.nn.Identity())
    assert Plan(fake_toolkit(engine, Validity.SUBOPTIMAL), tmp_path / "plan").engine is engine
    assert "not at its best" in caplog.text


@pytest.mark.parametrize("accepted", [True, False])
def test_a_plan_made_without_a_gpu_runs_where_its_own_check_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, accepted: bool
) -> None:
    """Else one is compiled for the GPU at hand, and that once."""
    tiny = load_bundle(str(make_tiny_bundle(tmp_path / "bundle")))
    spec = graph_spec(tiny.config, "text")
    engine = FakeEngine(spec, default_profiles(spec), part_module(tiny, "text", "fp16"))
    tensorrt = fake_toolkit(engine, unfit=b"" if accepted else b"made for no GPU")
    made: list[str] = []

    def compile_it(*given: Any) -> None:
        made.append(engines.build.gpu_name())
        given[4].write_bytes(f"made for {made[-1]}".encode())

    monkeypatch.setattr(engines.build, "export_graph", lambda *given: Path())
    monkeypatch.setattr(engines.build, "build_plan", compile_it)
    monkeypatch.setattr(engines.tensorrt, "toolkit", lambda: tensorrt)
    monkeypatch.setattr(engines.tensorrt, "check_runs_here", lambda found: None)
    monkeypatch.setattr(engines.build, "gpu_name", lambda: NO_GPU)
    store = Store(tmp_path / "cache")
    cached_plan(store, tensorrt, tiny, "text", BuildSettings("fp16", default_profiles(spec)))
    monkeypatch.setattr(engines.build, "gpu_name", lambda: "NVIDIA L4 8.9")
    for _ in range(2):
        tensorrt_networks(tiny, "fp16", RunSettings(cuda_graphs=False), store, device=FakeDevice())
    assert made == ([NO_GPU] if accepted else [NO_GPU, "NVIDIA L4 8.9"])
    assert caplog.text.count("cannot run here: UNSUPPORTED_CC") == (0 if accepted else 1)


def test_a_cache_that_goes_away_matters_before_loading_only(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    networks, _ = fake_networks(bundle, tmp_path / "cache", graphs=True)
    shutil.rmtree(tmp_path / "cache")
    text = example_inputs(graph_spec(bundle.config, "text")).values()
    assert networks.text(*text).logits.isfinite().all()
    with pytest.raises(EngineError, match=r"plan cannot be read: .*No such file.*run it again"):
        Plan(toolkit(), tmp_path / "cache" / "plan")


def test_a_body_that_does_not_load_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(bytes(100))
    with pytest.raises(EngineError, match=r"cannot load .*plan: the body is damaged"):
        Plan(fake_toolkit(None), tmp_path / "plan")


needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without a GPU")


@needs_no_gpu
def test_a_real_plan_without_a_gpu_is_one_clear_line(tmp_path: Path) -> None:
    build_plan(toolkit(), SPEC, SETTINGS, write_graph(tmp_path), tmp_path / "plan")
    with pytest.raises(EngineError, match=r"cannot run here: .*cudaError 35.*--backend onnx") as caught:
        Plan(toolkit(), tmp_path / "plan")
    assert "\n" not in str(caught.value)


@needs_no_gpu
def test_a_real_plan_that_is_none_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(bytes(1000))
    with pytest.raises(EngineError, match="MALFORMED_ENGINE"):
        Plan(toolkit(), tmp_path / "plan")


@needs_no_gpu
def test_a_tensorrt_that_does_not_run_here_costs_no_build(bundle: Bundle, tmp_path: Path) -> None:
    """The device is there, and TensorRT-RTX says that it is not."""
    with pytest.raises(EngineError, match=r"tiny\.plan cannot run here: .*cudaError 35"):
        tensorrt_networks(bundle, "fp16", RunSettings(), Store(tmp_path), device=FakeDevice())
    assert not list(tmp_path.iterdir())


@needs_no_gpu
def test_without_a_gpu_nothing_is_built(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"torch .* (without CUDA|sees no CUDA device)"):
        tensorrt_networks(bundle, "fp16", RunSettings(), Store(tmp_path))
    with pytest.raises(EngineError, match="torch"):
        CudaDevice()
    assert not list(tmp_path.iterdir())


def test_the_fakes_have_nothing_that_the_real_ones_lack() -> None:
    real = {
        FakeContext: tensorrt_rtx.IExecutionContext,
        FakeEngine: tensorrt_rtx.ICudaEngine,
        FakeRuntimeCache: tensorrt_rtx.IRuntimeCache,
        FakeRuntimeConfig: tensorrt_rtx.IRuntimeConfig,
    }
    for fake, interface in real.items():
        names = {name for name in vars(fake) if not name.startswith("_")}
        assert names <= set(dir(interface))
    assert hasattr(tensorrt_rtx.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    assert {"get_engine_validity", "engine_header_size", "deserialize_cuda_engine"} <= set(dir(tensorrt_rtx.Runtime))


def test_a_spec_of_one_row_needs_no_tokens() -> None:
    spec = GraphSpec("fusion", (TensorSpec("x", "float32", ("batch", 4)),), (), {"batch": Range(1, 1, 16)})
    assert choose_profile(default_profiles(spec), {"batch": 1}) == 0
    assert choose_profile(default_profiles(spec), {"batch": 2}) == 1
