"""What goes wrong in live recognizers, and the tests that hold this one to it: each failure names its tests.

The failures were read in the public threads of neighbouring projects (Whisper, RealtimeSTT, WhisperLive, pipecat,
LiveKit, OpenCV, PortAudio and others).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
KNOWN_FAILURES = 17
PITFALLS: dict[str, tuple[str, ...]] = {
    "Whisper invents text on silence and noise": (
        "stream/test_asr.py::test_what_is_no_speech_is_rejected",
        "stream/test_asr.py::test_silence_never_reaches_whisper",
        "stream/test_asr.py::test_the_gates_after_whisper_name_figure_and_limit",
    ),
    "the first word is cut": (
        "stream/test_segmenter.py::test_a_span_has_its_pre_roll_and_its_tail",
        "stream/test_ears.py::test_utterances_carry_their_own_sound_and_times",
        "stream/test_ears.py::test_frames_are_those_of_the_utterances_own_time",
        "bench/test_scoring.py::test_the_first_word_is_lost_when_the_cut_begins_after_the_voice",
    ),
    "a microphone that is unplugged freezes everything in silence": (
        "stream/test_mic.py::test_a_lost_microphone_says_so_and_is_opened_again",
        "stream/test_live_faults.py::test_a_microphone_that_goes_away_comes_back",
        "stream/test_live_faults.py::test_the_command_survives_the_loss_of_microphone_and_camera",
    ),
    "speech never ends when no sound arrives any more": (
        "stream/test_ears.py::test_a_stall_closes_what_is_open",
        "stream/test_live_faults.py::test_the_command_survives_the_loss_of_microphone_and_camera",
    ),
    "a lost camera blocks, or repeats its last picture for ever": (
        "stream/test_camera.py::test_a_driver_that_blocks_is_abandoned_and_its_late_picture_is_not_served",
        "stream/test_camera.py::test_a_driver_that_repeats_its_last_picture_counts_as_lost",
        "stream/test_ears.py::test_stale_frames_are_missing_not_served",
        "stream/test_live_faults.py::test_a_camera_that_serves_no_pictures_is_lost_until_it_does",
    ),
    "pictures are old because the driver buffers": (
        "stream/test_camera.py::test_the_driver_is_drained_however_few_pictures_are_kept",
        "stream/test_camera.py::test_pictures_are_rgb_and_stamped_at_the_grab",
    ),
    "latency grows without end on a slow machine": (
        "stream/test_asr_thread.py::test_a_live_source_never_waits_and_says_what_it_leaves_out",
        "stream/test_asr_thread.py::test_the_lag_is_that_of_the_oldest_utterance_not_transcribed",
        "stream/test_portaudio.py::test_a_full_queue_loses_the_newest_and_the_numbers_stay_honest",
    ),
    "memory grows in a long silence": (
        "stream/test_long_run.py::test_an_hour_of_sound_leaves_the_last_seconds",
        "stream/test_long_run.py::test_an_hour_of_pictures_leaves_the_last_ones",
        "bench/test_soak.py::test_a_leak_is_a_slope_and_a_filled_cache_is_none",
    ),
    "the libraries of recognizer and model clash": (
        "test_pitfalls.py::test_recognizer_and_model_load_their_libraries_in_different_processes",
        "stream/test_doctor.py::test_a_driver_that_torch_does_not_use_is_wrong",
        "stream/test_doctor.py::test_no_tensorrt_is_no_fault_and_a_broken_one_is",
    ),
    "webrtcvad needs pkg_resources, and PortAudio is missing at import": (
        "stream/test_portaudio.py::test_without_portaudio_it_says_what_to_install",
        "stream/test_portaudio.py::test_sounddevice_is_not_loaded_before_a_microphone_is_opened",
        "test_pitfalls.py::test_the_detector_of_speech_needs_no_pkg_resources",
    ),
    "ZeroMQ loses the first events, and a slow subscriber's": (
        "test_end_to_end.py::test_the_example_becomes_events_in_order_and_nothing_is_left",
        "stream/test_worker_restarts.py::test_a_stop_waits_for_the_subscriber_of_what_is_left_to_say",
        "stream/test_worker.py::test_heartbeats_repeat_the_last_number_and_say_goodbye",
        "stream/test_bus.py::test_a_slow_subscriber_loses_its_own_events_only",
    ),
    "TensorRT's plans do not move between GPUs or versions": (
        "engines/test_build.py::test_plans_are_cached_and_a_stale_one_is_named",
        "engines/test_store.py::test_every_field_of_the_key_counts",
        "engines/test_store_faults.py::test_what_does_not_hold_is_named_and_built_anew",
        "engines/test_tensorrt.py::test_tensorrts_own_check_is_the_last_word",
    ),
    "a label without a confidence is useless": (
        "stream/test_worker.py::test_an_utterance_becomes_an_emotion_and_an_ack",
        "telme/test_predictor.py::test_neighbours_change_no_answer",
        "telme/test_evaluate.py::test_calibration_error_is_the_gap_of_confidence_and_accuracy",
        "telme/test_train.py::test_students_that_take_a_fusions_place_do_not_keep_its_temperature",
    ),
    "latency figures that lie": (
        "stream/test_clock.py::test_a_live_sample_is_heard_when_it_was_in_the_air",
        "stream/test_worker.py::test_the_stages_add_up_to_the_total_without_what_was_hidden",
        "bench/test_scoring.py::test_the_delay_is_from_the_true_end_to_the_last_transcript",
    ),
    "MELD's clips are broken, missing or cut in the wrong place": (
        "telme/test_clips.py::test_a_clip_that_is_cut_off_or_overwritten_is_missing",
        "telme/test_data.py::test_clips_that_are_missing_named_otherwise_or_known_to_be_bad",
        "telme/test_cache.py::test_every_kind_of_bad_clip_is_counted_with_its_reason",
        "bench/test_meld_f1.py::test_clips_that_fail_are_counted_and_left_out_of_what_needs_them",
    ),
    "sound and pictures drift apart": (
        "stream/test_align.py::test_pictures_are_those_of_the_moments",
        "stream/test_clock.py::test_every_sample_is_timed_within_the_jitter_of_the_stamps",
    ),
    "Ctrl-C hangs and leaves processes": (
        "test_end_to_end.py::test_ctrl_c_and_the_terminals_end_leave_nothing",
        "test_end_to_end.py::test_ctrl_c_twice_aborts",
        "stream/test_supervisor_stop.py::test_a_child_that_misses_its_stop_deadline_is_named_and_ended",
    ),
}


def test_no_known_failure_is_without_tests() -> None:
    assert len(PITFALLS) == KNOWN_FAILURES
    assert all(PITFALLS.values())


@pytest.mark.parametrize("pitfall", PITFALLS)
def test_the_tests_of_a_pitfall_are_there(pitfall: str) -> None:
    for name in PITFALLS[pitfall]:
        file, _, function = name.partition("::")
        module = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}, name


@pytest.mark.timeout(600)  # torch is large, and the machine may be busy
@pytest.mark.parametrize(
    ("modules", "not_loaded"),
    [
        ("stream.capture, faster_whisper, ctranslate2", {"torch", "transformers", "tensorrt", "tensorrt_rtx"}),
        ("stream.worker", {"ctranslate2", "faster_whisper"}),
    ],
    ids=["capture", "worker"],
)
def test_recognizer_and_model_load_their_libraries_in_different_processes(modules: str, not_loaded: set[str]) -> None:
    code = f"import sys, {modules}; raise SystemExit(', '.join({not_loaded} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    assert ended.stderr.strip() == ""


def test_the_detector_of_speech_needs_no_pkg_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pkg_resources", None)  # importing it fails
    monkeypatch.delitem(sys.modules, "webrtcvad", raising=False)
    import webrtcvad

    assert webrtcvad.Vad(2).is_speech(bytes(960), 16_000) is False
