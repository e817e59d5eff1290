"""Masks as other tools write them -> index masks: from colours, from other numbers, from lossy files."""

from collections import Counter
from functools import partial
import os
from pathlib import Path
import re
import tempfile

import numpy as np
from PIL import Image

from rflw.data.images import open_mask
from rflw.data.labels import VOID, voc_colours
from rflw.data.readers import ENDINGS, walk
from rflw.errors import InputError, about, reading
from rflw.records import writing

PALETTE = [value for colour in voc_colours(VOID) for value in colour] + [255] * 3


def convert(
    masks: str | Path,
    out: str | Path,
    colours: str | None = None,
    table: dict | None = None,
    first: int = 0,
    nearest: bool = False,
) -> dict[str, dict]:
    """Write index masks of the same names, as palette PNGs, to a new folder, whole or not at all.

    Args:
        masks: a folder of masks, also in folders inside it.
        out: the new folder.
        colours: read masks by their colours, not by their numbers: a file whose line n has the
            red, green and blue of label n - 1, a name "void" stands for 255.
        table: {a number or an (R, G, B) of the files: label}, beside or instead of the others.
        first: the number of label 0 in the files; lower ones become void.
        nearest: take the nearest colour or number of those that are given; allows lossy files.

    Returns:
        dict: {number or colour, as text: {"label", "pixels"}}.

    Raises:
        InputError: that names a file and what of it has no label.
    """
    masks, out, table = Path(masks), Path(out).absolute(), dict(table or {})
    files = _files(masks, out)
    by_colour = colours is not None or any(isinstance(key, tuple) for key in table)
    known = read_colours(Path(colours)) if colours else {}
    known |= {_packed(key): label for key, label in table.items()}
    if nearest and not known:
        raise InputError("--nearest: --colours FILE or --map says what may be near")
    counts, labels, read = Counter(), {}, partial(_values, by_colour=by_colour, lossy=nearest)
    for path in files:
        values, numbers = np.unique(read(path), return_counts=True)
        counts.update(dict(zip(values.tolist(), numbers.tolist())))
        for value in sorted(counts.keys() - labels.keys()):
            labels[value] = _label(value, known, by_colour, first, nearest)
        if lost := [_text(value, by_colour) for value in labels if labels[value] is None]:
            raise InputError(
                f"{path}: no label for {' and '.join(lost[:9])}: --map {lost[0]}=N gives one, {VOID} "
                "is void; of lossy, scaled or smoothed masks --nearest takes the nearest that is given"
            )
    with writing(out):
        _write(files, masks, out, labels, read)
    return {
        _text(value, by_colour): {"label": labels[value], "pixels": counts[value]}
        for value in sorted(counts)
    }


def _files(masks: Path, out: Path) -> list[Path]:
    files = walk(masks)
    odd = next((path for path in files if path.suffix.lower() not in ENDINGS), None)
    if odd or not files:
        raise InputError(f"{odd or masks}: {'no mask' if odd else 'no masks in it'}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) or masks.resolve() in out.parents:
        raise InputError(f"{out}: not a new folder outside of {masks}")
    return files


def _write(files: list[Path], masks: Path, out: Path, labels: dict, read) -> None:
    """All masks, with other labels, into a folder beside `out` that then becomes it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    place = {"dir": out.parent, "prefix": f".{out.name}.", "ignore_cleanup_errors": True}
    with tempfile.TemporaryDirectory(**place) as folder:
        for path in files:
            values, where = np.unique(read(path), return_inverse=True)
            target = Path(folder) / path.relative_to(masks).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                raise InputError(f"{path}: another mask has its name")
            named = np.array([labels[value] for value in values.tolist()], np.uint8)
            image = Image.fromarray(named[where])
            image.putpalette(PALETTE)
            image.save(target)
        os.chmod(folder, 0o755)
        os.rename(folder, out)


def read_colours(path: Path) -> dict[int, int]:
    """{packed colour: label} of a list: three numbers or #RRGGBB a line, in the labels' order."""
    with reading(path):
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    known, label = {}, 0
    for number, line in enumerate(lines, start=1):
        code = re.search(r"#([0-9a-fA-F]{6})\b", line)
        numbers = bytes.fromhex(code[1]) if code else map(int, re.findall(r"\b\d+\b", line))
        with about(f"{path}, line {number}"):
            colour = _packed(tuple(numbers))
        if colour in known:
            raise InputError(f"{path}, line {number}: a colour that is there before: {line}")
        void = re.search(r"\b(void|unlabell?ed|ignore)\b", line, re.IGNORECASE)
        known[colour] = VOID if void else label
        label += not void
    return known


def _packed(key: int | tuple[int, ...]) -> int:
    if isinstance(key, int):
        return key
    if len(key) != 3 or max(key) > 255:
        raise InputError(f"{','.join(map(str, key))}: not a colour such as 128,0,0 or #800000")
    return key[0] << 16 | key[1] << 8 | key[2]


def _text(value: int, colour: bool) -> str:
    return f"{value >> 16},{value >> 8 & 255},{value & 255}" if colour else str(value)


def _values(path: Path, by_colour: bool, lossy: bool) -> np.ndarray:
    """(H, W) numbers of a file, or packed colours."""
    image, step = open_mask(path, lossy)
    if image.mode in ("LA", "PA", "RGBA") and image.getchannel("A").getextrema()[0] < 255:
        raise InputError(
            f"{path}: parts of it are transparent, and what that means is not known; "
            "`mogrify -background black -alpha remove` lays it on a colour"
        )
    if image.mode[0] == "F" or image.mode[0] == "I" and by_colour:
        raise InputError(f"{path}: {image.mode} holds no {'colours' if by_colour else 'labels'}")
    if by_colour:
        rgb = np.asarray(image.convert("RGB")).astype(int)
        return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    if image.mode in ("RGB", "RGBA"):
        rgb = np.asarray(image.convert("RGB")).astype(int)
        if lossy or (rgb == rgb[..., :1]).all():
            return rgb[..., 1]
        raise InputError(f"{path}: it has colours: --colours FILE or --map R,G,B=N reads them")
    numbers = np.asarray(image).astype(int) // step
    return numbers[..., 0] if image.mode in ("LA", "PA") else numbers


def _label(value: int, known: dict, colour: bool, first: int, nearest: bool) -> int | None:
    """The label of a number or packed colour; None where it has none."""
    if nearest and value not in known:
        value = min(known, key=lambda other: _distance(value, other, colour))
    if value in known:
        return known[value]
    if colour:
        return None
    if value == VOID or 0 <= value < first:
        return VOID
    return value - first if 0 <= value - first < VOID else None


def _distance(one: int, other: int, colour: bool) -> int:
    if not colour:
        return abs(one - other)
    return sum(((one >> bits & 255) - (other >> bits & 255)) ** 2 for bits in (0, 8, 16))
