"""Videos, folders and reading ahead."""

from fractions import Fraction
from pathlib import Path
import threading

import numpy as np
from PIL import Image
import pytest

from rflw import InputError, video


def clip(path, frames, lossless=True, rate=12.5, times=None):
    writer = video.VideoWriter(str(path), rate, frames[0].shape[:2], lossless)
    for frame, seconds in zip(frames, times or [None] * len(frames)):
        writer.write(frame, seconds)
    writer.close()


def frames_of(path, notes=None):
    """Times and pictures of a video."""
    found = list(video.read_video(Path(path), [] if notes is None else notes))
    return [time for time, _ in found], [image for _, image in found]


@pytest.fixture
def masks():
    return [np.random.RandomState(i).randint(0, 12, (41, 53)).astype(np.uint8) for i in range(6)]


def equal(pictures, masks):
    return all((a == b[..., None]).all() for a, b in zip(pictures, masks, strict=True))


def film(path, frames, codec="libx264", times=None, prepare=None, **options):
    """RGB frames as other programs write them; times: in milliseconds."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000 if times else 10)
        if prepare:
            prepare(stream)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = times[i] if times else i, stream.time_base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


CORNERS = np.zeros((64, 96, 3), np.uint8)
CORNERS[:20, :30], CORNERS[:20, 60:], CORNERS[40:, 70:] = 80, 160, 240
TIMES = [0, 100, 200, 1000, 2000, 2100, 2200, 2300, 5000, 5100]
GREYS = [np.full((48, 64, 3), 20 * i, np.uint8) for i in range(10)]


def numbers(pictures):
    return [round(image.mean() / 20) for image in pictures]


class TestOurs:
    def test_masks_come_back_from_a_video_as_they_were(self, tmp_path, masks, monkeypatch):
        monkeypatch.chdir(tmp_path)
        clip("x.mkv", masks)
        Path("x.mkv").rename("x:1.mkv")  # this colon ends no protocol
        notes = []
        times, found = frames_of("x:1.mkv", notes)
        assert [float(time) for time in times] == [i / 12.5 for i in range(6)] and notes == []
        assert equal(found, masks)
        assert video.frame_rate(Path("x:1.mkv")) == pytest.approx(12.5, abs=0.01)

    def test_pictures_come_back_nearly(self, tmp_path):
        y, x = np.mgrid[:41, :53]
        picture = np.stack([4 * x, 5 * y, 2 * (x + y)], -1).astype(np.uint8)
        clip(tmp_path / "x.mp4", [picture] * 3, lossless=False)
        _, found = frames_of(tmp_path / "x.mp4")
        assert len(found) == 3 and found[0].shape == (40, 52, 3)  # H.264 has even sizes
        assert np.abs(found[0].astype(int) - picture[:40, :52]).mean() < 6


class TestFilms:
    @pytest.mark.parametrize(
        ("broken", "shown"),
        [((2,), (0, 1, 1, 3, 4, 5)), ((0, 1), (2, 2, 2, 3, 4, 5)), ((4, 5), (0, 1, 2, 3, 3, 3))],
    )
    def test_the_picture_before_stands_for_a_broken_frame(self, tmp_path, masks, broken, shown):
        import av

        path, notes = tmp_path / "x.mkv", []
        clip(path, masks)
        data = path.read_bytes()
        with av.open(path) as file:
            packets = [bytes(packet) for packet in file.demux(file.streams.video[0])]
        for number in broken:
            data = data.replace(packets[number], b"U" * len(packets[number]))
        path.write_bytes(data)
        times, found = frames_of(path, notes)
        assert notes[0].startswith(f"{path}: {len(broken)} broken frames")
        assert [float(time) for time in times] == [i / 12.5 for i in range(6)]
        assert equal(found, [masks[number] for number in shown])

    @pytest.mark.parametrize(
        ("degrees", "hflip", "vflip"), [(90, 0, 0), (180, 0, 0), (270, 1, 0), (90, 0, 1), (0, 1, 0)]
    )
    def test_films_are_turned_and_mirrored_as_a_player_does(self, tmp_path, degrees, hflip, vflip):
        """The matrix turns first, counterclockwise, then mirrors."""
        turn = lambda stream: stream.set_display_rotation(degrees, bool(hflip), bool(vflip))
        film(tmp_path / "x.mp4", [CORNERS], prepare=turn, crf="1")
        expected = np.rot90(CORNERS, degrees // 90)[:: 1 - 2 * vflip, :: 1 - 2 * hflip]
        _, (image,) = frames_of(tmp_path / "x.mp4")
        assert image.shape == expected.shape and abs(image.astype(int) - expected).mean() < 4

    def test_pixels_become_square(self, tmp_path):
        def wide(stream):
            stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

        film(tmp_path / "x.mp4", [CORNERS], prepare=wide, crf="1")
        _, (image,) = frames_of(tmp_path / "x.mp4")
        assert image.shape == (64, 128, 3)
        assert (image[60, 100:] > 200).all() and image[60, 85].max() < 40

    @pytest.mark.parametrize(
        ("name", "codec", "options"),
        [("x.mp4", "libx264", {"bf": "2"}), ("x.webm", "libvpx", {}), ("x.ts", "libx264", {})],
    )
    def test_every_frame_keeps_its_time(self, tmp_path, name, codec, options):
        film(tmp_path / name, GREYS, codec, TIMES, **options)
        times, found = frames_of(tmp_path / name)
        assert [round(1000 * time) for time in times] == TIMES
        for lossless, target in ((True, "y.mkv"), (False, "y.mp4")):
            pictures = [image[..., 0] if lossless else image for image in found]
            clip(tmp_path / target, pictures, lossless, rate=2, times=times)
            again, copies = frames_of(tmp_path / target)
            assert [round(1000 * time) for time in again] == TIMES
            assert numbers(copies) == list(range(10))

    def test_avi_has_an_order_but_no_times(self, tmp_path):
        """With B-frames its packets' times go back and forth."""
        film(tmp_path / "x.avi", GREYS, bf="2", x264opts="scenecut=0")
        times, found = frames_of(tmp_path / "x.avi")
        assert [round(10 * time) for time in times] == numbers(found) == list(range(10))

    def test_frames_that_change_size_are_shown_at_the_first_ones(self, tmp_path):
        """Raw H.264 films, one after the other."""
        parts = []
        for i, size in enumerate(((48, 64), (96, 128), (40, 40))):
            film(tmp_path / "x.ts", [np.full((*size, 3), 20 + 20 * i, np.uint8)] * 12)
            parts.append((tmp_path / "x.ts").read_bytes())
        (tmp_path / "x.ts").write_bytes(b"".join(parts))
        times, found = frames_of(tmp_path / "x.ts")
        assert {image.shape for image in found} == {(48, 64, 3)}
        assert numbers(found) == [1] * 12 + [2] * 12 + [3] * 12
        assert all(0 < later - time < 1 for time, later in zip(times, times[1:]))


class TestReading:
    def test_a_video_that_is_cut_off_gives_what_there_is(self, tmp_path, masks):
        clip(tmp_path / "x.mkv", masks)
        data = (tmp_path / "x.mkv").read_bytes()
        (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
        _, found = frames_of(tmp_path / "cut.mkv")
        assert 0 < len(found) < 6 and equal(found, masks[: len(found)])
        (tmp_path / "header.mkv").write_bytes(data[: data.index(b"V_FFV1") + 300])
        with pytest.raises(InputError, match="header.mkv: "):
            frames_of(tmp_path / "header.mkv")

    def test_every_entry_of_a_folder_is_taken_or_spoken_of(self, tmp_path):
        picture = Image.new("RGB", (40, 40))
        for name in ("b.png", "a.JPG", "e.jp2", ".hidden.png"):
            picture.save(tmp_path / name, "JPEG2000" if name == "e.jp2" else None)
        picture.save(tmp_path / "f.tif", save_all=True, append_images=[picture, picture])
        for name in ("c.png", "notes.txt", "g.heic", "film.mp4"):
            (tmp_path / name).write_text("no picture")
        (tmp_path / "day2/day3").mkdir(parents=True)
        skipped, notes = {}, []
        found = video.files_of(tmp_path, skipped)
        assert [path.name for path in found] == "a.JPG b.png c.png e.jp2 f.tif film.mp4".split()
        assert {path.name for path in skipped} == {".hidden.png", "notes.txt", "g.heic", "day2"}
        assert all(line.startswith(f"{path}: ") for path, line in skipped.items())
        read = [path.name for path, _ in video.read_photos(found[:-1], skipped, notes)]
        assert read == ["a.JPG", "b.png", "e.jp2", "f.tif"]
        assert "not an image" in skipped[tmp_path / "c.png"]
        assert notes == [f"{tmp_path / 'f.tif'}: the first of its 3 pictures"]
        for folder, words in (("day2/day3", "no photos or videos in it$"), ("day2", "day2/day3")):
            with pytest.raises(InputError, match=words):
                video.files_of(tmp_path / folder, {})

    def test_reading_ahead_keeps_the_order_and_what_is_raised_and_goes_no_further_than_it_should(
        self,
    ):
        taken = []

        def items():
            for i in range(20):
                taken.append(i)
                yield i
            raise InputError("no more")

        ahead, before = video.read_ahead(items(), depth=3), threading.active_count()
        for i in range(20):
            assert next(ahead) == i and len(taken) <= i + 4
        with pytest.raises(InputError, match="no more"):
            next(ahead)
        left = video.read_ahead(items(), depth=3)
        next(left)
        left.close()
        assert threading.active_count() == before and len(taken) <= 20 + 4
        assert list(video.read_ahead(range(5))) == [*range(5)]

    def test_batches_hold_consecutive_images_of_one_shape(self):
        small, large = np.zeros((4, 5, 3), np.uint8), np.zeros((6, 5, 3), np.uint8)
        found = list(video.in_batches(enumerate([small, small, small, large, small]), 2))
        assert [keys for keys, _ in found] == [[0, 1], [2], [3], [4]]
        assert found[0][1].shape == (2, 4, 5, 3)
