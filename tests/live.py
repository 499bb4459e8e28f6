"""Real devices for the live tests: a virtual microphone (PulseAudio) and cameras on the network (ffmpeg, GStreamer).

Everything runs in user space, in private folders and on the loopback; each fixture ends what it started, and skips with
the names of the Debian packages that are missing. PortAudio reads its environment once, when it is loaded, so the
microphone is recorded by a child process: `python -m tests.live OUT.npy [only-48k-stereo] [two-channels]`. What fails
on purpose, and comes back, is in `tests.faults`.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from stream.config import MicConfig
from stream.items import SAMPLE_RATE_HZ, Pcm, Stalled
from stream.mic import MicPatience, Microphone
from stream.portaudio import PortAudioRecording

DEADLINE_S = 60.0
LOUD = 1_000  # of 32767
FOREIGN = ("PULSE_", "ALSA_", "DBUS_", "XDG_")  # variables that would lead to another sound server
_PULSE_DEVICES = (
    "module-null-sink sink_name=virt rate=48000 channels=2",
    "module-remap-source source_name=virtmic master=virt.monitor",
)
_MONO_SOURCE = "module-remap-source source_name=monomic master=virt.monitor channels=1 channel_map=mono"
_ASOUNDRC = "pcm.!default { type pulse }\nctl.!default { type pulse }\n"


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Poll until `holds`, or fail after a deadline, saying `what` did not come true."""
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {DEADLINE_S:g} s"
        Event().wait(0.02)


def require(**packages: bool) -> None:
    """Skip the test, naming the Debian packages that are not there (`_` stands for `-`, `__` for `.`)."""
    missing = [name.replace("__", ".").replace("_", "-") for name, is_there in packages.items() if not is_there]
    if missing:
        pytest.skip(f"needs: apt-get install {' '.join(missing)}")


def end_process(process: subprocess.Popen[Any]) -> None:
    """Terminate a child, kill it if it does not listen, and reap it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait(DEADLINE_S)


# --- microphone


class VirtualMicrophone:
    """A sound server of our own: what is played to it is what its default microphone hears.

    Args:
        folder: Its own; the path must be short, a socket's has 107 bytes only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / ".asoundrc").write_text(_ASOUNDRC)
        self.own = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "PULSE_RUNTIME_PATH": str(folder / "run")}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
        self.environment = kept | self.own
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server; return when it answers."""
        command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", "--disable-shm"]
        for module in ("module-native-protocol-unix", *_PULSE_DEVICES):
            command += ["-L", module]
        with (self.folder / "pulseaudio.log").open("ab") as log:
            self._server = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        eventually(lambda: self.pactl("set-default-source", "virtmic"), "PulseAudio answers")

    def stop(self) -> None:
        """Kill the server."""
        if self._server is not None:
            self._server.kill()
            end_process(self._server)
            self._server = None

    def unplug(self) -> None:
        """Take the devices out of the server, as a cable is pulled."""
        for module in reversed(_PULSE_DEVICES):
            assert self.pactl("unload-module", module.split()[0])

    def plug_in(self) -> None:
        """Put them back."""
        for module in _PULSE_DEVICES:
            assert self.pactl("load-module", *module.split())
        assert self.pactl("set-default-source", "virtmic")

    def become_mono(self) -> None:
        """Have one channel from now on, whatever is asked for: then the server makes copies of it."""
        assert self.pactl("load-module", *_MONO_SOURCE.split())
        assert self.pactl("set-default-source", "monomic")

    def halt(self, halted: bool) -> None:
        """Let the microphone give nothing while it is still there, or go on."""
        assert self.pactl("suspend-source", "virtmic", str(int(halted)))

    def pactl(self, *arguments: str) -> bool:
        """Tell the server something; False when it refuses or is not there."""
        command = ["pactl", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, check=False).returncode == 0

    def record_while_playing(self, pcm: Pcm, rate_hz: int, *options: str) -> Pcm:
        """Play `pcm` ([S], or [S, 2]) with paplay; return the 2 s that a child's Microphone hears once it is loud.

        Returns:
            int16 [channels heard, S], 16 kHz.
        """
        sound, heard = self.folder / "played.wav", self.folder / "heard.npy"
        with wave.open(str(sound), "wb") as file:
            file.setparams((pcm.ndim, 2, rate_hz, 0, "NONE", ""))
            file.writeframes(pcm.tobytes())
        command = [sys.executable, "-m", "tests.live", str(heard), *options]
        with ExitStack() as stack:
            player = subprocess.Popen(["paplay", "--device=virt", str(sound)], env=self.environment)
            stack.callback(end_process, player)
            subprocess.run(command, env=self.environment, check=True, timeout=DEADLINE_S)
        return np.asarray(np.load(heard), np.int16)


@contextmanager
def sound_server() -> Iterator[VirtualMicrophone]:
    """PulseAudio with a null sink whose monitor is the default microphone, seen by PortAudio through ALSA."""
    require(
        pulseaudio=shutil.which("pulseaudio") is not None,
        pulseaudio_utils=shutil.which("pactl") is not None and shutil.which("paplay") is not None,
        libasound2_plugins=any(Path("/usr/lib").glob("**/alsa-lib/libasound_module_pcm_pulse.so")),
        libportaudio2=ctypes.util.find_library("portaudio") is not None,
    )
    # Not pytest's tmp_path: it is too long for a socket.
    with tempfile.TemporaryDirectory(prefix="pulse-") as folder:
        microphone = VirtualMicrophone(Path(folder))
        try:
            microphone.start()
            yield microphone
        finally:
            microphone.stop()


@pytest.fixture(scope="session")
def virtual_microphone() -> Iterator[VirtualMicrophone]:
    """A microphone for all tests that do not harm it."""
    with sound_server() as microphone:
        yield microphone


@pytest.fixture
def own_microphone() -> Iterator[VirtualMicrophone]:
    """A microphone for one test, which may do with it what it likes."""
    with sound_server() as microphone:
        yield microphone


class _Only48kStereo:
    """The real sounddevice, as it is with a sound card that has one format: ALSA's pulse plug-in would take any."""

    def __init__(self, sounddevice: ModuleType) -> None:
        self._sounddevice = sounddevice

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sounddevice, name)

    def query_devices(self) -> list[dict[str, Any]]:
        return [{**device, "default_samplerate": 48_000.0} for device in self._sounddevice.query_devices()]

    def check_input_settings(self, **settings: Any) -> None:
        if (settings["samplerate"], settings["channels"]) != (48_000, 2):
            raise self._sounddevice.PortAudioError("Invalid sample rate")
        self._sounddevice.check_input_settings(**settings)


def record(out: Path, only_48k_stereo: bool, channels: int) -> None:
    """Record the default microphone until 2 s have come since it became loud; save those: int16 [channels heard, S]."""
    import sounddevice

    portaudio = _Only48kStereo(sounddevice) if only_48k_stereo else sounddevice
    heard: list[list[Pcm]] = [[] for _ in range(channels)]
    with Microphone(
        MicConfig(channels=channels),
        open_recording=lambda config, _: PortAudioRecording(config, portaudio),
        patience=MicPatience(stall_s=DEADLINE_S),  # a server that stands still on a busy machine is not lost
    ) as mic:
        for block in mic.blocks():
            if isinstance(block, Stalled):
                continue
            if heard[0] or np.abs(block.pcm.astype(int)).max() > LOUD:
                heard[block.channel].append(block.pcm)
            if heard[0] and all(sum(map(len, channel)) >= 2 * SAMPLE_RATE_HZ for channel in heard if channel):
                break
    np.save(out, np.stack([np.concatenate(channel)[: 2 * SAMPLE_RATE_HZ] for channel in heard if channel]))


# --- camera


@dataclass
class ServedCamera:
    """A camera on the network: a process that serves pictures at a port of its own.

    Args:
        scheme: Of its address.
        path: Of its address.
        command: What serves at an address the pictures that `start` is asked for.
    """

    scheme: str
    path: str
    command: Callable[[str, str], list[str]]

    def __post_init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"{self.scheme}://127.0.0.1:{self._port}/{self.path}"

    def start(self, pictures: str) -> None:
        """Serve; return when it can be opened."""
        self._process = subprocess.Popen(self.command(self.url, pictures))
        eventually(self._is_up, f"{self.url} is served")

    def stop(self) -> None:
        """End the stream, as a camera does whose cable is pulled."""
        if self._process is not None:
            self._process.kill()
            end_process(self._process)
            self._process = None

    def _is_up(self) -> bool:
        # Not asked by connecting: ffmpeg serves one client only, and a waiting camera may already be that one.
        sockets = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines())
        states = {fields[3] for fields in sockets if fields[1] == f"0100007F:{self._port:04X}"}
        return bool(states & {"0A", "01"})  # LISTEN, ESTABLISHED


@pytest.fixture
def mjpeg_server() -> Iterator[ServedCamera]:
    """MJPEG over HTTP to the first client: one colour by ffmpeg's name, 25 pictures per second. Not yet started."""
    require(ffmpeg=shutil.which("ffmpeg") is not None)

    def command(url: str, colour: str) -> list[str]:
        drawn = ["-re", "-f", "lavfi", "-i", f"color=c={colour}:s=320x240:r=25", "-c:v", "mjpeg", "-f", "mpjpeg"]
        return ["ffmpeg", "-nostdin", "-loglevel", "quiet", *drawn, "-listen", "1", url]

    server = ServedCamera("http", "camera.mjpg", command)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def rtsp_server() -> Iterator[ServedCamera]:
    """H.264 over RTSP: what a piece of a GStreamer pipeline draws. Not yet started."""
    require(
        python3_gi=Path("/usr/lib/python3/dist-packages/gi").is_dir(),
        gir1__2_gst_rtsp_server_1__0=_in_usr_lib("girepository-1.0/GstRtspServer-1.0.typelib"),
        gstreamer1__0_plugins_base=_in_usr_lib("gstreamer-1.0/libgstvideotestsrc.so"),
        gstreamer1__0_plugins_good=_in_usr_lib("gstreamer-1.0/libgstrtp.so"),
        gstreamer1__0_plugins_ugly=_in_usr_lib("gstreamer-1.0/libgstx264.so"),
    )

    def command(url: str, pictures: str) -> list[str]:
        return ["/usr/bin/python3", str(Path(__file__).with_name("rtsp_server.py")), str(urlsplit(url).port), pictures]

    server = ServedCamera("rtsp", "camera", command)
    try:
        yield server
    finally:
        server.stop()


def _in_usr_lib(name: str) -> bool:
    return any(Path("/usr/lib").glob(f"*/{name}"))


if __name__ == "__main__":
    record(Path(sys.argv[1]), "only-48k-stereo" in sys.argv[2:], 2 if "two-channels" in sys.argv[2:] else 1)
