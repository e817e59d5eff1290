"""Videos, folders and reading ahead."""

from pathlib import Path
import sys
import threading
import time

import numpy as np
from PIL import Image
import pytest

from rflw import InputError, video


def clip(path, frames, lossless=True, rate=12.5):
    writer = video.VideoWriter(str(path), rate, frames[0].shape[:2], lossless)
    for frame in frames:
        writer.write(frame)
    writer.close()


@pytest.fixture
def masks():
    return [np.random.RandomState(i).randint(0, 12, (41, 53)).astype(np.uint8) for i in range(6)]


def test_masks_come_back_from_a_video_as_they_were(tmp_path, masks):
    clip(tmp_path / "x.mkv", masks)
    skipped = []
    found = list(video.read_video(tmp_path / "x.mkv", skipped))
    assert [number for number, _ in found] == list(range(6)) and skipped == []
    assert all(
        (image == mask[..., None]).all() for (_, image), mask in zip(found, masks, strict=True)
    )
    assert video.frame_rate(tmp_path / "x.mkv") == pytest.approx(12.5, abs=0.01)


def test_a_colon_in_a_name_is_no_protocol(tmp_path, masks, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip(tmp_path / "v.mkv", masks)
    (tmp_path / "v.mkv").rename(tmp_path / "v:1.mkv")
    assert len(list(video.read_video(Path("v:1.mkv"), []))) == 6


def test_pictures_come_back_nearly(tmp_path):
    y, x = np.mgrid[:41, :53]
    picture = np.stack([4 * x, 5 * y, 2 * (x + y)], -1).astype(np.uint8)
    clip(tmp_path / "x.mp4", [picture] * 3, lossless=False)
    found = [image for _, image in video.read_video(tmp_path / "x.mp4", [])]
    assert len(found) == 3 and found[0].shape == (40, 52, 3)  # H.264 has even sizes
    assert np.abs(found[0].astype(int) - picture[:40, :52]).mean() < 6


def test_broken_frames_are_skipped_and_counted(tmp_path, masks):
    import av

    clip(tmp_path / "x.mkv", masks)
    with av.open(tmp_path / "x.mkv") as file:
        third = [bytes(packet) for packet in file.demux(file.streams.video[0])][2]
    data = (tmp_path / "x.mkv").read_bytes()
    assert data.count(third) == 1
    (tmp_path / "broken.mkv").write_bytes(data.replace(third, b"U" * len(third)))
    skipped = []
    found = list(video.read_video(tmp_path / "broken.mkv", skipped))
    assert len(skipped) == 1 and "broken.mkv: frame 2" in skipped[0]
    assert [number for number, _ in found] == [0, 1, 3, 4, 5]
    assert all((image == masks[number][..., None]).all() for number, image in found)


def test_other_files_are_refused(tmp_path, monkeypatch):
    (tmp_path / "text.mp4").write_text("hello")
    for name, words in (("text.mp4", "cannot be read"), ("none.mp4", "no such file")):
        with pytest.raises(InputError, match=f"^[^\n]*{name}: {words}[^\n]*$"):
            next(video.read_video(tmp_path / name, []))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"rflw\[video\]"):
        video.frame_rate(tmp_path / "text.mp4")


def test_a_video_that_is_cut_off_gives_what_there_is(tmp_path, masks):
    clip(tmp_path / "x.mkv", masks)
    data = (tmp_path / "x.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    frames = list(video.read_video(tmp_path / "cut.mkv", []))
    assert 0 < len(frames) < 6
    assert all((image == masks[number][..., None]).all() for number, image in frames)
    (tmp_path / "header.mkv").write_bytes(data[: data.index(b"V_FFV1") + 300])
    with pytest.raises(InputError, match="header.mkv: "):
        list(video.read_video(tmp_path / "header.mkv", []))


def test_photos_of_a_folder(tmp_path):
    for name in ("b.png", "a.JPG", ".hidden.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "c.png").write_text("no picture")
    found = video.photos(tmp_path)
    assert [path.name for path in found] == ["a.JPG", "b.png", "c.png"]
    skipped = []
    assert [path.name for path, _ in video.read_photos(found, skipped)] == ["a.JPG", "b.png"]
    assert len(skipped) == 1 and "c.png" in skipped[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no photos"):
        video.photos(tmp_path / "empty")


def test_reading_ahead_keeps_the_order_and_what_is_raised():
    assert list(video.read_ahead(range(20), depth=2)) == list(range(20))

    def broken():
        yield 1
        raise InputError("no more")

    items = video.read_ahead(broken())
    assert next(items) == 1
    with pytest.raises(InputError, match="no more"):
        next(items)


def test_reading_ahead_goes_no_further_than_it_should_and_ends():
    taken = []
    before = threading.active_count()
    items = video.read_ahead((taken.append(i) or i for i in range(100)), depth=3)
    assert next(items) == 0
    time.sleep(0.3)
    assert len(taken) <= 6  # one given, three ready, one in hand
    items.close()
    time.sleep(0.5)
    assert threading.active_count() == before


def test_batches_hold_consecutive_images_of_one_shape():
    small, large = np.zeros((4, 5, 3), np.uint8), np.zeros((6, 5, 3), np.uint8)
    found = list(video.in_batches(enumerate([small, small, small, large, small]), 2))
    assert [(keys, stack.shape) for keys, stack in found] == [
        ([0, 1], (2, 4, 5, 3)),
        ([2], (1, 4, 5, 3)),
        ([3], (1, 6, 5, 3)),
        ([4], (1, 4, 5, 3)),
    ]
