"""--camera-crop face from a film, and from a camera on the network, to what is sent to the worker and told."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from PIL import Image as Pillow

from stream.bus import Device, Emotion, Status
from stream.faces import haar_detector
from telme.errors import MissingDependency
from tests.commands import ANY_PORT, running
from tests.films import drawn_face, film_of, no_face, skin_share
from tests.live import ServedCamera, VirtualMicrophone, end_process
from tests.stream.links import answer, utterances, worker_at
from tests.test_live_end_to_end import spoken_example

MAX_BYTES = 16_777_216
FACE_AT = (300, 150)


@pytest.fixture(autouse=True)
def detector() -> None:
    """OpenCV's, where there is one."""
    pytest.importorskip("cv2")
    try:
        haar_detector()
    except MissingDependency as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("with_face", "crop"), [(True, "face"), (True, "none"), (False, "face")])
def test_what_is_sent_is_the_face_alone(tmp_path: Path, with_face: bool, crop: str) -> None:
    film = film_of(drawn_face(160, FACE_AT) if with_face else no_face(), tmp_path / "film.mkv")
    address = f"ipc://{tmp_path}/utterances"
    arguments = ("--input", str(film), "--fast", "--camera-crop", crop, "--utterances-address", address)
    with worker_at(address, MAX_BYTES) as worker, running(tmp_path, "capture", *arguments) as run:
        (sent,) = utterances(worker, 1)
        answer(worker, sent)
        assert run.end() == 0
    _, pictures = sent.media
    share = skin_share(pictures)
    if not with_face:
        assert share < 0.01
    elif crop == "face":
        assert share > 0.15
    else:
        assert 0.02 < share < 0.08


def test_a_face_over_rtsp_is_cut_out_and_counted(
    virtual_microphone: VirtualMicrophone, rtsp_server: ServedCamera, tmp_path: Path
) -> None:
    picture = tmp_path / "face.png"
    Pillow.fromarray(drawn_face(160, FACE_AT)).save(picture)
    still = "pngdec ! imagefreeze is-live=true ! video/x-raw,framerate=25/1"
    rtsp_server.start(f"filesrc location={picture} ! {still}")
    sound = spoken_example(tmp_path / "spoken.wav")
    folder = tmp_path / "run"
    folder.mkdir()
    arguments = ("--camera", rtsp_server.url, "--camera-crop", "face", "--events", "jsonl", *ANY_PORT)
    counters: dict[str, int] = {}
    with ExitStack() as stack:
        run = stack.enter_context(running(folder, *arguments, surroundings=virtual_microphone.environment))
        data = (event.payload() for event in run.events())
        opened: set[str] = set()
        while opened != {"microphone", "camera"}:
            if isinstance(said := next(data), Device) and said.state == "opened":
                opened.add(said.device)
        player = subprocess.Popen(["paplay", "--device=virt", str(sound)], env=virtual_microphone.environment)
        stack.callback(end_process, player)
        while not isinstance(said := next(data), Emotion):
            if isinstance(said, Status) and said.role == "capture":
                counters = said.counters
        run.interrupt()
        assert run.process.stdout is not None
        run.process.stdout.read()
        assert run.end() == 130
    assert said.modalities["video"].captured, said.modalities["video"].reason
    assert counters["camera_alive"] == 1
    assert counters["pictures_without_face"] == 0
