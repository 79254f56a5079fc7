"""The real data of the demo: two tables that travel inside scikit-learn, and the public bounds of their columns."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits

BOUNDS = Path(__file__).with_name("breast_cancer_bounds.csv")


def breast_cancer() -> tuple[list[str], NDArray[np.float64], NDArray[np.int64]]:
    """Return column names, 569 rows of 30 features, and classes (0 malignant, 1 benign)."""
    table: Any = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in table.feature_names]
    return names, table.data, table.target.astype(np.int64)


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return 1797 images [N, 1, 8, 8] of 0 to 16, and the digit each shows."""
    table: Any = load_digits()
    return table.images.astype(np.uint8)[:, None, :, :], table.target.astype(np.int64)


def split(count: int, *, test: float = 0.25, seed: int = 20) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the row numbers of the training and the test part, shuffled by a fixed seed."""
    order = np.random.default_rng(seed).permutation(count)
    cut = round(count * (1 - test))
    return order[:cut], order[cut:]


def bounds() -> dict[str, tuple[float, float]]:
    """Return the public lower and upper bound of each column, from the checked-in table with its sources."""
    with BOUNDS.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return {row["column"]: (float(row["min"]), float(row["max"])) for row in rows}


def schema(names: list[str]) -> dict[str, object]:
    """Return the declared schema of the breast cancer table."""
    limits = bounds()
    columns: list[dict[str, object]] = [
        {"name": name, "type": "float", "min": limits[name][0], "max": limits[name][1]} for name in names
    ]
    columns.append({"name": "diagnosis", "type": "category", "categories": ["malignant", "benign"]})
    return {"columns": columns, "target": "diagnosis"}


def as_csv(names: list[str], features: NDArray[np.float64], classes: NDArray[np.int64]) -> bytes:
    """Write the rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "diagnosis"])
    labels = ("malignant", "benign")
    writer.writerows([*map(repr, row.tolist()), labels[label]] for row, label in zip(features, classes, strict=True))
    return text.getvalue().encode()
