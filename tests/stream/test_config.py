"""Configuration: file, then environment, then flags; what does not hold is one line that says where and which."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.inspect import IntType, LiteralType, StructType, type_info

from stream.config import Config, load_config
from telme.errors import ConfigError

CONSTRAINED = {("camera", "size"): "1280x720", ("camera", "fps"): 25}


def load(file: Path | None = None, flags: Mapping[str, Mapping[str, Any]] | None = None, **environment: str) -> Config:
    return load_config(file, variables(environment), flags or {})


def variables(values: Mapping[str, str]) -> dict[str, str]:
    return {f"TELME_STREAM_{name}": value for name, value in values.items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "telme.toml"
    path.write_text('[segmenter]\nhangover_ms = 700\nmax_ms = 9000\n[mic]\ndevice = 3\n[link]\nevents = "tcp://*:7"\n')
    return path


def test_nothing_given_is_the_defaults() -> None:
    assert load() == Config()
    assert load_config(None, {"HOME": "/", "TELME_TEST": "1"}, {"mic": {"device": None}}) == Config()


def test_later_sources_win_key_by_key(file: Path) -> None:
    config = load(file, {"segmenter": {"hangover_ms": 900}}, SEGMENTER_HANGOVER_MS="800", SEGMENTER_MAX_MS="8000")
    assert config.segmenter.hangover_ms == 900
    assert config.segmenter.max_ms == 8000
    assert config.mic.device == 3
    assert config.link.events == "tcp://*:7"
    assert config.segmenter.pre_roll_ms == Config().segmenter.pre_roll_ms


def test_a_flag_that_was_not_given_leaves_what_is_there(file: Path) -> None:
    assert load(file, {"mic": {"device": None}}).mic.device == 3


def test_environment_variables_hold_numbers_and_words() -> None:
    config = load(SEGMENTER_MAX_MS="6000", CAMERA_SOURCE="rtsp://cam", ASR_BEAM_SIZE="5", LINK_MAX_MESSAGE_BYTES="5000")
    assert (config.segmenter.max_ms, config.asr.beam_size, config.link.max_message_bytes) == (6000, 5, 5000)
    assert config.camera.source == "rtsp://cam"


def another(section: str, key: str, default: object) -> object:
    """A value that the key may have and has not by default."""
    info = type_info(type(getattr(Config(), section)))
    assert isinstance(info, StructType)
    kind = {field.name: field.type for field in info.fields}[key]
    if isinstance(kind, LiteralType):
        return next(value for value in kind.values if value != default)
    if (section, key) in CONSTRAINED:
        return CONSTRAINED[section, key]
    if isinstance(default, float):
        return default / 2
    if isinstance(kind, IntType) and isinstance(default, int) and default == kind.le:
        return default - 1
    return default + 1 if isinstance(default, int) else f"{default}x"


def test_every_key_can_be_set_by_the_environment() -> None:
    for section, keys in msgspec.to_builtins(Config()).items():
        for key, default in keys.items():
            value = another(section, key, default)
            config = load_config(None, variables({f"{section}_{key}".upper(): str(value)}), {})
            assert getattr(getattr(config, section), key) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[segmentr]\n", "unknown field `segmentr`; expected one of mic, camera, segmenter, asr,"),
        (
            "[segmenter]\nhangover = 5\n",
            "unknown field `hangover` - at `$.segmenter`; expected one of aggr",
        ),
        ("[segmenter]\nhangover_ms = 5\n", "`int` >= 100 - at `$.segmenter.hangover_ms`"),
        ('[segmenter]\nhangover_ms = "soon"\n', "`$.segmenter.hangover_ms`"),
        ("[segmenter]\nhangover_ms = 500.5\n", "`$.segmenter.hangover_ms`"),
        ("[segmenter]\naggressiveness = 4\n", "`$.segmenter.aggressiveness`"),
        ("[segmenter]\nmax_ms = 1000\n", "max_ms 1000 is below pre_roll_ms + min_speech_ms + 500, which is 1050"),
        ('[camera]\nsize = "1280"\n', "`$.camera.size`; expected WIDTHxHEIGHT;"),
        ('[camera]\nsize = "0x480"\n', "`$.camera.size`"),
        ("[camera]\nfps = 0\n", "`$.camera.fps`"),
        ('[camera]\nbackend = "directshow"\n', "`$.camera.backend`; expected one of auto, ffmpeg, gstreamer, v4l2;"),
        ('[mic]\nfallback = "perhaps"\n', "`$.mic.fallback`"),
        ("[link]\nmax_message_bytes = 99999999999\n", "`$.link.max_message_bytes`"),
        ("[asr]\nmodel = 5\n", "`$.asr.model`"),
        ("debug = true\n", "'debug' in"),
        ("[mic\n", "Expected ']'"),
        ("[mic]\ndevice = 1\ndevice = 2\n", "overwrite"),
    ],
)
def test_a_file_that_does_not_hold_is_named_with_the_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.toml", tmp_path, binary):
        with pytest.raises(ConfigError) as error:
            load(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SEGMENTER_HANGOVER_MS", "soon", "`$.segmenter.hangover_ms`"),
        ("SEGMENTER_HANGOVER", "500", "unknown field `hangover`"),
        ("SEGMENTR_HANGOVER_MS", "500", "unknown field `segmentr`"),
        ("CAMERA_RING_FPS", "61", "`$.camera.ring_fps`"),
        ("CAMERA", "0", "unknown field ``"),
        ("JOURNAL_FOLDER", "", "`$.journal.folder`; expected the name of a folder;"),
    ],
)
def test_the_environment_is_named_with_the_key(file: Path, name: str, value: str, says: str) -> None:
    with pytest.raises(ConfigError, match="the environment") as error:
        load_config(file, variables({name: value}), {})
    assert says in str(error.value)


def test_a_flag_is_blamed_when_the_flag_is_wrong(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"the flags: .*segmenter\.hangover_ms"):
        load(file, {"segmenter": {"hangover_ms": 1}}, SEGMENTER_HANGOVER_MS="800")
