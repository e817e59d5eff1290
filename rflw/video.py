"""Photos, folders of photos and videos as streams of frames, read ahead in a thread while the
network computes.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from rflw.data.images import pages, photo_endings, read_image
from rflw.errors import InputError, reading

VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts")
TICKS = 90_000  # a second, of the clock of videos that are written


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def files_of(folder: Path, skipped: dict[Path, str]) -> list[Path]:
    """The photos and videos of a folder, by name; `skipped` gets the reason for other entries.

    Raises InputError if there are none.
    """
    endings, found, hint = {*VIDEOS, *photo_endings()}, [], ""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            skipped[path] = f"{path}: a folder inside a folder; name it, too"
            hint = f"; name the folders in it, as {path}"
        elif path.name.startswith(".") or path.suffix.lower() not in endings:
            skipped[path] = f"{path}: neither a photo nor a video by its name"
        else:
            found.append(path)
    if not found:
        raise InputError(f"{folder}: no photos or videos in it{hint}")
    return found


def read_photos(
    paths: Iterable[Path], skipped: dict[Path, str], notes: list[str]
) -> Iterator[tuple[Path, np.ndarray]]:
    """(path, (H, W, 3) uint8) of each photo.

    `skipped` gets the reason for each that cannot be read, `notes` a line on each read in part.
    """
    for path in paths:
        try:
            yield path, read_image(path)
            if (number := pages(path)) > 1:
                notes.append(f"{path}: the first of its {number} pictures")
        except InputError as e:
            skipped[path] = str(e)


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
        stream = file.streams.best("video")  # a cover may come before it
        if stream is None:
            raise InputError(f"{path}: holds no pictures")
        yield file, stream


def frame_rate(path: Path) -> float:
    """Frames a second of a video, on average. Raises InputError for anything else."""
    with opened(path) as (_, stream):
        return float(stream.average_rate or 25)


def read_video(path: Path, notes: list[str]) -> Iterator[tuple[Fraction, np.ndarray]]:
    """The frames of a video as a player shows them: upright, with square pixels, of one size.

    Where a frame is broken, the whole one before is shown, or the first.

    Args:
        path: the file.
        notes: gets a line about broken frames.

    Yields:
        When a frame is shown, in seconds, and the frame (H, W, 3) uint8.

    Raises:
        InputError: for anything but a video, or one without a whole frame.
    """
    lost, waiting, end, picture, size = 0, [], "", None, None
    with opened(path) as (file, stream):
        try:
            for time, frame in timed(file, stream):
                if not isinstance(frame, _av().VideoFrame) or frame.is_corrupt:
                    lost += 1
                    waiting.append(time)
                    continue
                wide = frame.width * Fraction(stream.sample_aspect_ratio or 1)
                size = size or (max(1, round(wide)), frame.height)
                latest = upright(frame, *size)
                before = latest if picture is None else picture
                yield from ((t, before) for t in sorted(waiting) if t < time)
                waiting = [t for t in waiting if t > time]
                picture = latest
                yield time, picture
        except _av().error.FFmpegError as e:
            end = f"{path}: ends early ({e.strerror})"
    if picture is None:
        raise InputError(f"{path}: no frame of this video can be read")
    yield from ((t, picture) for t in sorted(waiting))
    if lost:
        notes.append(f"{path}: {lost} broken frames, for which the picture before stands")
    notes += [end] if end else []


def timed(file, stream) -> Iterator[tuple[Fraction, object]]:
    """(seconds, frame) as a video shows them; a packet instead of a frame that cannot be decoded."""
    step, time, origin = 1 / Fraction(stream.average_rate or 25), None, None
    if file.format.name != "avi":  # which has no times of its own but an order
        origin = Fraction(file.start_time or 0, 10**6)
    for packet in file.demux(stream):
        for frame in decoded(packet):
            stamp = frame.dts if file.format.name == "avi" else frame.pts
            if stamp is None:
                now = (origin or 0) if time is None else time + step
            else:
                now = stamp * Fraction(frame.time_base)
            if origin is None:
                origin = now
            elif time is not None and now < time - 1:  # another film goes on in this one
                origin += now - time - step
            time = now
            yield max(time - origin, Fraction(0)), frame


def decoded(packet) -> list:
    """The frames of a packet; the packet itself if it cannot be decoded."""
    try:
        return packet.decode()
    except _av().error.FFmpegError:
        return [packet] if packet.size else []


def upright(frame, width: int, height: int) -> np.ndarray:
    """A frame as its display matrix has it shown, (H, W, 3) uint8; width, height: before that."""
    picture = frame.to_ndarray(format="rgb24", width=width, height=height)
    for side in frame.side_data:
        if side.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(side), np.int32)[:5].tolist()
            if abs(b) > abs(a):  # x' = a x + c y, y' = b x + d y: columns become rows
                picture, a, d = picture.swapaxes(0, 1), c, b
            picture = picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(picture)


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
        self.stream.time_base = self.stream.codec_context.time_base = Fraction(1, TICKS)
        self.next, self.least, self.step = 0, 0, round(TICKS / rate)
        if lossless:
            self.stream.gop_size = 1  # a broken frame spoils no other

    def write(self, picture: np.ndarray, time: Fraction | None = None) -> None:
        """time: when it is shown, in seconds; None: a frame's length after the one before."""
        picture = np.ascontiguousarray(picture[: self.stream.height, : self.stream.width])
        frame = self.av.VideoFrame.from_ndarray(picture, format=self.format)
        frame.time_base = Fraction(1, TICKS)
        frame.pts = self.next if time is None else max(self.least, round(time * TICKS))
        self.next, self.least = frame.pts + self.step, frame.pts + 1
        self.file.mux(self.stream.encode(frame))

    def close(self) -> None:
        self.file.mux(self.stream.encode(None))
        self.file.close()


def read_ahead(items: Iterable, depth: int = 4) -> Iterator:
    """The same items, read by a thread that is up to `depth` ahead.

    What it raises is raised here.
    """
    items, end, thread = iter(items), object(), ThreadPoolExecutor(1)
    try:
        ready = deque(thread.submit(next, items, end) for _ in range(depth))
        while (item := ready.popleft().result()) is not end:
            ready.append(thread.submit(next, items, end))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)


def in_batches(
    items: Iterable[tuple[object, np.ndarray]], size: int
) -> Iterator[tuple[list, np.ndarray]]:
    """(key, (H, W, 3)) pairs -> (keys, (B, H, W, 3)) of up to `size` consecutive images of one
    shape.
    """
    for _, alike in groupby(items, key=lambda item: item[1].shape):
        while batch := list(islice(alike, size)):
            keys, images = zip(*batch)
            yield [*keys], np.stack(images)
