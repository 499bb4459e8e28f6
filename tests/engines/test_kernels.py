"""What is compiled when a plan runs is kept, with fakes at TensorRT-RTX's own interface and a real store."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import engines.build
import engines.kernels
import engines.predictor
import engines.store
import engines.tensorrt
from engines.build import NO_GPU
from engines.cuda import CudaNetworks
from engines.export import example_inputs, part_module
from engines.kernels import driver_version
from engines.predictor import EnginePredictor, choices
from engines.spec import RunSettings, default_profiles, graph_spec
from engines.store import Store
from engines.tensorrt import tensorrt_networks
from telme.bundle import Bundle, load_bundle
from tests.bundles import make_tiny_bundle
from tests.engines.fake_cuda import FakeDevice, FakeEngine, FakeRuntimeCache, FakeRuntimeConfig
from tests.engines.test_tensorrt import fake_toolkit

GPU, DRIVER = "NVIDIA L4 8.9", "12080"


class Machine:
    """A machine with a fake GPU and the cache of plans of a bundle of one part.

    Attributes:
        root: The cache.
    """

    def __init__(self, root: Path, bundle: Bundle, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self._bundle = bundle
        self._patch = patch
        patch.setattr(engines.build, "export_graph", lambda *given: Path())
        patch.setattr(engines.build, "build_plan", lambda *given: given[4].write_bytes(b"a plan"))
        patch.setattr(engines.tensorrt, "check_runs_here", lambda found: None)
        self.has(GPU, DRIVER)

    def has(self, gpu: str, driver: str) -> None:
        for module in (engines.build, engines.kernels):
            self._patch.setattr(module, "gpu_name", lambda: gpu)
        self._patch.setattr(engines.kernels, "driver_version", lambda: driver)

    def start(self, settings: Callable[[FakeEngine], Any] = FakeRuntimeConfig) -> tuple[CudaNetworks, FakeEngine]:
        """The networks made ready, and the engine of the only one."""
        spec = graph_spec(self._bundle.config, "text")
        engine = FakeEngine(spec, default_profiles(spec), part_module(self._bundle, "text", "fp32"))
        engine.settings = settings
        tensorrt = fake_toolkit(engine)
        self._patch.setattr(engines.tensorrt, "toolkit", lambda: tensorrt)
        run, store = RunSettings(), Store(self.root)
        return tensorrt_networks(self._bundle, "fp32", run, store, device=FakeDevice()), engine

    def kept(self) -> list[Path]:
        return sorted(self.root.glob("*/kernels/*/kernels.bin"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(str(make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")))


@pytest.fixture
def machine(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "cache", bundle, monkeypatch)


def ask(networks: CudaNetworks, bundle: Bundle, rows: int) -> torch.Tensor:
    return networks.text(*example_inputs(graph_spec(bundle.config, "text"), rows, 5).values()).logits


def test_what_one_start_compiled_the_next_need_not(
    machine: Machine, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    networks, engine = machine.start()
    assert engine.compiled
    assert machine.kept() == []
    networks.keep()
    again, warm = machine.start()
    assert warm.compiled == []
    assert ask(again, bundle, 1).equal(ask(networks, bundle, 1))
    assert caplog.text == ""


def test_shapes_that_come_later_are_kept_too_and_nothing_is_written_twice(machine: Machine, bundle: Bundle) -> None:
    networks, _ = machine.start()
    networks.keep()
    (file,) = machine.kept()
    written = file.stat().st_ino
    networks.keep()
    assert file.stat().st_ino == written
    ask(networks, bundle, 4)
    networks.keep()
    assert machine.kept() == [file]
    again, engine = machine.start()
    ask(again, bundle, 4)
    assert engine.compiled == []
    written = file.stat().st_ino
    again.keep()
    assert file.stat().st_ino == written
    ask(again, bundle, 8)
    assert len(engine.compiled) == 1


def test_a_predictor_keeps_what_its_plans_compiled_and_others_nothing(
    machine: Machine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks, _ = machine.start()
    monkeypatch.setattr(engines.predictor, "tensorrt_networks", lambda *given: networks)
    for choice in choices("torch", "fp32") + choices("tensorrt", "fp32"):
        assert machine.kept() == []
        EnginePredictor(bundle, [choice], RunSettings(), Store(machine.root)).keep()
    assert len(machine.kept()) == 1


def damage(machine: Machine) -> None:
    (file,) = machine.kept()
    file.write_bytes(b"damage" + file.read_bytes()[6:])


def lose_the_manifest(machine: Machine) -> None:
    (file,) = machine.kept()
    file.with_name("manifest.json").unlink()


@pytest.mark.parametrize(
    ("happen", "said"),
    [(damage, ["kernels.bin is damaged, sha256", "it is not used"]), (lose_the_manifest, [])],
)
def test_what_does_not_hold_is_compiled_and_kept_anew(
    machine: Machine, caplog: pytest.LogCaptureFixture, happen: Callable[[Machine], None], said: list[str]
) -> None:
    networks, cold = machine.start()
    networks.keep()
    happen(machine)
    networks, engine = machine.start()
    assert engine.compiled == cold.compiled
    networks.keep()
    assert len(machine.kept()) == 1
    assert machine.start()[1].compiled == []
    assert all(part in caplog.text for part in said)
    assert len(caplog.messages) == bool(said)


@pytest.mark.parametrize(("gpu", "driver"), [("NVIDIA A10 8.6", DRIVER), (GPU, "13000")])
def test_those_of_another_gpu_or_driver_stay(
    machine: Machine, caplog: pytest.LogCaptureFixture, gpu: str, driver: str
) -> None:
    """The cache may lie in a home folder that machines share."""
    machine.start()[0].keep()
    machine.has(gpu, driver)
    networks, engine = machine.start()
    assert engine.compiled
    networks.keep()
    assert len(machine.kept()) == 2
    machine.has(GPU, DRIVER)
    assert machine.start()[1].compiled == []
    assert caplog.text == ""


def test_gpus_that_share_a_plan_made_without_one_have_kernels_of_their_own(machine: Machine) -> None:
    machine.has(NO_GPU, "")
    machine.start()
    for gpu in (GPU, "NVIDIA A10 8.6"):
        machine.has(gpu, DRIVER)
        networks, engine = machine.start()
        assert engine.compiled
        networks.keep()
    assert (len(Store(machine.root).folders()), len(machine.kept())) == (1, 2)
    machine.has(GPU, DRIVER)
    assert machine.start()[1].compiled == []


def test_those_of_another_cuda_stay(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    machine.start()[0].keep()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert machine.start()[1].compiled
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert machine.start()[1].compiled == []


def test_a_plan_that_is_built_anew_begins_without(machine: Machine) -> None:
    machine.start()[0].keep()
    (file,) = machine.kept()
    (file.parents[2] / "engine.plan").write_bytes(b"a plam")
    assert machine.start()[1].compiled
    assert machine.kept() == []


def test_a_plan_copied_from_another_machine_begins_without(
    machine: Machine, tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same one to the name, but no two builds give the same bytes; what was compiled lies where it lay."""
    machine.start()[0].keep()
    other = Machine(tmp_path / "other", bundle, monkeypatch)
    monkeypatch.setattr(engines.build, "build_plan", lambda *given: given[4].write_bytes(b"its plan"))
    other.start()
    shutil.copytree(other.root, machine.root, dirs_exist_ok=True)
    assert machine.start()[1].compiled


class Settings(FakeRuntimeConfig):
    """Of a context, with a cache of a certain kind."""

    def __init__(self, engine: FakeEngine, kind: type[FakeRuntimeCache]) -> None:
        super().__init__(engine)
        self._kind = kind

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return self._kind()


class Refusing(FakeRuntimeCache):
    def deserialize(self, blob: bytes) -> bool:
        return False


def test_tensorrts_own_check_is_the_last_word(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.start()[0].keep()
    networks, engine = machine.start(lambda engine: Settings(engine, Refusing))
    assert engine.compiled
    networks.keep()
    assert machine.start()[1].compiled == []
    (warning,) = caplog.messages
    assert warning.startswith("tensorrt-rtx refuses ")


class NoCache(FakeRuntimeConfig):
    def create_runtime_cache(self) -> FakeRuntimeCache:
        return None  # type: ignore[return-value]  # as its bindings do where there is no object


class Unmade(FakeRuntimeConfig):
    def create_runtime_cache(self) -> FakeRuntimeCache:
        raise RuntimeError("no context is current")


class Unknown(FakeRuntimeConfig):
    def create_runtime_cache(self) -> FakeRuntimeCache:
        raise TypeError("Unable to convert function return value to a Python type!")


class Unset(FakeRuntimeConfig):
    def create_runtime_cache(self) -> FakeRuntimeCache:
        return WithHeader()

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self._engine.log("the cache is of another context")
        return False


class WithHeader(FakeRuntimeCache):
    """Bytes, though there is nothing in it."""

    def serialize(self) -> bytes:
        return b"header" + super().serialize()


class NothingGiven(FakeRuntimeCache):
    def serialize(self) -> bytes:
        return None  # type: ignore[return-value]


class Unwilling(FakeRuntimeCache):
    def serialize(self) -> bytes:
        raise RuntimeError("the cache is of another context")


@pytest.mark.parametrize(
    "settings",
    [
        NoCache,
        Unmade,
        Unknown,
        Unset,
        lambda engine: Settings(engine, NothingGiven),
        lambda engine: Settings(engine, Unwilling),
    ],
    ids=["none", "raises", "unknown", "unset", "no-bytes", "raises-for-bytes"],
)
def test_what_fails_costs_time_and_one_warning(
    machine: Machine, bundle: Bundle, caplog: pytest.LogCaptureFixture, settings: Callable[[FakeEngine], Any]
) -> None:
    expected = ask(machine.start()[0], bundle, 3)
    networks, engine = machine.start(settings)
    networks.keep()
    assert ask(networks, bundle, 3).equal(expected)
    networks.keep()
    assert engine.compiled
    assert machine.kept() == []
    assert len(caplog.messages) == 1


def test_why_nothing_is_kept_is_said(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.start(Unset)
    (warning,) = caplog.messages
    assert warning.endswith("on this GPU is not kept: the cache is of another context")


def test_what_is_removed_while_it_is_read_is_compiled(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By `telme-stream engines prune` in another terminal."""
    machine.start()[0].keep()
    find = Store.find

    def find_and_lose(store: Store, key: Mapping[str, str]) -> Path | None:
        folder = find(store, key)
        for file in machine.kept():
            file.unlink()
        return folder

    monkeypatch.setattr(Store, "find", find_and_lose)
    networks, engine = machine.start()
    assert engine.compiled
    networks.keep()
    (warning,) = caplog.messages
    assert "No such file" in warning


def test_a_cache_that_cannot_be_written_costs_one_warning(
    machine: Machine, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    networks, _ = machine.start()
    (folder,) = Store(machine.root).folders()
    (folder / "kernels").write_text("a file where a folder should be")
    networks.keep()
    ask(networks, bundle, 2)
    networks.keep()
    (warning,) = caplog.messages
    assert "cannot be written" in warning
    assert "the next start compiles for the GPU again" in warning


class PlainSettings:
    """As those of `tensorrt`."""

    dynamic_shapes_kernel_specialization_strategy: Any = None

    def __init__(self, engine: FakeEngine) -> None:
        self.set_execution_context_allocation_strategy = engine.strategies.append


def test_tensorrt_which_compiles_nothing_then_keeps_nothing(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    networks, _ = machine.start(PlainSettings)
    networks.keep()
    (folder,) = Store(machine.root).folders()
    assert sorted(path.name for path in folder.iterdir()) == ["engine.plan", "manifest.json"]
    assert caplog.text == ""


def test_what_lies_beside_a_plan_is_no_fault_of_it(machine: Machine) -> None:
    machine.start()[0].keep()
    (folder,) = Store(machine.root).folders()
    assert engines.store.verify(folder).files.keys() == {"engine.plan"}


def test_the_driver_is_asked_for_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(place: Any) -> None:
        place._obj.value = 13000

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(cuDriverGetVersion=answer))
    assert driver_version() == "13000"

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert driver_version() == ""
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert driver_version() == ""
