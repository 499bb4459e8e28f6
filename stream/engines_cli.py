"""The `telme-stream engines` commands. What they need of engines is imported when one runs: torch loads slowly."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stream.machine import stop_telemetry
from stream.models_cli import need_torch
from telme.errors import EngineError, MissingDependency, TelmeStreamError

if TYPE_CHECKING:
    from engines.predictor import Choice
    from engines.store import Manifest, Store
    from telme.bundle import Bundle

app = typer.Typer(
    help="Engines: compile the networks of a bundle, list and verify what is cached.", rich_markup_mode=None
)

_STEPS = 1000


@app.command()
def build(
    bundle_name: Annotated[
        str, typer.Option("--bundle", help="TelME model: compact, a folder or a hub id.")
    ] = "compact",
    precision: Annotated[str, typer.Option("--precision", help="fp32, fp16, bf16, int8, or what is best.")] = "auto",
    backend: Annotated[
        str, typer.Option("--backend", help="tensorrt, onnx, torch, or auto: what the worker would choose here.")
    ] = "tensorrt",
) -> None:
    """Compile the networks of a bundle ahead of time; those that are cached and whole are left as they are."""
    need_torch()
    stop_telemetry()
    from engines.predictor import choices
    from engines.store import Store, default_root
    from telme.bundle import open_bundle

    store = Store(default_root())
    ranked = choices(backend, precision)
    bundle = open_bundle(bundle_name)
    choice = next((choice for choice in ranked[:-1] if _can_run(choice)), ranked[-1])
    _build_parts(store, choice, bundle)


def _can_run(choice: Choice) -> bool:
    """Whether the worker would take it where it may choose; says why not."""
    from engines.predictor import check_can_run

    try:
        check_can_run(choice)
    except TelmeStreamError as error:
        typer.echo(f"{choice.name} cannot run here: {error}", err=True)
        return False
    return True


def _build_parts(store: Store, choice: Choice, bundle: Bundle) -> None:
    from engines.predictor import built_ahead
    from engines.store import read_manifest

    as_they_are = []
    for part in bundle.config.parts:
        started_s = time.monotonic()
        with typer.progressbar(
            length=_STEPS, label=f"{part:<7}", file=sys.stderr, hidden=not sys.stderr.isatty()
        ) as bar:
            shown = 0

            def show(share: float) -> None:
                nonlocal shown
                steps, shown = int(share * _STEPS) - shown, int(share * _STEPS)
                bar.update(steps)

            folder = built_ahead(bundle, part, choice, store, show)
        if folder is None:
            as_they_are.append(part)
        else:
            typer.echo(f"{_line(read_manifest(folder))}, ready in {time.monotonic() - started_s:.1f} s")
    if as_they_are:
        typer.echo(f"nothing to build for {', '.join(as_they_are)}: {choice.name} reads the weights themselves")


@app.command("list")
def list_() -> None:
    """List the cached engines: part, precision, what runs it, for which GPU, size."""
    need_torch()
    from engines.store import Store, default_root, read_manifest

    folders = Store(default_root()).folders()
    for folder in folders:
        try:
            typer.echo(f"{_line(read_manifest(folder))}  {folder}")
        except EngineError as error:
            typer.echo(f"!!  {error}")
    if not folders:
        typer.echo(f"none in {default_root()}; telme-stream engines build makes them")


@app.command()
def verify() -> None:
    """Check the cached engines against their manifests. Exit code 1 if any is damaged."""
    need_torch()
    from engines.store import Store, default_root
    from engines.store import verify as check

    damaged = False
    store = Store(default_root())
    folders = list(store.folders())
    if not folders:
        typer.echo(f"none in {store.root}")
    for folder in folders:
        try:
            manifest = check(folder)
        except EngineError as error:
            damaged = True
            typer.echo(f"!!  {error}")
            continue
        try:
            here = ", ".join(f"{field} {value}" for field, value in _other_here(manifest).items())
        except MissingDependency as error:
            here = error.seen
        typer.echo(f"{'--' if here else 'ok'}  {_line(manifest)}{here and f'; this machine has {here}'}")
    raise typer.Exit(1 if damaged else 0)


@app.command()
def prune() -> None:
    """Remove cached engines that are damaged, half made or of another version; those of other hardware stay."""
    need_torch()
    from engines.store import Store, default_root

    store = Store(default_root())
    for folder in store.folders():
        # Looked at twice: without its lock, which would keep a worker waiting, and for those that seem useless with it.
        if _why_useless(folder) and (why := store.remove(folder, _why_useless)):
            typer.echo(f"removed {folder}: {why}")
    for partial in store.remove_unfinished():
        typer.echo(f"removed {partial}: whoever built it was killed")


def _line(manifest: Manifest) -> str:
    key = manifest.key
    gpu = "any GPU that it accepts" if _is_carried(key) else key.get("gpu", "the processor")
    return (
        f"{key.get('graph', '?'):<7} {key.get('precision', '?').strip(chr(34)):<5} {key.get('backend', '?')}"
        f" {key.get('version', '?')} for {gpu}, weights {key.get('weights', '?')[:12]},"
        f" {manifest.size_bytes / 1e6:.1f} MB, built {manifest.built} in {manifest.build_s} s"
    )


def _is_carried(key: Mapping[str, str]) -> bool:
    """Whether it is a plan made without a GPU, which serves on any that TensorRT-RTX's own check finds fit."""
    from engines.build import NO_GPU, RTX

    return (key.get("backend"), key.get("gpu")) == (RTX, NO_GPU)


def _why_useless(folder: Path) -> str:
    """Why nothing here will ever take an engine; empty where something may, if only with another GPU or processor."""
    from engines.onnx import SIGN_FIELD
    from engines.store import verify as check

    elsewhere = ("gpu", SIGN_FIELD)
    try:
        other = _other_here(check(folder))
    except EngineError as error:
        return error.seen
    except MissingDependency:  # what runs it may be in another environment
        return ""
    return ", ".join(f"this machine has {field} {value}" for field, value in other.items() if field not in elsewhere)


def _other_here(manifest: Manifest) -> dict[str, str]:
    """What of this machine differs from what an engine was made for.

    Raises:
        MissingDependency: What runs it is not installed.
    """
    import torch

    from engines.build import MODULES, gpu_name, toolkit
    from engines.export import exporter
    from engines.onnx import import_onnxruntime, quantiser

    backend = manifest.key.get("backend", "")
    here = {"export": exporter(), **(quantiser() if "quantised" in manifest.key else {})}
    if backend in MODULES.values():
        found = toolkit()
        here |= {"backend": found.name, "version": found.version}
        here |= {} if _is_carried(manifest.key) else {"gpu": gpu_name()}
    else:
        here["version"] = str(torch.__version__) if backend.startswith("torch") else import_onnxruntime().__version__
    return {field: value for field, value in here.items() if manifest.key.get(field) != value}
