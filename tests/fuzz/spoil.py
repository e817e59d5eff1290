"""Hostile files: strategies that spoil whole ones, byte by byte or entry by entry."""

import copy
import io
import json
import math
import struct

from hypothesis import strategies as st
import numpy as np

NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**63 - 1,
    2**64,
    10**9,
    10**18,
    -(10**9),
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(-300, 300),
    st.floats(),
    st.sampled_from((1e308, -1e308, math.inf, -math.inf, math.nan, 1e9, -1e9, 0.5)),
    st.text(max_size=12),
    st.sampled_from(
        (
            "",
            "..",
            "../../x",
            "/etc/passwd",
            "a/b",
            "\0",
            "nul\0l",
            "\ud800",
            "x" * 5000,
            "-1",
            "1e9",
            "nan",
            "timm:resnet18",
            "refinenet-lw-resnet50",
        )
    ),
)
JUNK = st.recursive(
    ODD,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def damaged(draw, seeds: list[bytes], most: int = 6) -> bytes:
    """A whole file with a few edits: cut, bits turned, numbers of extreme size put in, parts taken out, doubled or swapped."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, most))):
        # half of the edits hit the first kilobyte, where headers are
        place = draw(
            st.integers(
                0,
                max(
                    0,
                    min(len(content), draw(st.sampled_from((64, 1024, len(content), len(content)))))
                    - 1,
                ),
            )
        )
        kind = draw(
            st.sampled_from(("set", "flip", "number", "cut", "insert", "remove", "double", "zero"))
        )
        length = draw(st.integers(1, 64))
        if kind == "set" and content:
            content[place] = draw(st.sampled_from((0, 1, 127, 128, 255, 32, 34, 47, 91, 123)))
        elif kind == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "number":
            value = draw(st.sampled_from(NUMBERS))
            form = draw(st.sampled_from(("<I", ">I", "<Q", ">Q", "<H", ">H")))
            raw = struct.pack(form, value % 2 ** (8 * struct.calcsize(form)))
            content[place : place + len(raw)] = raw
        elif kind == "cut":
            del content[place:]
        elif kind == "insert":
            content[place:place] = draw(st.binary(max_size=32))
        elif kind == "remove":
            del content[place : place + length]
        elif kind == "double":
            content[place:place] = content[place : place + length]
        else:
            content[place : place + length] = bytes(length)
    return bytes(content)


def places(tree, path=()) -> list[tuple]:
    """Where entries of nested dicts and lists are, the whole among them."""
    found = [path]
    if isinstance(tree, dict):
        found += [p for key in tree for p in places(tree[key], (*path, key))]
    elif isinstance(tree, list):
        found += [p for i in range(len(tree)) for p in places(tree[i], (*path, i))]
    return found


@st.composite
def changed(draw, trees: list, junk=JUNK):
    """A tree of dicts and lists with one to three entries replaced, taken out, doubled or renamed."""
    tree = copy.deepcopy(draw(st.sampled_from(trees)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(tree)))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(junk)
            continue
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        kind = draw(
            st.sampled_from(("replace", "replace", "replace", "remove", "double", "rename"))
        )
        if kind == "replace":
            parent[path[-1]] = draw(junk)
        elif kind == "remove":
            del parent[path[-1]]
        elif kind == "double" and isinstance(parent, list):
            parent.insert(0, copy.deepcopy(parent[path[-1]]))
        elif kind == "rename" and isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = parent.pop(path[-1])
    return tree


def as_json(tree) -> bytes:
    return json.dumps(tree, default=str).encode()


def json_files(trees: list):
    """JSON with entries changed, with bytes changed, and nested deeply."""
    deep = st.integers(100, 200_000).map(lambda n: b"[" * n) | st.integers(100, 200_000).map(
        lambda n: b'{"a":' * n + b"1" + b"}" * n
    )
    numbers = st.integers(1, 6000).map(lambda n: b"1" * n)
    return st.one_of(
        *[changed(trees).map(as_json)] * 6,
        damaged([as_json(tree) for tree in trees]),
        deep,
        numbers,
        st.binary(max_size=64),
    )


def lines_files(seeds: list[bytes]):
    """Lists, a name a line."""
    words = st.text(max_size=20) | st.sampled_from(
        ("../../x", "/etc/passwd", ".", "..", "a b", "a\tb", "\0", "\ufeff", "\u2028", "a" * 5000)
    )
    return st.one_of(
        st.lists(words, max_size=8).map(
            lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")
        ),
        damaged(seeds),
        st.binary(max_size=200),
    )


def filled(kind: str, shape: list[int], value: float) -> np.ndarray:
    if kind[0] in "fc":
        return np.full(shape, value, kind)
    return np.full(shape, np.array(0 if math.isnan(value) else value).astype(np.int64).astype(kind))


KINDS = ("uint8", "int8", "uint16", "int16", "int32", "uint64", "float32", "float64", "complex128")
ARRAYS = st.one_of(
    st.builds(
        filled,
        st.sampled_from(KINDS),
        st.lists(st.integers(0, 5), min_size=1, max_size=4),
        st.sampled_from((0, 1, -1, 7, 255, 300, 1e9, math.nan)),
    ),
    st.text("abc µ", max_size=6),
    st.integers(-300, 300),
    st.floats(),
    st.just({}),
    st.just(np.zeros((0, 0))),
    st.just(np.array([["a", 1], [None, 2]], object)),
)


def mat_files(trees: list):
    """MATLAB 5 files with variables and fields changed, or bytes."""
    from scipy.io import savemat

    def written(tree) -> bytes:
        file = io.BytesIO()
        try:
            savemat(
                file, tree if isinstance(tree, dict) and tree else {"a": 1}, do_compression=False
            )
        except Exception:  # what cannot be written is no file
            return b""
        return file.getvalue()

    whole = [written(tree) for tree in trees]
    return st.one_of(*[changed(trees, ARRAYS).map(written)] * 3, damaged(whole), damaged(whole, 2))
