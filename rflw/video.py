"""Photos, folders of photos and videos as streams of frames, read ahead in a thread while the network computes."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
import queue
import threading

import numpy as np

from rflw.data.images import read_image
from rflw.errors import InputError, no_pipe

VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts")
PHOTOS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def photos(folder: Path) -> list[Path]:
    """The photos of a folder, by name. Raises InputError where it has none."""
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PHOTOS and not path.name.startswith(".")
    )
    if not found:
        raise InputError(f"{folder}: no photos in it (of {', '.join(PHOTOS)})")
    return found


def read_photos(paths: Iterable[Path], skipped: list[str]) -> Iterator[tuple[Path, np.ndarray]]:
    """(path, (H, W, 3) uint8) of each photo; those that cannot be read are skipped, and `skipped` says why."""
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


def read_video(path: Path, skipped: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, (H, W, 3) uint8) of each frame of a video; broken ones are skipped, and `skipped` says which.

    Raises InputError for what is no video, or has no whole frame.
    """
    av = _av()
    number = -1
    with _opened(path) as file:
        packets = file.demux(file.streams.video[0])
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                for frame in packet.decode():
                    number += 1
                    if frame.is_corrupt:  # the decoder has guessed what was missing
                        skipped.append(f"{path}: frame {number} is broken")
                    else:
                        yield number, frame.to_ndarray(format="rgb24")
            except av.error.FFmpegError as e:
                number += 1
                skipped.append(f"{path}: frame {number} is broken ({e.strerror})")
                if packet is None or isinstance(e, av.error.EOFError):
                    break
    if number + 1 == sum(line.startswith(f"{path}: frame") for line in skipped):
        raise InputError(f"{path}: no frame of this video can be read")


def frame_rate(path: Path) -> float:
    """Frames a second that a video is meant to be shown at. Raises InputError for what is no video."""
    with _opened(path) as file:
        return float(file.streams.video[0].average_rate or 25)


def comment(path: Path) -> str | None:
    """What a video's file says of itself: of ours, "rflw". Raises InputError for what is no video."""
    with _opened(path) as file:
        return next(
            (value for key, value in file.metadata.items() if key.lower() == "comment"), None
        )


def _opened(path: Path):
    av = _av()
    no_pipe(path)
    try:
        file = av.open(str(path))
    except (av.error.FFmpegError, OSError) as e:
        raise InputError(f"{path}: not a video that can be read ({e.strerror or e})") from e
    if not file.streams.video:
        file.close()
        raise InputError(f"{path}: holds no pictures")
    return file


class VideoWriter:
    """Frames into a video file: (H, W, 3) uint8 as H.264, or, with `lossless`, (H, W) uint8 as FFV1, whose values stay as they are."""

    def __init__(self, path: str, rate: float, size: tuple[int, int], lossless: bool = False):
        self.av, self.lossless = _av(), lossless
        self.file = self.av.open(path, "w", format="matroska" if lossless else "mp4")
        self.file.metadata["comment"] = "rflw"
        self.stream = self.file.add_stream(
            "ffv1" if lossless else "libx264", rate=Fraction(rate).limit_denominator(1001)
        )
        self.stream.height, self.stream.width = (
            size if lossless else (size[0] // 2 * 2, size[1] // 2 * 2)
        )  # H.264 has even sizes
        self.stream.pix_fmt = "gray" if lossless else "yuv420p"
        if lossless:
            self.stream.gop_size = 1  # a broken frame spoils no other

    def write(self, picture: np.ndarray) -> None:
        picture = np.ascontiguousarray(picture[: self.stream.height, : self.stream.width])
        frame = self.av.VideoFrame.from_ndarray(
            picture, format="gray" if self.lossless else "rgb24"
        )
        self.file.mux(self.stream.encode(frame))

    def close(self) -> None:
        self.file.mux(self.stream.encode(None))
        self.file.close()


def read_ahead(items: Iterable, depth: int = 4) -> Iterator:
    """The same items, of which a thread gets the next `depth` ready. What it raises is raised here."""
    ready, end, given_up = queue.Queue(depth), object(), threading.Event()

    def put(item) -> bool:
        while not given_up.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((end, None))
        except BaseException as e:  # whatever it is belongs to who asked for the items
            put((end, e))

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        given_up.set()


def in_batches(
    items: Iterable[tuple[object, np.ndarray]], size: int
) -> Iterator[tuple[list, np.ndarray]]:
    """(key, (H, W, 3)) pairs -> (keys, (B, H, W, 3)) of up to `size` consecutive images of one shape."""
    keys, images = [], []
    for key, image in items:
        if images and (len(images) == size or image.shape != images[0].shape):
            yield keys, np.stack(images)
            keys, images = [], []
        keys.append(key)
        images.append(image)
    if images:
        yield keys, np.stack(images)
