"""The whole program on the example: real processes, sockets, VAD, Whisper and model."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jiwer
import jsonschema
import pytest

from stream.bus import Device, Emotion, Rejected, SpeechEnded, Status, event_schema
from tests.commands import ANY_PORT, COMMAND, DEADLINE_S, EXAMPLES, as_json, emotions, running

CONVERSATION = str(EXAMPLES / "conversation.mp4")
README = Path(__file__).parents[1] / "README.md"
MEDIA = Path(os.environ.get("TELME_MEDIA", Path(__file__).parents[2] / "shared" / "media"))
JFK = "And so my fellow Americans, ask not what your country can do for you, ask what you can do for your country."


def word_error_rate(said: str, heard: str) -> float:
    def plain(text: str) -> str:
        return " ".join(re.findall(r"[a-z0-9']+", text.lower()))

    return float(jiwer.wer(plain(said), plain(heard)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def transcript() -> list[str]:
    lines = json.loads((EXAMPLES / "conversation.json").read_text(encoding="utf-8"))
    return [line["text"] for line in lines]


def test_the_example_becomes_events_in_order_and_nothing_is_left(tmp_path: Path) -> None:
    with running(tmp_path, "--input", CONVERSATION, "--fast", "--events", "jsonl", *ANY_PORT) as run:
        events = list(run.events())
        assert run.end() == 0
        assert run.left_running() == []
    assert list(tmp_path.iterdir()) == []

    validator = jsonschema.Draft202012Validator(event_schema())
    for line in run.lines:
        validator.validate(as_json(line))
    found = emotions(events)
    expected = transcript()
    assert [emotion.seq for emotion in found] == list(range(len(expected)))
    assert word_error_rate(" ".join(expected), " ".join(emotion.text for emotion in found)) <= 0.2
    for emotion in found:
        assert len(emotion.probabilities) == 7
        assert sum(emotion.probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert emotion.label == max(emotion.probabilities, key=emotion.probabilities.__getitem__)
        assert emotion.modalities["audio"].captured
        assert emotion.modalities["video"].captured
        assert not emotion.modalities["video"].used
    assert [emotion.context_turns for emotion in found] == list(range(1, len(expected) + 1))

    stored = [event.seq for event in events if event.type != "status"]
    assert stored == list(range(stored[0], stored[0] + len(stored)))
    assert len({event.id for event in events if event.type != "status"}) == len(stored)
    assert sum(isinstance(event.payload(), SpeechEnded) for event in events) == len(expected)
    devices = [data for event in events if isinstance(data := event.payload(), Device)]
    assert [device.state for device in devices] == ["opened", "ended"]
    last = events[-1].payload()
    assert isinstance(last, Status)
    assert last.state == "stopped"


def test_the_console_prints_a_line_for_each_utterance(tmp_path: Path) -> None:
    with running(tmp_path, "--input", CONVERSATION, "--fast", "--no-camera", *ANY_PORT) as run:
        output, complaints = run.process.communicate(timeout=DEADLINE_S)
    assert run.process.returncode == 0, complaints
    lines = output.splitlines()
    assert len(lines) == len(transcript())
    line = re.compile(
        r"^\d\d:\d\d\.\d  speaker1 .*  (anger|disgust|fear|joy|neutral|sadness|surprise) +[█░]{10} +\d+% +[\d.]+s$"
    )
    for text in lines:
        assert line.match(text), text


def test_a_recording_of_a_known_sentence(tmp_path: Path) -> None:
    recording = MEDIA / "jfk.flac"
    if not recording.is_file():
        pytest.skip(f"no {recording}; set TELME_MEDIA to a folder with jfk.flac")
    arguments = ("--input", str(recording), "--no-camera", "--fast", "--events", "jsonl", *ANY_PORT)
    with running(tmp_path, *arguments) as run:
        found = emotions(list(run.events()))
        assert run.end() == 0
    assert word_error_rate(JFK, " ".join(emotion.text for emotion in found)) <= 0.2
    assert {emotion.modalities["video"].reason for emotion in found} == {"pictures are switched off (--no-camera)"}


@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_the_terminals_end_leave_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path, "--input", CONVERSATION, "--events", "jsonl", *ANY_PORT) as run:
        events = run.events()
        assert any(event.type == "speech.started" for event in events)
        run.interrupt(number)
        rest = [event.payload() for event in events]
        assert run.end() == 130
        assert run.left_running() == []
    assert list(tmp_path.iterdir()) == []
    heard = [data.seq for data in rest if isinstance(data, SpeechEnded)]
    answered = [data.seq for data in rest if isinstance(data, Emotion | Rejected)]  # a word that was cut may be unsure
    assert heard, "what was being said at Ctrl-C is an utterance"
    assert answered == heard, "what was heard before Ctrl-C is still answered"


def test_ctrl_c_twice_aborts(tmp_path: Path) -> None:
    with running(tmp_path, "--input", CONVERSATION, "--fast", "--events", "jsonl", *ANY_PORT) as run:
        events = run.events()
        assert any(event.type == "speech.ended" for event in events)
        os.kill(run.worker_pid(), signal.SIGSTOP)  # so that nothing ends in order: that would miss a deadline, and fail
        run.abort()
        rest = [event.payload() for event in events]
        assert run.end() == 130
        assert run.left_running() == []
    assert list(tmp_path.iterdir()) == []
    assert not any(isinstance(data, Status) and data.state == "stopped" for data in rest)


def test_a_worker_killed_at_any_instant_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    with running(tmp_path, "--input", CONVERSATION, "--fast", "--events", "jsonl", *ANY_PORT) as run:
        events = []
        for event in run.events():
            events.append(event)
            if event.type == "emotion" and len(emotions(events)) in (2, 5):
                os.kill(run.worker_pid(), signal.SIGKILL)
        assert run.end() == 0
    found = emotions(events)
    assert [emotion.seq for emotion in found] == list(range(len(transcript())))
    assert [emotion.context_turns for emotion in found] == list(range(1, len(transcript()) + 1))


def test_a_reader_that_goes_away_ends_the_run(tmp_path: Path) -> None:
    with running(tmp_path, "--input", CONVERSATION, "--fast", "--events", "jsonl", *ANY_PORT) as run:
        next(run.events())
        assert run.process.stdout is not None
        run.process.stdout.close()
        assert run.process.wait(DEADLINE_S) == 130
        assert run.left_running() == []
        run.process.stdout = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115 - closed by `running`


def test_an_output_that_is_full_ends_the_run_with_one_line(tmp_path: Path) -> None:
    environment = dict(os.environ, TMPDIR=str(tmp_path))
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "--input", CONVERSATION, "--fast", "--no-camera", *ANY_PORT],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            timeout=DEADLINE_S,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "error: standard output: [Errno 28] No space left on device" in done.stderr


def test_children_of_a_killed_supervisor_end_without_a_traceback(tmp_path: Path) -> None:
    with running(tmp_path, "--input", CONVERSATION, "--events", "jsonl", *ANY_PORT) as run:
        assert any(event.type == "speech.started" for event in run.events())
        os.kill(run.process.pid, signal.SIGKILL)
        complaints = run.process.communicate(timeout=DEADLINE_S)[1]  # until the last child's end
    assert "Traceback" not in complaints


def test_capture_and_worker_run_apart(tmp_path: Path) -> None:
    utterances = f"tcp://127.0.0.1:{free_port()}"
    events = f"tcp://127.0.0.1:{free_port()}"
    (tmp_path / "worker").mkdir()
    (tmp_path / "capture").mkdir()
    worker = ("worker", "--utterances-address", utterances, "--events-address", events)
    capture = ("capture", "--utterances-address", utterances, "--input", CONVERSATION, "--fast", "--no-camera")
    with running(tmp_path / "watch", "watch", events, "--events", "jsonl") as watch:
        with running(tmp_path / "worker", *worker) as serving:
            assert any(event.type == "status" for event in watch.events())  # the watcher is there before the talk
            with running(tmp_path / "capture", *capture) as capturing:
                assert capturing.end() == 0
            serving.interrupt()
            assert serving.end() == 130
        seen = []
        for event in watch.events():
            seen.append(event)
            data = event.payload()
            if isinstance(data, Status) and data.state == "stopped":
                break
        watch.interrupt()
        assert watch.end() == 130
    assert [emotion.seq for emotion in emotions(seen)] == list(range(len(transcript())))


def readme_examples() -> list[str]:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in blocks if "5556" in block]


def test_a_capture_without_a_worker_says_what_it_waits_for(tmp_path: Path) -> None:
    nobody = f"tcp://127.0.0.1:{free_port()}"
    with running(tmp_path, "capture", "--input", CONVERSATION, "--fast", "--utterances-address", nobody) as run:
        assert run.process.stderr is not None
        said = next(line for line in run.process.stderr if "Ctrl-C twice ends without it" in line)
        assert f"{len(transcript())} utterances wait for the worker's answer" in said
        run.abort()
        assert run.end() == 130
        assert run.left_running() == []


def test_the_readme_has_its_two_subscribers() -> None:
    plain, ours = readme_examples()
    assert "import zmq" in plain
    assert "stream" not in plain
    assert len(plain.splitlines()) == 5
    assert "stream.client" in ours


@pytest.mark.parametrize("index", [0, 1])
def test_the_readme_subscribers_print_the_events(tmp_path: Path, index: int) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    code = readme_examples()[index].replace("tcp://127.0.0.1:5556", address)
    with (
        subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True) as subscriber,
        running(tmp_path, "--input", CONVERSATION, "--events-address", address) as run,
    ):
        assert subscriber.stdout is not None
        line = subscriber.stdout.readline()
        run.interrupt()
        run.process.communicate(timeout=DEADLINE_S)
        subscriber.kill()
    assert "letter" in line  # a word of the first sentence


def test_a_fast_replay_with_the_adaptive_hangover_is_the_same_each_time(tmp_path: Path) -> None:
    arguments = ("--input", CONVERSATION, "--fast", "--no-camera", "--adaptive", "--events", "jsonl", *ANY_PORT)
    found = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        with running(tmp_path / name, *arguments) as run:
            found.append([(said.seq, said.text, said.start_ns, said.end_ns) for said in emotions(list(run.events()))])
            assert run.end() == 0
    assert found[0] == found[1]
    assert len(found[0]) >= len(transcript())


def test_interim_guesses_come_before_the_answer_and_leave_it_as_it_is(tmp_path: Path) -> None:
    with running(tmp_path, "--input", CONVERSATION, "--no-camera", "--interim", "--events", "jsonl", *ANY_PORT) as run:
        said = []
        for event in run.events():
            data = event.payload()
            if isinstance(data, Emotion):
                said.append((event, data))
                if data.final:
                    break
        run.interrupt()
        run.process.communicate(timeout=DEADLINE_S)
    *guesses, (answer, final) = said
    assert guesses
    for event, guess in guesses:
        assert guess.utterance == final.utterance
        assert event.seq < answer.seq
        assert guess.context_turns == final.context_turns == 1
        assert not guess.modalities["audio"].captured


def test_the_voices_of_the_example_are_told_apart(tmp_path: Path) -> None:
    with running(
        tmp_path, "--input", CONVERSATION, "--fast", "--speakers", "cluster", "--events", "jsonl", *ANY_PORT
    ) as run:
        found = emotions(list(run.events()))
        assert run.end() == 0
    assert list(tmp_path.iterdir()) == []
    assert [emotion.speaker for emotion in found] == ["speaker1", "speaker2"] * 5
    assert all(emotion.speaker_certain for emotion in found)
    assert {emotion.dialogue for emotion in found} == {0}


def test_a_long_silence_begins_a_new_dialogue(tmp_path: Path) -> None:
    """The pauses of the example are about a second long."""
    settings = tmp_path / "short.toml"
    settings.write_text("[speakers]\nmode = 'cluster'\ndialogue_gap_s = 1\n")
    folder = tmp_path / "run"
    folder.mkdir()
    with running(
        folder, "--input", CONVERSATION, "--fast", "--config", str(settings), "--events", "jsonl", *ANY_PORT
    ) as run:
        found = emotions(list(run.events()))
        assert run.end() == 0
    dialogues = [emotion.dialogue for emotion in found]
    assert dialogues == sorted(dialogues)
    assert len(set(dialogues)) > 1
    for number in set(dialogues):
        turns = [emotion for emotion in found if emotion.dialogue == number]
        assert turns[0].speaker == "speaker1"
        assert [emotion.context_turns for emotion in turns] == list(range(1, len(turns) + 1))
