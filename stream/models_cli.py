"""The `telme-stream models` commands. What they need of telme is imported when one runs: torch loads slowly."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from telme.errors import BundleError, MissingDependency, UsageError

if TYPE_CHECKING:
    from telme.shelf import Facts

app = typer.Typer(
    help="Models: pull or import the authors' weights, list, show and verify bundles.", rich_markup_mode=None
)

NameArgument = Annotated[str, typer.Argument(help="A packaged name, a folder or a hub id.")]


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="The authors' archive, or the folder it unpacks to.")],
    dataset: Annotated[str, typer.Option("--dataset", help="Which weights: meld or iemocap.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the new bundle.")],
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Folder with roberta-large's tokenizer; default: from the hub.")
    ] = None,
    processors: Annotated[
        Path | None,
        typer.Option(
            "--processors",
            help="Folder with data2vec-audio-base-960h/preprocessor_config.json and videomae-base/ likewise; default: "
            "from the hub, or left out with --tokenizer.",
        ),
    ] = None,
    left_pad_ms: Annotated[
        int | None,
        typer.Option(
            "--left-pad-ms",
            help="Silence before every utterance's sound, as found on dev with bench/meld_f1.py; default: none.",
        ),
    ] = None,
) -> None:
    """Turn the authors' four .bin files into a bundle."""
    need_torch()
    from telme.importer import import_published

    import_published(
        source.expanduser(),
        dataset,
        out.expanduser(),
        tokenizer and tokenizer.expanduser(),
        processors and processors.expanduser(),
        left_pad_ms=left_pad_ms,
    )
    _made(out)


@app.command()
def pull(
    dataset: Annotated[str, typer.Argument(help="Which weights: meld or iemocap.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the new bundle; default: telme-DATASET.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="You have read that the authors state no licence.")] = False,
) -> None:
    """Fetch the authors' weights and all they need, and make a bundle of them. It can be run again after a break."""
    need_torch()
    from telme.importer import check_target
    from telme.pull import ARCHIVE_PAGE, NOTICE, archive_path, pull_published

    folder = Path(f"telme-{dataset}") if out is None else out.expanduser()
    check_target(dataset, folder)
    typer.echo(NOTICE)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("weights without a licence and nobody to ask", "your consent", "add --yes")
        if not typer.confirm("Fetch them?"):
            raise typer.Exit(1)
    typer.echo(f"from {ARCHIVE_PAGE}, kept in {archive_path()}")
    pull_published(dataset, folder)
    _made(folder)


@app.command("list")
def list_(
    folder: Annotated[Path | None, typer.Argument(help="Also this bundle, or those in this folder.")] = None,
) -> None:
    """List the bundles at hand: data set, mode, parts."""
    need_torch()
    from telme.bundle import bundle_path
    from telme.config import TelmeConfig
    from telme.modeling import read_config
    from telme.shelf import bundles_in

    for name in list(bundles_in(folder)):
        try:
            config: TelmeConfig = read_config(bundle_path(name))
        except BundleError as error:
            typer.echo(f"{name}  cannot be used: {error.seen}")
            continue
        typer.echo(f"{name}  {config.dataset}  {config.mode}  {'+'.join(config.parts)}")


@app.command()
def show(name: NameArgument) -> None:
    """Show what is in a bundle: labels, mode, parts and how they were trained, digests, card."""
    need_torch()
    from telme.shelf import facts

    typer.echo(_described(facts(name)))


@app.command()
def verify(name: NameArgument) -> None:
    """Check a bundle: digests, card, labels, mode, parts, and one answer. Exit code 1 if anything is wrong."""
    need_torch()
    from telme.shelf import verify as findings

    wrong = False
    for finding in findings(name):
        wrong |= finding.wrong
        typer.echo(f"{'!!' if finding.wrong else 'ok'}  {finding.name:<8} {finding.seen}")
    raise typer.Exit(1 if wrong else 0)


def _made(folder: Path) -> None:
    typer.echo(f"made {folder}; check it with telme-stream models verify {folder}, use it with --bundle {folder}")


def _described(facts: Facts) -> str:
    from telme.record import told

    config = facts.config
    mode = {key: value for key, value in asdict(config.input_mode).items() if key != "name"}
    parts = [
        f"  {part.part:<7} {part.parameters:>12,} numbers  {'+'.join(part.dtypes):<8} {part.size_bytes / 1e6:>8.1f} MB"
        for part in facts.parts
    ]
    return "\n".join(
        [
            f"bundle   {facts.name} in {facts.folder}",
            f"labels   {config.dataset}: {', '.join(config.label_set.names)}",
            f"context  {config.max_prompt_tokens} tokens, {config.max_turns} turns",
            f"mode     {config.mode}",
            *(f"  {key} = {value}" for key, value in mode.items()),
            "parts",
            *parts,
            "training" if facts.record else "training none recorded",
            *(f"  {line}" for line in told(config.parts, facts.record) if facts.record),
            "digests  (SHA-256, as recorded)" if facts.sums else "digests  none recorded",
            *(f"  {digest}  {file}" for file, digest in facts.sums.items()),
            "",
            facts.card.rstrip(),
        ]
    )


def need_torch() -> None:
    """Check that the worker's packages are installed.

    Raises:
        MissingDependency: One is not.
    """
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            f"the package {error.name} is missing",
            "the worker's packages",
            "pip install -c constraints.txt '.[worker]'",
        ) from error
