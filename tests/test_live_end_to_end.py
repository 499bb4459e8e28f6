"""The command on live devices: a microphone that hears the example played, and a camera on the network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import wave
from contextlib import ExitStack
from pathlib import Path

import av
import numpy as np

from stream.bus import Device, Emotion, Event
from tests.commands import ANY_PORT, EXAMPLES, emotions, running
from tests.live import ServedCamera, VirtualMicrophone, end_process

SPOKEN_RATE_HZ = 48_000


def spoken_example(path: Path) -> Path:
    """The example's sound as a wav file."""
    resampler = av.AudioResampler("s16", "mono", SPOKEN_RATE_HZ)
    with av.open(str(EXAMPLES / "conversation.mp4")) as film, av.open(str(path), "w") as wav:
        out = wav.add_stream("pcm_s16le", rate=SPOKEN_RATE_HZ, layout="mono")
        for frame in film.decode(audio=0):
            for piece in resampler.resample(frame):
                wav.mux(out.encode(piece))
        wav.mux(out.encode())
    return path


def test_microphone_and_camera_until_ctrl_c(
    virtual_microphone: VirtualMicrophone, mjpeg_server: ServedCamera, tmp_path: Path
) -> None:
    sound = spoken_example(tmp_path / "spoken.wav")
    mjpeg_server.start("green")
    folder = tmp_path / "run"
    folder.mkdir()
    arguments = ("--camera", mjpeg_server.url, "--events", "jsonl", *ANY_PORT)
    with ExitStack() as stack:
        run = stack.enter_context(running(folder, *arguments, surroundings=virtual_microphone.environment))
        events = run.events()
        opened: set[str] = set()
        while opened != {"microphone", "camera"}:
            data = next(events).payload()
            if isinstance(data, Device) and data.state == "opened":
                opened.add(data.device)
        player = subprocess.Popen(["paplay", "--device=virt", str(sound)], env=virtual_microphone.environment)
        stack.callback(end_process, player)
        heard: list[Emotion] = []
        while len(heard) < 3:
            heard += emotions([next(events)])
        run.interrupt()
        rest = list(events)
        assert run.end() == 130
        assert run.left_running() == []

    assert "letter" in heard[0].text
    assert "happy" in heard[1].text
    for emotion in heard:
        assert emotion.modalities["audio"].captured
        assert emotion.modalities["video"].captured, emotion.modalities["video"].reason
        assert emotion.stages_ms.total is not None
    said = [event.payload() for event in rest]
    assert any(isinstance(data, Device) and data.state == "ended" for data in said)


def anna_left_and_ben_right(path: Path) -> Path:
    """The example's sound with one speaker a channel."""
    with wave.open(str(spoken_example(path)), "rb") as file:
        mono = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    sides = np.zeros((len(mono), 2), np.int16)
    for line in json.loads((EXAMPLES / "conversation.json").read_text(encoding="utf-8")):
        start, end = (line[key] * SPOKEN_RATE_HZ // 1000 for key in ("start_ms", "end_ms"))
        sides[start:end, int(line["speaker"] == "Ben")] = mono[start:end]
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, SPOKEN_RATE_HZ, 0, "NONE", ""))
        file.writeframes(sides.tobytes())
    return path


def test_each_channel_of_a_microphone_is_a_speaker(virtual_microphone: VirtualMicrophone, tmp_path: Path) -> None:
    sound = anna_left_and_ben_right(tmp_path / "spoken.wav")
    folder = tmp_path / "run"
    folder.mkdir()
    arguments = ("--no-camera", "--events", "jsonl", "--speakers", "channel", "--mic-channels", "2", *ANY_PORT)
    with ExitStack() as stack:
        run = stack.enter_context(running(folder, *arguments, surroundings=virtual_microphone.environment))
        events = run.events()
        next(data for event in events if isinstance(data := event.payload(), Device) and data.state == "opened")
        player = subprocess.Popen(["paplay", "--device=virt", str(sound)], env=virtual_microphone.environment)
        stack.callback(end_process, player)
        heard: list[Emotion] = []
        while len(heard) < 3:
            heard += emotions([next(events)])
        run.interrupt()
        assert list(events)
        assert run.end() == 130
    assert [emotion.speaker for emotion in heard] == ["channel1", "channel2", "channel1"]
    assert "letter" in heard[0].text
    assert "happy" in heard[1].text


def test_devices_and_doctor_see_the_microphone(virtual_microphone: VirtualMicrophone, tmp_path: Path) -> None:
    with running(tmp_path, "devices", surroundings=virtual_microphone.environment) as run:
        output, _ = run.process.communicate()
        assert run.process.returncode == 0
    assert "pulse" in output
    assert "cameras (--camera):" in output
    with running(tmp_path, "doctor", surroundings=virtual_microphone.environment) as run:
        output, complaints = run.process.communicate()
        assert run.process.returncode == 0, output + complaints
    assert "ok  model" in output
    assert "!!" not in output


def test_a_live_capture_that_dies_is_started_again_and_is_heard(
    virtual_microphone: VirtualMicrophone, tmp_path: Path
) -> None:
    sound = spoken_example(tmp_path / "spoken.wav")
    folder = tmp_path / "run"
    folder.mkdir()
    arguments = ("--no-camera", "--events", "jsonl", *ANY_PORT)
    with ExitStack() as stack:
        run = stack.enter_context(running(folder, *arguments, surroundings=virtual_microphone.environment))
        events = run.events()

        def emotion_after_start() -> Event:
            assert any(isinstance(data := event.payload(), Device) and data.state == "opened" for event in events)
            player = subprocess.Popen(["paplay", "--device=virt", str(sound)], env=virtual_microphone.environment)
            stack.callback(end_process, player)
            found = next(event for event in events if event.type == "emotion")
            end_process(player)
            return found

        first = emotion_after_start()
        os.kill(run.pid_with("outbox.sqlite"), signal.SIGKILL)
        second = emotion_after_start()
        run.interrupt()
        assert list(events)
        assert run.end() == 130
    assert first.session != second.session
