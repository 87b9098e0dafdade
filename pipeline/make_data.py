"""Make the bundled data set from packages already installed: the same bytes every time.

    python -m pipeline make_data [FOLDER]        default: data/

digits.npz          1,797 handwritten digits, 8 × 8 pixels in 17 levels, with labels  (scikit-learn, UCI)
photographs.npz     china.jpg and flower.jpg, 427 × 640 × 3 in 256 levels            (scikit-learn, CC BY)
breast_cancer.npz   569 biopsies × 30 measurements, with diagnosis                   (scikit-learn, UCI)

Arrays are stored without compression, so the bytes depend on no compressor.  `lib.data` holds the
SHA-256 of each file and refuses any other.
"""
from pathlib import Path

import numpy as np
from sklearn import datasets


def make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    digits = datasets.load_digits()
    np.savez(folder / "digits.npz", images=digits.images.astype(np.uint8), labels=digits.target.astype(np.uint8))
    photographs = datasets.load_sample_images()
    named = {Path(name).stem: image for name, image in zip(photographs.filenames, photographs.images, strict=True)}
    np.savez(folder / "photographs.npz", **{name: named[name] for name in sorted(named)})
    table = datasets.load_breast_cancer()
    np.savez(folder / "breast_cancer.npz", features=table.data, labels=table.target.astype(np.uint8),
             names=np.array(table.feature_names, dtype="U32"))

