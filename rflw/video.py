"""Photos, folders of photos and videos as streams of frames, read ahead in a thread while the
network computes.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
import queue
import threading

import numpy as np

from rflw.data.images import read_image
from rflw.errors import InputError, reading

VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts")
PHOTOS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def photos(folder: Path) -> list[Path]:
    """The photos of a folder, by name. Raises InputError if it has none."""
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PHOTOS and not path.name.startswith(".")
    )
    if not files:
        raise InputError(f"{folder}: no photos in it (of {', '.join(PHOTOS)})")
    return files


def read_photos(paths: Iterable[Path], skipped: list[str]) -> Iterator[tuple[Path, np.ndarray]]:
    """(path, (H, W, 3) uint8) of each photo; those that cannot be read are skipped, and `skipped`
    says why.
    """
    for path in paths:
        try:
            yield path, read_image(path)
        except InputError as e:
            skipped.append(str(e))


def _av():
    try:
        import av
    except ImportError as e:
        raise InputError("videos need PyAV: pip install 'rflw[video]'") from e
    av.logging.set_level(av.logging.PANIC)
    return av


@contextmanager
def opened(path: Path):
    """A video file and its stream of pictures. Raises InputError for anything else."""
    av = _av()
    with reading(path), av.open(str(path.absolute())) as file:
        if not file.streams.video:
            raise InputError(f"{path}: holds no pictures")
        yield file, file.streams.video[0]


def frame_rate(path: Path) -> float:
    """Frames a second that a video is meant to be shown at. Raises InputError for anything else."""
    with opened(path) as (_, stream):
        return float(stream.average_rate or 25)


def read_video(path: Path, skipped: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """The frames of a video.

    Args:
        path: the file.
        skipped: gets a line for each broken frame, which is left out.

    Yields:
        The frame's number, and the frame (H, W, 3) uint8.

    Raises:
        InputError: for anything but a video, or one without a whole frame.
    """
    broken, number, whole = _av().error.FFmpegError, 0, 0
    with opened(path) as (file, stream):
        try:
            for packet in file.demux(stream):
                for frame in decoded(packet, broken):
                    if frame is None or frame.is_corrupt:  # the decoder guessed what was missing
                        skipped.append(f"{path}: frame {number} is broken")
                    else:
                        whole += 1
                        yield number, frame.to_ndarray(format="rgb24")
                    number += 1
        except broken as e:
            skipped.append(f"{path}: ends after {number} frames ({e.strerror})")
    if not whole:
        raise InputError(f"{path}: no frame of this video can be read")


def decoded(packet, broken: type[Exception]) -> list:
    """The frames of a packet; [None] for one that cannot be decoded."""
    try:
        return packet.decode()
    except broken:
        return [None]


class VideoWriter:
    """Frames into a video file, (H, W, 3) uint8 as H.264, whose sizes are even: an odd last row or
    column is left out.

    lossless: (H, W) uint8 as FFV1, whose values stay as they are.
    """

    def __init__(self, path: str, rate: float, size: tuple[int, int], lossless: bool = False):
        self.av = _av()
        self.file = self.av.open(path, "w", format="matroska" if lossless else "mp4")
        self.format, codec = ("gray", "ffv1") if lossless else ("rgb24", "libx264")
        self.stream = self.file.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        even = 1 if lossless else 2
        self.stream.height, self.stream.width = (n // even * even for n in size)
        self.stream.pix_fmt = "gray" if lossless else "yuv420p"
        if lossless:
            self.stream.gop_size = 1  # a broken frame spoils no other

    def write(self, picture: np.ndarray) -> None:
        picture = np.ascontiguousarray(picture[: self.stream.height, : self.stream.width])
        frame = self.av.VideoFrame.from_ndarray(picture, format=self.format)
        self.file.mux(self.stream.encode(frame))

    def close(self) -> None:
        self.file.mux(self.stream.encode(None))
        self.file.close()


def read_ahead(items: Iterable, depth: int = 4) -> Iterator:
    """The same items, read by a thread that is up to `depth` ahead.

    What it raises is raised here.
    """
    ready, given_up = queue.Queue(), threading.Event()
    free = threading.Semaphore(depth)

    def read() -> None:
        try:
            for item in items:
                free.acquire()
                if given_up.is_set():
                    return
                ready.put((item, None))
            ready.put((None, StopIteration()))
        except BaseException as e:  # belongs to whoever asked for the items
            ready.put((None, e))

    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            free.release()
            yield item
    finally:
        given_up.set()
        free.release()


def in_batches(
    items: Iterable[tuple[object, np.ndarray]], size: int
) -> Iterator[tuple[list, np.ndarray]]:
    """(key, (H, W, 3)) pairs -> (keys, (B, H, W, 3)) of up to `size` consecutive images of one
    shape.
    """
    keys, images = [], []
    for key, image in items:
        if images and (len(images) == size or image.shape != images[0].shape):
            yield keys, np.stack(images)
            keys, images = [], []
        keys.append(key)
        images.append(image)
    if images:
        yield keys, np.stack(images)
