"""Image and mask files -> arrays.

An image is (H, W, 3) uint8 RGB, a mask (H, W) uint8 with classes 0..K-1 and 255 as void.
"""

from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from rflw.data.labels import VOID
from rflw.errors import InputError, reading

# Other formats are for no photos; some start a program (EPS: Ghostscript).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


def read_image(source: str | Path | Image.Image) -> np.ndarray:
    """Read an image as a viewer shows it.

    EXIF rotation and colour profile are applied, transparency is laid on white, 16-bit grey scaled
    to 8 bits, and grey, CMYK and palette are converted. Of several pictures the first is
    read.

    Args:
        source: a file, or a PIL image.

    Returns:
        (H, W, 3) uint8.

    Raises:
        InputError: for another file, one that is damaged, or floating point numbers.
    """
    where = "image" if isinstance(source, Image.Image) else str(source)
    image = _decoded(source, where)
    with reading(where):  # Pillow cannot convert every mode
        profile = image.info.get("icc_profile")
        if image.mode.startswith("I"):  # I;16 and its kin: 16 bits of grey
            grey = np.asarray(image).astype(np.int64)
            if grey.min() < 0 or grey.max() > 65535:
                raise InputError(f"{where}: grey values outside 0..65535")
            image = Image.fromarray((grey // 257).astype(np.uint8))
        elif image.mode == "F":
            raise InputError(
                f"{where}: floating point pixels have no known range; convert it to 8 or 16 bits"
            )
        return np.array(_in_srgb(_on_white(image), profile))


def _on_white(image: Image.Image) -> Image.Image:
    """L, CMYK or RGB, without transparency."""
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        layer = image.convert("LA" if mode == "L" else "RGBA").convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image if image.mode == "CMYK" else image.convert(mode)


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB as a viewer shows it, by the file's colour profile; one that does not fit is ignored."""
    if profile:
        srgb = ImageCms.createProfile("sRGB")
        with suppress(ImageCms.PyCMSError, TypeError):
            return ImageCms.profileToProfile(image, BytesIO(profile), srgb, outputMode="RGB")
    return image.convert("RGB")


def read_mask(
    path: str | Path, num_classes: int, void: int = VOID, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Read a mask of class indices, a grey or palette image.

    Args:
        path: the file.
        num_classes: labels must be below it.
        void: the file's label for void, beside 255.
        size: (H, W) that the mask must have.

    Returns:
        (H, W) uint8; void is 255.

    Raises:
        InputError: for another size, a kind of file that holds no indices, or a label that is
            neither a class nor void.
    """
    image, step = open_mask(path)
    if image.mode not in ("L", "P", "1"):
        raise InputError(
            f"{path}: a mask of class indices is a grey or palette image, this is {image.mode}; "
            "`rflw data convert` makes index masks of it"
        )
    mask = np.array(image, dtype=np.uint8) // np.uint8(step)
    if size is not None and mask.shape != size:
        raise InputError(
            f"{path}: mask of {mask.shape[1]}x{mask.shape[0]}, its image is {size[1]}x{size[0]}"
        )
    if void != VOID:
        mask[mask == void] = VOID
    return check_labels(mask, num_classes, path, void)


EXACT = ("BMP", "GIF", "PNG", "TIFF")  # formats that keep numbers; PPM scales them


def open_mask(path: str | Path, lossy: bool = False) -> tuple[Image.Image, int]:
    """A mask file, and the factor by which Pillow multiplied its numbers (grey of 2 and 4 bits).

    Raises InputError for files whose numbers are not kept: JPEG and its like (unless `lossy`),
    16 bits of colour, TIFF where 0 is white; and for several pictures in one file.
    """
    with reading(path):
        image = open_picture(path)
        number = getattr(image, "n_frames", 1)
        code = image.tile[0].args if image.tile else ""
        code = code if isinstance(code, str) else str(code[0])
        packed = str(image.info.get("compression"))
    name = packed if packed.endswith(("jpeg", "webp")) else image.format
    if name not in EXACT and not lossy:
        raise InputError(
            f"{path}: {name} changes the numbers of a mask, whatever its name: write masks as PNG; "
            "where that is too late, `rflw data convert --nearest` takes the nearest class"
        )
    if number > 1:
        raise InputError(f"{path}: holds {number} pictures; write the one that is meant alone")
    if "16" in code and image.mode[0] != "I" or image.format == "TIFF" and "I" in code[2:]:
        raise InputError(
            f"{path}: numbers of a mask in the form {code} are not kept; write an 8-bit PNG"
        )
    return _decoded(image, str(path)), {"L;2": 85, "L;4": 17}.get(code, 1)


EXIF = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # what PNGs hold it, or XMP, in


@dataclass(frozen=True)
class Header:
    """What an image file says before its pixels: (H, W) as stored and as shown, the number by which
    EXIF turns or mirrors it (1: not at all), and its palette."""

    stored: tuple[int, int]
    shown: tuple[int, int]
    turn: int
    palette: bytes | None


def read_header(path: str | Path) -> Header:
    """The header of an image file. Raises InputError for any other file."""
    with reading(path), open_picture(path) as image:
        # in a PNG it may stand behind the pixels, which are decoded only where it seems to be there
        if image.format == "PNG" and any(word in Path(path).read_bytes() for word in EXIF):
            image.load()
        turn = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        palette = image.palette.palette if image.mode == "P" and image.palette else None
        sizes = [image.size[::-1], image.size if turn in (5, 6, 7, 8) else image.size[::-1]]
    turn = turn if turn in range(2, 9) else 1  # cameras also write 0
    stored, shown = sizes if image.format != "TIFF" else sizes[::-1]  # Pillow turns a TIFF's size
    return Header(stored, shown, turn, palette)


def check_labels(
    mask: np.ndarray, num_classes: int, path: str | Path, void: int = VOID
) -> np.ndarray:
    """The mask. Raises InputError for a label that is neither below `num_classes` nor 255."""
    wrong = (mask >= num_classes) & (mask != VOID)
    if wrong.any():
        y, x = np.argwhere(wrong)[0]
        raise InputError(
            f"{path}: label {mask[y, x]} at row {y}, column {x}: labels are 0..{num_classes - 1}, "
            f"{'' if void == VOID else f'{void} or '}{VOID} for void; `rflw data convert` renumbers"
        )
    return mask


def photo_endings() -> set[str]:
    """Endings of the names of photos: ".png", ..."""
    Image.init()  # else Pillow does not know the rarer formats yet
    return {end for end, name in Image.registered_extensions().items() if name in FORMATS}


def open_picture(path: str | Path) -> Image.Image:
    """Pillow's `Image.open`, for photos only. Raises InputError for other or too large files."""
    Image.init()
    try:
        return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError as e:
        raise InputError(
            f"{path}: cannot be read ({str(e).split(',')[0]}; `rflw predict --max-pixels N` takes "
            "more, or in Python a larger PIL.Image.MAX_IMAGE_PIXELS)"
        ) from e
    except UnidentifiedImageError as e:
        raise InputError(f"{path}: not an image that can be read") from e


def pages(path: str | Path) -> int:
    """How many pictures a file holds that are shown one by one: pages, or an animation."""
    with reading(path), open_picture(path) as image:
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def _decoded(source, where: str) -> Image.Image:
    with reading(where), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # beyond twice the limit Pillow raises an error
        image = source if isinstance(source, Image.Image) else open_picture(source)
        return ImageOps.exif_transpose(image)  # reads all of it, and copies
