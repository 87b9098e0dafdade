"""Make the bundled data set: the same bytes every time.

    python -m pipeline make_data [FOLDER [ORIGINALS]]        default: data/, and MNIST through OpenML

digits.npz          1,797 handwritten digits, 8 × 8 pixels in 17 levels, with labels  (scikit-learn, UCI)
photographs.npz     china.jpg and flower.jpg, 427 × 640 × 3 in 256 levels            (scikit-learn, CC BY)
breast_cancer.npz   569 biopsies × 30 measurements, with diagnosis                   (scikit-learn, UCI)
mnist/*-ubyte.xz    MNIST as published: 70,000 digits, 28 × 28 in 256 levels         (LeCun and Cortes, CC BY-SA 3.0)

The first three come from installed packages and are stored without compression, so their bytes depend on no
compressor.  The four files of MNIST are read from the folder ORIGINALS (plain, .gz or .xz) or rebuilt from OpenML's
table, and compressed by xz at its highest setting: three minutes, unless they come as .xz.  `lib/data.sha256` has the
SHA-256 of each file, and any other is refused.
"""
import gzip
import hashlib
import lzma
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import datasets

from pipeline import files
from pipeline.parameters import Refused

SHA256 = {name: digest for digest, name in
          map(str.split, (files.ROOT / "lib" / "data.sha256").read_text(encoding="utf-8").splitlines())}
MNIST = [name for name in SHA256 if name.startswith("mnist/")]


def make(folder: Path, originals: Path | None = None) -> None:
    """Write the files into `folder`, MNIST's from the folder `originals` or through OpenML."""
    (folder / "mnist").mkdir(parents=True, exist_ok=True)
    digits: Any = datasets.load_digits()
    np.savez(folder / "digits.npz", images=digits.images.astype(np.uint8), labels=digits.target.astype(np.uint8))
    photographs = datasets.load_sample_images()
    named = {Path(name).stem: image for name, image in zip(photographs.filenames, photographs.images, strict=True)}
    np.savez(folder / "photographs.npz", **{name: named[name] for name in sorted(named)})
    table: Any = datasets.load_breast_cancer()
    np.savez(folder / "breast_cancer.npz", features=table.data, labels=table.target.astype(np.uint8),
             names=np.array(table.feature_names, dtype="U32"))
    given = {} if originals else from_openml()
    for name in MNIST:
        packed = packed_original(originals, Path(name).stem) if originals else packed_xz(given[Path(name).stem])
        found = hashlib.sha256(packed).hexdigest()
        if found != SHA256[name]:
            raise Refused(f"{name}: got SHA-256 {found[:12]}…; need {SHA256[name][:12]}…: another file, or another xz")
        (folder / name).write_bytes(packed)


def packed_xz(raw: bytes) -> bytes:
    """As `xz -9e` compresses."""
    return lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)


def packed_original(folder: Path, name: str) -> bytes:
    """One of MNIST's files as .xz, from the .xz, .gz or plain file in a folder."""
    for ending, read in ((".xz", bytes), (".gz", lambda raw: packed_xz(gzip.decompress(raw))), ("", packed_xz)):
        file = folder / (name + ending)
        if file.exists():
            return read(file.read_bytes())
    raise Refused(f"originals: got no {name} in {folder}; need the four files of MNIST, plain, .gz or .xz")


def from_openml() -> dict[str, bytes]:
    """The four files of MNIST, byte for byte, from OpenML's table of 70,000 rows in the published order."""
    try:
        table: Any = datasets.fetch_openml(data_id=554, as_frame=False, parser="liac-arff")
    except OSError as error:
        raise Refused(f"mnist: OpenML cannot be reached ({error}); connect, or name a folder with the four original "
                      "files: make_data FOLDER ORIGINALS") from error
    images, labels = table.data.astype(np.uint8).reshape(-1, 28, 28), table.target.astype(np.uint8)
    return {f"{part}-{kind}-idx{array.ndim}-ubyte": bytes([0, 0, 8, array.ndim])
            + np.array(array[rows].shape, ">u4").tobytes() + array[rows].tobytes()
            for part, rows in (("train", slice(60_000)), ("t10k", slice(60_000, None)))
            for kind, array in (("images", images), ("labels", labels))}
