"""The `telme-stream` command."""

from __future__ import annotations

import os
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from typer.exceptions import TyperException

from stream.app import run_all, run_capture, run_worker
from stream.client import subscribe
from stream.config import Backend, Config, Crop, Precision, SpeakersMode, load_config
from stream.doctor import Role, devices_report, doctor_report
from stream.engines_cli import app as engines_app
from stream.items import Session
from stream.models_cli import app as models_app
from stream.processes import set_up_logging
from stream.sinks import SinkName, drop_output, make_sink
from telme.errors import INTERRUPTED, OutputError, SourceError, TelmeStreamError, UsageError

app = typer.Typer(
    add_completion=False,
    help="Says which emotion each utterance of a live conversation carries, with TelME.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(models_app, name="models")
app.add_typer(engines_app, name="engines")

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file; see README, Configuration.")]
MicOption = Annotated[str | None, typer.Option("--mic", help="Microphone, by index, name or part of a name.")]
MicChannelsOption = Annotated[int | None, typer.Option("--mic-channels", help="Inputs of it to hear apart.")]
CameraOption = Annotated[str | None, typer.Option("--camera", help="Camera, by index, path or URL.")]
CameraSizeOption = Annotated[str | None, typer.Option("--camera-size", help="Pixels to ask for: WIDTHxHEIGHT.")]
CameraFpsOption = Annotated[int | None, typer.Option("--camera-fps", help="Pictures per second to ask for.")]
CropOption = Annotated[Crop | None, typer.Option("--camera-crop", help="face: the largest face alone.")]
NoCameraOption = Annotated[bool, typer.Option("--no-camera", help="Use no pictures.")]
InputOption = Annotated[Path | None, typer.Option("--input", help="Replay a sound or video file instead.")]
FastOption = Annotated[bool, typer.Option("--fast", help="Replay as fast as it goes.")]
AsrOption = Annotated[str | None, typer.Option("--asr-model", help="Whisper: offline, a folder, name or hub id.")]
AdaptiveOption = Annotated[
    bool | None,
    typer.Option("--adaptive/--no-adaptive", help="End an utterance sooner or later as its words are a sentence."),
]
InterimOption = Annotated[
    bool | None, typer.Option("--interim", help="Each second a guess at what is being said (final: false).")
]
SpeakersOption = Annotated[
    SpeakersMode | None, typer.Option("--speakers", help="Who spoke: one for all, one a channel, or told by voice.")
]
BundleOption = Annotated[str | None, typer.Option("--bundle", help="TelME model: compact, a folder or a hub id.")]
BackendOption = Annotated[Backend | None, typer.Option("--backend", help="What runs it.")]
PrecisionOption = Annotated[Precision | None, typer.Option("--precision", help="Of what runs it.")]
_LINK_HELP = "Where utterances go from capture to worker."
UtterancesOption = Annotated[str | None, typer.Option("--utterances-address", help=f"{_LINK_HELP} Default: private.")]
_REMOTE = "tcp://127.0.0.1:5555"
RemoteOption = Annotated[str | None, typer.Option("--utterances-address", help=f"{_LINK_HELP} Default {_REMOTE}.")]
EventsAddressOption = Annotated[str | None, typer.Option("--events-address", help="Default tcp://127.0.0.1:5556.")]
JournalOption = Annotated[str | None, typer.Option("--journal", help="Keep utterances and events in this folder.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Log everything; errors with their traceback.")]
EventsOption = Annotated[SinkName, typer.Option("--events", help="What goes to standard output.")]


@app.callback(invoke_without_command=True)
def live(
    context: typer.Context,
    camera: CameraOption = None,
    camera_size: CameraSizeOption = None,
    camera_fps: CameraFpsOption = None,
    camera_crop: CropOption = None,
    no_camera: NoCameraOption = False,
    mic: MicOption = None,
    mic_channels: MicChannelsOption = None,
    input_file: InputOption = None,
    fast: FastOption = False,
    events: EventsOption = "console",
    asr_model: AsrOption = None,
    adaptive: AdaptiveOption = None,
    interim: InterimOption = None,
    speakers: SpeakersOption = None,
    bundle: BundleOption = None,
    backend: BackendOption = None,
    precision: PrecisionOption = None,
    utterances_address: UtterancesOption = None,
    events_address: EventsAddressOption = None,
    journal: JournalOption = None,
    config_file: ConfigOption = None,
    debug: DebugOption = False,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Recognize the emotions of a live conversation, or of a recorded one (--input)."""
    if show_version:
        typer.echo(f"telme-stream {version('telme-stream')}")
        raise typer.Exit
    if context.invoked_subcommand is not None:
        _refuse_options_before(context, context.invoked_subcommand)
        return
    config = _config(
        config_file,
        mic={"device": mic, "channels": mic_channels},
        camera={"source": camera, "size": camera_size, "fps": camera_fps, "crop": camera_crop},
        segmenter={"adaptive": adaptive},
        asr={"model": asr_model, "interim": interim},
        speakers={"mode": speakers},
        worker={"bundle": bundle, "backend": backend, "precision": precision},
        link={"utterances": utterances_address, "events": events_address},
        journal={"folder": journal},
    )
    _refuse_unread(config, input_file, no_camera, context)
    session = _session(config, input_file, fast, no_camera)
    set_up_logging(debug)
    raise typer.Exit(run_all(config, session, make_sink(events, sys.stdout), debug))


@app.command()
def worker(
    utterances_address: RemoteOption = None,
    events_address: EventsAddressOption = None,
    bundle: BundleOption = None,
    backend: BackendOption = None,
    precision: PrecisionOption = None,
    journal: JournalOption = None,
    config_file: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Run the worker alone, for capture processes elsewhere. Bind to a private network only: nothing is encrypted."""
    config = _config(
        config_file,
        worker={"bundle": bundle, "backend": backend, "precision": precision},
        link={"utterances": utterances_address, "events": events_address},
        journal={"folder": journal},
    )
    set_up_logging(debug)
    raise typer.Exit(run_worker(_remote(config), debug))


@app.command()
def capture(
    context: typer.Context,
    utterances_address: RemoteOption = None,
    camera: CameraOption = None,
    camera_size: CameraSizeOption = None,
    camera_fps: CameraFpsOption = None,
    camera_crop: CropOption = None,
    no_camera: NoCameraOption = False,
    mic: MicOption = None,
    mic_channels: MicChannelsOption = None,
    input_file: InputOption = None,
    fast: FastOption = False,
    asr_model: AsrOption = None,
    adaptive: AdaptiveOption = None,
    interim: InterimOption = None,
    speakers: SpeakersOption = None,
    journal: JournalOption = None,
    config_file: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Run the capture process alone, against a worker elsewhere."""
    config = _config(
        config_file,
        mic={"device": mic, "channels": mic_channels},
        camera={"source": camera, "size": camera_size, "fps": camera_fps, "crop": camera_crop},
        segmenter={"adaptive": adaptive},
        asr={"model": asr_model, "interim": interim},
        speakers={"mode": speakers},
        link={"utterances": utterances_address},
        journal={"folder": journal},
    )
    _refuse_unread(config, input_file, no_camera, context)
    session = _session(config, input_file, fast, no_camera)
    set_up_logging(debug)
    raise typer.Exit(run_capture(_remote(config), session, debug))


@app.command()
def watch(
    endpoint: Annotated[str, typer.Argument(help="Where a worker publishes.")] = "tcp://127.0.0.1:5556",
    events: EventsOption = "console",
) -> None:
    """Print the events of a running telme-stream, until Ctrl-C."""
    set_up_logging(debug=False)
    sink = make_sink(events, sys.stdout)
    for event in subscribe(endpoint):
        sink(event, msgspec.json.encode(event))


@app.command()
def devices() -> None:
    """List microphones and cameras."""
    typer.echo(devices_report())


@app.command()
def doctor(
    config_file: ConfigOption = None,
    role: Annotated[Role, typer.Option("--role", help="What this machine is for.")] = "all",
) -> None:
    """Print versions, devices, model and backend, and what is wrong with its remedy."""
    report, healthy = doctor_report(_config(config_file), role)
    typer.echo(report)
    raise typer.Exit(0 if healthy else 1)


def _config(file: Path | None, **flags: dict[str, Any]) -> Config:
    return load_config(file, os.environ, flags)


def _remote(config: Config) -> Config:
    """Where the other process is elsewhere, no address is private."""
    link = msgspec.structs.replace(config.link, utterances=config.link.utterances or _REMOTE)
    return msgspec.structs.replace(config, link=link)


def _refuse_options_before(context: typer.Context, command: str) -> None:
    """An option of the whole program that stands before a command would be read by nobody."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = _option(context, name)
            raise UsageError(
                f"{option} before {command}", "a command's options behind it", f"write telme-stream {command} {option}"
            )


def _refuse_unread(config: Config, file: Path | None, no_camera: bool, context: typer.Context) -> None:
    """A device's flag beside what makes it unread is a mistake; in file or environment it is not."""
    devices = ["mic", "mic_channels", "camera", "camera_size", "camera_fps"] if file is not None else []
    if no_camera:
        devices += ["camera", "camera_size", "camera_fps", "camera_crop"]
    for name in devices:
        if context.params.get(name) is not None:
            other = "--no-camera" if no_camera and name.startswith("camera") else "--input"
            raise UsageError(f"{_option(context, name)} beside {other}", "one of them", "leave the other out")
    if file is None and config.camera.source is None:
        for name in ("camera_size", "camera_fps", "camera_crop"):
            if context.params.get(name) is not None:
                raise UsageError(f"{_option(context, name)} without a camera", "a camera", "give --camera")


def _option(context: typer.Context, name: str) -> str:
    return next(parameter.opts[0] for parameter in context.command.params if parameter.name == name)


def _session(config: Config, file: Path | None, fast: bool, no_camera: bool) -> Session:
    if config.speakers.mode == "channel" and file is None and config.mic.channels == 1:
        raise UsageError(
            "--speakers channel with one channel of a microphone",
            "--mic-channels 2 or more, or --input FILE",
            "use --speakers cluster to tell voices of one channel apart",
        )
    if fast and file is None:
        raise UsageError("--fast without --input", "a file to replay", "add --input FILE")
    if file is not None and not file.is_file():
        raise SourceError(f"no file {file}", "a sound or video file", "check the path given to --input")
    return Session(file, fast, pictures=not no_camera)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: every error is one line, with exit code 2 for usage and 1 for the rest."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(given, standalone_mode=False, prog_name="telme-stream")
    except TelmeStreamError as error:
        code = _complain(str(error), error.exit_code, given)
    except TyperException as error:
        code = _complain(f"{error.format_message().rstrip('.')}; expected what telme-stream --help lists", 2, given)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit as end:  # typer's, with code 1, where nobody reads any more
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        drop_output()
        code = INTERRUPTED
    except OSError as error:
        if error.filename is not None:  # of a file, which nobody foresaw: what is written has none
            raise
        drop_output()
        code = _complain(str(OutputError(f"standard output: {error}", "room for it", "see where it goes")), 1, given)
    sys.exit(code or 0)


def _complain(message: str, code: int, given: list[str]) -> int:
    if "--debug" in given:
        traceback.print_exc()
    sys.stderr.write(f"telme-stream: error: {message}\n")
    return code
