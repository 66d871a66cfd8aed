"""Which of two denoisers? A CT slice with noise, cleaned by a Gaussian and by a median filter, compared pair by pair.

    python examples/compare_two_denoisers.py [--out denoisers] [--model NAME|FILE]

The slice comes with pydicom; the noise is added to it eight times over. So the answer is about noise on *this* slice:
for one about patients, give `saqm compare` the slices of many, and a manifest that says which is of whom.
Leaves in the folder: gaussian/ and median/ with their pictures, pairs.csv and pairs.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image as pillow
from pydicom.data import get_testdata_file
from scipy.ndimage import gaussian_filter, median_filter

import saqm
from saqm.batch import Settings, score_many
from saqm.comparison import PAIR_COLUMNS, compare
from saqm.image import find_images
from saqm.outputs.differences import differences
from saqm.outputs.table import save_records
from saqm.patches import luminance

SLICE = "J2K_pixelrep_mismatch.dcm"  # a head, 512 x 512
REGION = np.s_[128:384, 128:384]  # its middle: a quarter of the work
NOISE = 20  # standard deviation, grey levels of 255
DRAWS = 8
SEED = 7
# The two strengths take away about as much: in a flat region both leave a sixth of the noise's variance.
DENOISERS = {
    "gaussian": lambda noisy: gaussian_filter(noisy, 0.7),
    "median": lambda noisy: median_filter(noisy, 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("denoisers"))
    parser.add_argument("--model", default=None, help="a shipped model's name, or a model file")
    options = parser.parse_args()

    clean = luminance(saqm.read_image(str(get_testdata_file(SLICE, download=False))))[REGION]
    rng = np.random.default_rng(SEED)
    for draw in range(DRAWS):
        noisy = clean + rng.normal(0, NOISE, clean.shape)
        for name, denoise in DENOISERS.items():
            save(denoise(noisy), options.out / name / f"draw{draw}.png")

    first, second = DENOISERS
    settings = Settings(model=options.model, mask="none")  # the region has no air to leave out
    sides = [
        [score.to_record() for score in score_many(find_images([options.out / name]), settings)]
        for name in (first, second)
    ]
    compared = compare(sides[0], sides[1], labels=(first, second))
    save_records(compared.to_rows(), options.out / "pairs.csv", PAIR_COLUMNS)
    differences(compared, options.out / "pairs.png")
    print(compared.to_text())
    print(f"This is of {DRAWS} draws of noise on one slice, and says nothing of other patients.")
    print(f"The pairs are in {options.out / 'pairs.csv'}, drawn in {options.out / 'pairs.png'}. The same by command:\n")
    print(f"  saqm compare {options.out / first} {options.out / second} --mask none --picture pairs.png")


def save(grey: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.fromarray(np.clip(np.round(grey), 0, 255).astype(np.uint8)).save(path)


if __name__ == "__main__":
    main()
