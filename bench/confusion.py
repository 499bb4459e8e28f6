"""The confusion matrix as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from telme.evaluate import Report


def picture(report: Report, labels: Sequence[str], title: str) -> bytes:
    """PNG: rows are annotated classes, shaded by their shares, with the counts written in."""
    counts = np.array(report.confusion)
    columns = [*labels, "no answer"]
    if not counts[:, -1].any():
        counts, columns = counts[:, :-1], list(labels)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("answered")
    axes.set_ylabel("annotated")
    axes.set_title(f"{title}\nweighted F1 {report.weighted_f1:.2f}, {report.n} utterances", fontsize=9)
    for row, column in np.ndindex(counts.shape):
        shade = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=shade, fontsize=8)
    made = io.BytesIO()
    figure.savefig(made, format="png", dpi=120)
    return made.getvalue()
