"""What is on this machine, what is wrong with it, and the remedy."""

from __future__ import annotations

import importlib
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from stream.config import Config
from stream.machine import journal_folder, runs_folder, stop_telemetry
from stream.opencv import list_cameras
from stream.portaudio import list_microphones
from telme.errors import JournalError, MissingDependency, TelmeStreamError

Role = Literal["all", "capture", "worker"]
_WORKER, _CAPTURE = frozenset[Role](("all", "worker")), frozenset[Role](("all", "capture"))
_BOTH = _WORKER | _CAPTURE
_PACKAGES = {  # distribution -> module, and who needs it
    "torch": ("torch", _WORKER),
    "transformers": ("transformers", _WORKER),
    "onnx": ("onnx", _WORKER),
    "onnxruntime": ("onnxruntime", _BOTH),
    "faster-whisper": ("faster_whisper", _CAPTURE),
    "ctranslate2": ("ctranslate2", _CAPTURE),
    "webrtcvad-wheels": ("webrtcvad", _CAPTURE),
    "av": ("av", _CAPTURE),
    "soxr": ("soxr", _BOTH),
    "pyzmq": ("zmq", _BOTH),
    "opencv-python": ("cv2", _CAPTURE),
    "sounddevice": ("sounddevice", _CAPTURE),
}
# Of packages that are installed with the rest, but lack a library of the system.
_SYSTEM = {
    "opencv-python": "apt-get install libgl1 libglib2.0-0",
    "sounddevice": "apt-get install libportaudio2",
}
_EXTRAS: dict[Role, str] = {"all": "capture,worker", "capture": "capture", "worker": "worker"}
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_LEAST_FREE_GB = 0.5


@dataclass(frozen=True)
class Finding:
    """One line of the report. `remedy` is empty when all is well."""

    name: str
    seen: str
    remedy: str = ""


def devices_report() -> str:
    """Microphones and cameras, one a line.

    Raises:
        MissingDependency: PortAudio or OpenCV cannot be loaded.
    """
    lines = ["microphones (--mic):"]
    for microphone in list_microphones():
        default = ", default" if microphone.is_default else ""
        lines.append(
            f"  {microphone.index}: {microphone.name} ({microphone.host_api}, {microphone.channels} channels, "
            f"{microphone.rate_hz} Hz{default})"
        )
    if len(lines) == 1:
        lines.append("  none")
    lines.append("cameras (--camera):")
    cameras = list_cameras()
    lines += [f"  {camera.index}: {camera.name}" for camera in cameras] or ["  none"]
    return "\n".join(lines)


def doctor_report(config: Config, role: Role = "all") -> tuple[str, bool]:
    """The report, and whether nothing is wrong that telme-stream needs on a machine for that role."""
    stop_telemetry()
    checks: tuple[tuple[str, frozenset[Role], Callable[[], str]], ...] = (
        # Before torch is imported: it brings a GPU's libraries, which the capture process does not have.
        ("speech recognizer", _CAPTURE, lambda: _recognizer(config)),
        ("microphones", _CAPTURE, _microphones),
        ("cameras", _CAPTURE, _cameras),
        ("model", _WORKER, lambda: _model(config)),
        ("CUDA", _WORKER, _cuda),
        ("TensorRT", _WORKER, _tensorrt),
        ("backend", _WORKER, lambda: _backend(config)),
        ("disk", _BOTH, lambda: _disk(config)),
    )
    checked = [_checked(name, check) for name, roles, check in checks if role in roles]
    python = Finding("python", f"{platform.python_version()} on {platform.platform()}")
    findings = [python, *_packages(role), *checked]
    lines = []
    for finding in findings:
        mark = "!!" if finding.remedy else "ok"
        lines.append(f"{mark}  {finding.name:<18} {finding.seen}")
        if finding.remedy:
            lines.append(f"    {'':<18} remedy: {finding.remedy}")
    return "\n".join(lines), not any(finding.remedy for finding in findings)


def _checked(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, check())
    except TelmeStreamError as error:
        return Finding(name, f"{error.seen}; expected {error.expected}", error.remedy)
    except ImportError as error:
        return Finding(name, f"cannot be checked: {error}", "mend the package that it names")


def _packages(role: Role) -> Iterator[Finding]:
    install = f"pip install -c constraints.txt '.[{_EXTRAS[role]}]'"
    for distribution, (module, roles) in _PACKAGES.items():
        if role not in roles:
            continue
        try:
            importlib.import_module(module)
            found = version(distribution)
        except (ImportError, OSError, PackageNotFoundError) as error:
            yield Finding(distribution, f"cannot be used: {error}", _SYSTEM.get(distribution, install))
            continue
        wanted = _wanted(distribution)
        if found in wanted:
            yield Finding(distribution, found)
        else:
            yield Finding(distribution, f"{found}; expected {wanted}", f"pip install '{distribution}{wanted}'")


def _wanted(distribution: str) -> SpecifierSet:
    """Versions of a package that pyproject.toml allows."""
    try:
        asked = [Requirement(line) for line in requires("telme-stream") or ()]
    except PackageNotFoundError:  # a checkout that is not installed
        asked = []
    return SpecifierSet(",".join({str(one.specifier) for one in asked if one.name == distribution}))


def _microphones() -> str:
    found = list_microphones()
    return f"{len(found)}: {', '.join(item.name for item in found)}" if found else "none; --input replays files"


def _cameras() -> str:
    found = list_cameras()
    return f"{len(found)}: {', '.join(item.name for item in found)}" if found else "none; speech alone works"


def _recognizer(config: Config) -> str:
    from stream.asr import Transcriber

    transcriber = Transcriber(config.asr)
    return f"Whisper {transcriber.model_name} on {transcriber.device}"


def _model(config: Config) -> str:
    from telme.bundle import load_bundle

    bundle = load_bundle(config.worker.bundle)
    return f"{bundle.model_id}, labels {', '.join(bundle.config.label_set.names)}"


def _cuda() -> str:
    import torch

    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info()
        major, minor = torch.cuda.get_device_capability()
        memory = f"{free / 1e9:.1f} of {whole / 1e9:.1f} GB free"
        return f"{torch.version.cuda} on {torch.cuda.get_device_name()}, compute capability {major}.{minor}, {memory}"
    if _NVIDIA_DRIVER.exists():
        raise MissingDependency(
            f"an NVIDIA driver, and torch {torch.__version__} that sees no GPU",
            "torch for CUDA and a driver new enough for it",
            "pip install torch as pytorch.org says for this driver, or update the driver",
        )
    return "no NVIDIA driver, so no GPU; the processor does it"


def _tensorrt() -> str:
    from engines.build import NO_GPU, gpu_name, installed, toolkit

    if not installed():
        return "not installed; only --backend tensorrt needs it (README, Engines)"
    found = toolkit()
    if gpu_name() == NO_GPU:
        return f"{found.name} {found.version}, compiles plans here, but runs them on a GPU only"
    from engines.tensorrt import check_runs_here

    check_runs_here(found)
    return f"{found.name} {found.version}, runs on the GPU"


def _backend(config: Config) -> str:
    from engines.predictor import check_can_run, choices

    able, refusals = [], []
    for choice in choices(config.worker.backend, config.worker.precision):
        try:
            check_can_run(choice)
            able.append(choice)
        except TelmeStreamError as error:
            refusals.append(error)
    if not able:
        raise refusals[-1]
    first, *others = able
    fallback = "".join(f", else {choice.backend}" for choice in others)
    return f"{first.backend} in {first.precision} ({first.why}){fallback}"


def _disk(config: Config) -> str:
    """Room for the journal, which keeps each utterance until it is answered, with its sound and pictures."""
    kept = config.journal.folder
    wanted = (Path(runs_folder()) if kept is None else journal_folder(kept)).absolute()
    folder = next(path for path in (wanted, *wanted.parents) if path.is_dir())
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < _LEAST_FREE_GB:
        remedy = "free some space there, or give --journal FOLDER"
        raise JournalError(f"{free_gb:.2f} GB free in {folder}", f"{_LEAST_FREE_GB} GB", remedy)
    return f"{free_gb:.1f} GB free in {folder}"
