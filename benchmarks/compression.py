"""Sizes of archives of held-out examples beside PNG, xz and JPEG: what docs/how-to/compression.md states.

    python benchmarks/compression.py RUN [--count 512] [--lossy 64] [--first 0] [--draws 2] [--shown 10]
                                       [--rates 15 30 60 100] [--most BITS]
                                       [--picture docs/assets/compression.png]

Prints a table of lossless sizes, with the variational bound of the same model and variances, and one of lossy rates,
each with the root mean squared error in values of the data. A rate is that of the longest prefix within a limit of
`--rates`. JPEG compresses one sheet of all examples; its bits are those of the file, and those of the coefficients
alone, with the usual tables. The picture shows examples at five rates; a single one is a photograph, which stands above
the same at six qualities of JPEG. `--count 0` leaves out the first table. Times are CPU seconds.
"""

from __future__ import annotations

import argparse
import io
import lzma
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffkit_compression.archive import unpack
from diffkit_compression.bits_back import BitsBack
from diffkit_compression.compressing import compress, decompress
from diffkit_compression.files import grey_values, read_part
from diffkit_compression.model import Codebook, open_codebook
from diffkit_compression.relative import Relative
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from diffkit import Run, open_run
from diffkit.likelihood import Discretised, variational_bound

QUALITIES = (5, 10, 20, 40, 60, 80, 95)


def sheet(values: Tensor, columns: int = 16) -> NDArray[np.uint8]:
    """Return examples (N, C, H, W) side by side, the last row filled with zeros: (height, width), or (..., 3)."""
    images = values.permute(0, 2, 3, 1).numpy().astype(np.uint8)
    _, height, width, channels = images.shape
    rows = -(-len(images) // columns)
    filled = np.zeros((rows * columns, height, width, channels), np.uint8)
    filled[: len(images)] = images
    found = filled.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return found.reshape(rows * height, columns * width, channels).squeeze(-1 if channels == 1 else ())


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def coefficients(jpeg: bytes) -> int:
    """Return the bytes of a JPEG file after its start of scan: its coefficients, without headers and tables."""
    start = jpeg.index(b"\xff\xda") + 2
    return len(jpeg) - start - int.from_bytes(jpeg[start : start + 2], "big") - 2


def lossless(run: Run, count: int, draws: int) -> Iterator[tuple[str, str]]:
    """Yield rows of the table of lossless sizes."""
    entries, values = read_part(run.assembly.data, "held-out", count)
    start = time.process_time()
    content = compress(run, entries, values)
    made = time.process_time()
    _, back = decompress(run, content)
    read = time.process_time()
    header, _, words = unpack(content)
    yield "values equal after decoding", f"{int((back == values).flatten(1).all(1).sum())} of {count}"
    yield "archive", f"{len(content):,} bytes"
    yield "header and names of it", f"{len(content) - 4 * len(words):,} bytes"
    packed = lzma.compress(values.byte().numpy().tobytes(), preset=9 | lzma.PRESET_EXTREME)
    yield "`xz -9e` of the raw array", f"{len(packed):,} bytes"
    whole = Image.fromarray(sheet(values))
    grey = values.shape[1] == 1
    png = len(saved(whole.convert("P") if grey else whole, "PNG", optimize=True))
    yield "one optimised PNG sheet" + grey * ", with a palette", f"{png:,} bytes"
    book = open_codebook(run, header.layers)
    bound = bits_per_value(book, header.errors, values, draws)
    ground = BitsBack(book.denoise, book.chain(list(np.cumsum(header.errors))), book.bins, book.spec.shape).ground
    net, payload = (32 * (len(words) + grown) / values.numel() for grown in (header.kept - ground, 0))
    yield f"variational bound, mean of {draws} noise draws", f"{bound:.3f} bits per value"
    yield "growth of the stack (net)", f"{net:.3f} bits per value, {100 * (net / bound - 1):+.2f} %"
    yield "stream, with its initial bits", f"{payload:.3f} bits per value, {100 * (payload / bound - 1):+.2f} %"
    yield "compress, decompress", f"{made - start:.0f} s, {read - made:.0f} s"


def bits_per_value(book: Codebook, errors: tuple[int, ...], values: Tensor, draws: int) -> float:
    """Compute the bound with the variances of an archive."""
    chain, x0, found = book.chain(list(np.cumsum(errors))), 2.0 * values.float() / (book.bins - 1) - 1.0, []
    source = torch.Generator().manual_seed(0)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=source)

    for _ in range(draws):
        bound = variational_bound(book.denoise, chain, x0, noise, Discretised(book.bins))
        found.append(float(bound.bits_per_dim.mean()))
    return sum(found) / draws


def lossy(
    run: Run, rows: slice, shown: int, rates: list[float], most: float, picture: Path | None
) -> Iterator[tuple[str, str, str]]:
    """Yield rows of the table of lossy rates: coder, bits per example, error; write the picture."""
    (entry,), values = read_part(run.assembly.data, "held-out", rows.stop)
    values = values[rows]
    count = len(values)
    start = time.process_time()
    entry = entry.model_copy(update={"shape": tuple(values.shape)})
    content = compress(run, [entry], values, bits=most, lossless=False)
    made = time.process_time() - start
    header, _, words = unpack(content)
    book = open_codebook(run, header.layers)
    coder = Relative(book.denoise, book.chain(list(np.cumsum(header.errors))), book.spec.shape)
    able = coder.rates(words, count, header.moves)
    yield "rates of all prefixes", " ".join(f"{rate:.0f}" for rate in able), ""
    found, jpegs = [], []
    for bits in (*rates, math.inf):
        _, back = decompress(run, content, bits=None if math.isinf(bits) else bits)
        found.append(back[:shown])
        used = max((rate for rate in able if rate <= bits), default=0.0)
        yield "diffkit", f"{used:.0f}", f"{error(back, values):.2f}"
    yield "header and names", f"{8 * len(content) - header.bits} in all", ""
    grey = grey_values(run.assembly.data.spec)
    side_by_side = sheet(values, min(16, count))
    pixels = Image.fromarray(grey[side_by_side].astype(np.uint8))
    for quality in QUALITIES:
        data = saved(pixels, "JPEG", quality=quality, optimize=True)
        jpegs.append(np.asarray(Image.open(io.BytesIO(data))))
        back = torch.from_numpy(np.abs(jpegs[-1][..., None].astype(int) - grey).argmin(-1))
        difference = error(back, torch.from_numpy(side_by_side.astype(int)))
        sizes = len(data), coefficients(saved(pixels, "JPEG", quality=quality))
        taken = "{:.0f}, coefficients {:.0f}".format(*(8 * size / count for size in sizes))
        yield f"JPEG, quality {quality}", taken, f"{difference:.2f}"
    yield "optimised PNG", f"{8 * len(saved(pixels, 'PNG', optimize=True)) / count:.0f}", "0"
    if picture is not None:
        every = torch.from_numpy(grey[torch.cat([*found, values[:shown]])])
        if count == 1:
            below = torch.from_numpy(np.stack(jpegs[:6])).permute(0, 3, 1, 2)
            every = torch.cat([every, below.long()])
        image = Image.fromarray(sheet(nn.functional.pad(every, (1, 1, 1, 1), value=90), shown if count > 1 else 6))
        image.resize((image.width * 6, image.height * 6), Image.Resampling.NEAREST).save(picture, optimize=True)
    yield "time to compress, CPU s", f"{made:.0f}", ""


def error(found: Tensor, values: Tensor) -> float:
    """Return the root mean squared difference, in values of the data."""
    return float((found - values).double().square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run on pictures")
    parser.add_argument("--count", type=int, default=512, help="number of held-out examples")
    parser.add_argument("--lossy", type=int, default=64, help="number of them in the lossy archive")
    parser.add_argument("--first", type=int, default=0, help="the first of these")
    parser.add_argument("--rates", type=float, nargs="*", default=[15, 30, 60, 100], help="bits of the picture")
    parser.add_argument("--most", type=float, default=math.inf, help="bits of the archive, the last rate")
    parser.add_argument("--draws", type=int, default=2, help="noise draws of the bound")
    parser.add_argument("--shown", type=int, default=10, help="examples of the picture")
    parser.add_argument("--picture", type=Path, help="where to write the picture")
    told = parser.parse_args()
    run = open_run(told.run, device="cpu")
    rows = slice(told.first, told.first + told.lossy)
    for row in lossy(run, rows, told.shown, told.rates, told.most, told.picture):
        print("| " + " | ".join(row) + " |", flush=True)
    for pair in lossless(run, told.count, told.draws) if told.count else ():
        print("| " + " | ".join(pair) + " |", flush=True)


if __name__ == "__main__":
    main()
