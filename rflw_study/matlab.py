"""MATLAB 5 files (.mat), checked before SciPy reads them: a damaged or hostile one can crash SciPy's reader, or have it take any memory.

Format: "MAT-File Format", MathWorks. A file is a header of 128 bytes and elements; an element is a tag (type, bytes) and its content.
An element of type 14 is an array: elements for its flags, dimensions and name, then what it holds. Of type 15: one of those, compressed.
"""

import io
from math import prod
from pathlib import Path
import struct
import zlib

NUMBERS = {
    1: 1,
    2: 1,
    3: 2,
    4: 2,
    5: 4,
    6: 4,
    7: 4,
    9: 8,
    12: 8,
    13: 8,
}  # type of numbers -> bytes of one
TEXT = {1, 2, 3, 4, 16, 17, 18}  # types that characters come in
ARRAY, COMPRESSED = 14, 15
CELL, STRUCT, OBJECT, CHAR, SPARSE = 1, 2, 3, 4, 5  # classes of arrays; 6 to 15 are numbers
LARGEST = 1 << 28  # bytes of a variable; an annotation has some millions
DEEPEST = 16  # arrays within arrays


def read(path: Path):
    """All variables of a file, as `scipy.io.loadmat(simplify_cells=True)` gives them. Raises ValueError for what is no whole file
    and OSError where there is none; SciPy raises errors of many kinds."""
    from scipy.io import loadmat  # only here: it takes time to load

    return loadmat(io.BytesIO(checked(path.read_bytes())), simplify_cells=True)


def checked(content: bytes) -> bytes:
    """The same file with nothing compressed. Raises ValueError unless every element is whole and of a known type, and no array has
    more entries than the file holds."""
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or content[124:126] != struct.pack(f"{order}H", 0x0100):
        raise ValueError("its header is of another format")
    parts, place = [content[:128]], 128
    while place < len(content):
        kind, start, end, place = _element(content, place, len(content), order)
        if kind == COMPRESSED:
            stream = zlib.decompressobj()
            try:
                element = stream.decompress(content[start:end], LARGEST)
            except zlib.error as e:
                raise ValueError(f"compressed data are damaged ({e})") from e
            if stream.unconsumed_tail or not stream.eof:
                raise ValueError("compressed data are cut off or too many")
            kind, start, end, after = _element(element, 0, len(element), order)
            if after < len(element):
                raise ValueError("more than one variable in a compressed element")
        else:
            element = content[start - 8 : end]
            start, end = 8, len(element)
        if kind != ARRAY:
            raise ValueError(f"a variable of type {kind}")
        _array(element, start, end, order, 0)
        parts.append(element)
    return b"".join(parts)


def _element(data: bytes, place: int, end: int, order: str) -> tuple[int, int, int, int]:
    """(type, first byte, end, place of the next one) of the element at `place`."""
    if place + 8 > end:
        raise ValueError("cut off")
    kind, size = struct.unpack_from(f"{order}II", data, place)
    if kind >> 16:  # up to four bytes, in the tag itself
        kind, size, start, after = kind & 0xFFFF, kind >> 16, place + 4, place + 8
        if size > 4:
            raise ValueError(f"{size} bytes in a tag")
    else:
        start = place + 8
        after = start + size + (-size % 8 if kind != COMPRESSED else 0)
    if start + size > end:
        raise ValueError("cut off")
    return kind, start, start + size, min(after, end)


def _array(data: bytes, place: int, end: int, order: str, depth: int) -> None:
    """Check the elements of an array."""
    if depth > DEEPEST:
        raise ValueError("arrays within arrays, too deep")
    if place == end:  # MATLAB's form of an empty entry
        return

    def part(types) -> tuple[int, int, int]:
        nonlocal place
        kind, start, stop, place = _element(data, place, end, order)
        if kind not in types:
            raise ValueError(f"an element of type {kind} where none may be")
        return kind, start, stop

    _, start, stop = part({6})
    if stop - start != 8:
        raise ValueError("flags of another size")
    flags, _ = struct.unpack_from(f"{order}II", data, start)
    _, start, stop = part({5})
    dims = struct.unpack_from(f"{order}{(stop - start) // 4}i", data, start)
    if len(dims) < 2 or len(dims) > 32 or min(dims) < 0:
        raise ValueError(f"dimensions {dims}")
    part({1})
    kind, entries, complex_ = flags & 0xFF, prod(dims), bool(flags & 0x800)
    if kind in (CELL, STRUCT, OBJECT):
        fields = 1
        if kind == OBJECT:
            part({1})
        if kind in (STRUCT, OBJECT):
            _, start, stop = part({5})
            width = struct.unpack_from(f"{order}i", data, start)[0] if stop - start == 4 else 0
            _, start, stop = part({1})
            if width < 1 or (stop - start) % width:
                raise ValueError("names of fields of no length")
            fields = (stop - start) // width
        if entries * max(fields, 1) * 8 > end - place + (entries == 1) * 8:
            raise ValueError(f"{entries} entries in {end - place} bytes")
        for _ in range(entries * fields):
            _, start, stop = part({ARRAY})
            _array(data, start, stop, order, depth + 1)
    elif kind == SPARSE:
        for types in ({5}, {5}, NUMBERS, *([NUMBERS] if complex_ else [])):
            part(types)
    elif kind == CHAR:
        _, start, stop = part(TEXT)
        if entries > stop - start:
            raise ValueError(f"{entries} characters in {stop - start} bytes")
    elif 6 <= kind <= 15:
        for _ in range(1 + complex_):
            found, start, stop = part(NUMBERS)
            if entries * NUMBERS[found] != stop - start:
                raise ValueError(f"{entries} numbers in {stop - start} bytes")
    else:
        raise ValueError(f"an array of class {kind}")
