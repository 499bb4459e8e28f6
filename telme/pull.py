"""The authors' weights from where they published them -> a bundle, for a user with a network.

Their archive lies on a shared Google Drive and holds the weights of both data sets, so it is kept, and a download that
was broken off goes on.
"""

from __future__ import annotations

from pathlib import Path

import gdown
import platformdirs
from gdown.exceptions import DownloadError, FileURLRetrievalError
from requests.exceptions import RequestException

from telme.backbones import PUBLISHED_BACKBONES, Backbones
from telme.errors import BundleError
from telme.hub import processors_from_hub, tokenizer_from_hub
from telme.importer import check_target, import_published

NOTICE = """\
These are the weights of the authors of TelME (Yun et al., NAACL 2024, github.com/yuntaeyang/TelME), from their Google
Drive. They state no licence, so none is granted: ask them before you pass the weights on or use them for more than your
own study. The video student began as TimeSformer, whose weights are for non-commercial use (CC BY-NC 4.0).
The archive of both data sets is about 3 GB, a bundle 2.4 GB."""

# Named in the authors' README.
ARCHIVE_ID = "1JIh77AqJ-mfME-nxv8r7hU3UZSrGukv0"
ARCHIVE_NAME = "model.tar.gz"
ARCHIVE_PAGE = f"https://drive.google.com/file/d/{ARCHIVE_ID}/view"
_CONNECT_S, _READ_S = 10.0, 60.0
_RETRIES = 5


def archive_path() -> Path:
    """Where the authors' archive is kept."""
    return platformdirs.user_cache_path("telme-stream") / "published" / ARCHIVE_NAME


def pull_published(dataset: str, out: Path, backbones: Backbones = PUBLISHED_BACKBONES) -> None:
    """Fetch what a bundle of the authors' weights needs, and make it.

    What has been fetched once is not fetched again, and nothing is left of a bundle that could not be made.

    Args:
        dataset: Key of `telme.labels.LABEL_SETS`.
        out: Folder of the bundle; must not exist, or be empty.
        backbones: Other ones than the published, for tests at toy size.

    Raises:
        UsageError: The data set is unknown, or `out` is taken.
        BundleError: Something cannot be had, is not what it should be, or cannot be written.
    """
    check_target(dataset, out)
    # The small files first: whoever cannot reach the hub need not wait for the archive to learn it.
    tokenizer_from_hub()
    processors_from_hub()
    archive = fetch_archive()
    try:
        import_published(archive, dataset, out, backbones=backbones)
    except BundleError as error:
        remedy = f"{error.remedy}; the archive is {archive}: without it, it is fetched anew"
        raise BundleError(error.seen, error.expected, remedy) from error


def fetch_archive() -> Path:
    """The authors' archive, downloaded once, with a progress bar on standard error.

    Raises:
        BundleError: It cannot be had or written.
    """
    archive = archive_path()
    if archive.is_file():
        return archive
    by_hand = f"or fetch {ARCHIVE_PAGE} with a browser and give the file to telme-stream models import"
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        # Without retries: nobody should wait for a Drive that is not there or refuses.
        gdown.download(id=ARCHIVE_ID, skip_download=True, use_cookies=False, timeout=(_CONNECT_S, _READ_S))
        gdown.download(
            id=ARCHIVE_ID,
            output=str(archive),
            resume=True,
            retries=_RETRIES,
            use_cookies=False,
            timeout=(_CONNECT_S, _READ_S),
        )
    except FileURLRetrievalError as error:
        raise BundleError(
            f"Google Drive does not give {ARCHIVE_NAME}: {_said(error)}", "the file", f"try again later, {by_hand}"
        ) from error
    except (DownloadError, RequestException) as error:
        raise BundleError(
            f"{ARCHIVE_NAME} cannot be had from Google Drive ({type(error).__name__}: {_said(error)})",
            "a network that reaches drive.google.com",
            f"run this again, which goes on where it stopped, {by_hand}",
        ) from error
    except OSError as error:
        raise BundleError(f"{archive} cannot be written: {error}", "room for 3 GB", "set XDG_CACHE_HOME") from error
    return archive


def _said(error: Exception) -> str:
    """An error's own words in one line; of gdown's long ones the reason alone."""
    said = " ".join(str(error).split()).removeprefix("Failed to retrieve file url: ")
    return said.partition(" You may ")[0]
