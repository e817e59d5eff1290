"""Class names, colours and licences. No torch.

One convention everywhere: a mask holds class indices 0..K-1 and 255 for void, pixels that no metric counts.
"""
from dataclasses import dataclass

VOID = 255


@dataclass(frozen=True)
class Labels:
    """Classes of a data set, in the order of their indices, an RGB colour for each, and what one may do with it all."""

    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    licence: str = "not known"

    def palette(self) -> list[int]:
        """768 values for a palette PNG; void is white, unused entries black."""
        flat = [value for colour in self.colours for value in colour]
        return flat + [0] * (765 - len(flat)) + [255, 255, 255]


def voc_colours(n: int) -> tuple[tuple[int, int, int], ...]:
    """The colours of PASCAL VOC's palette for n classes: bits 0, 3, 6... of the index fill red from the top, and so on."""
    def channel(i, c):
        return sum(((i >> (3 * bit + c)) & 1) << (7 - bit) for bit in range(8))
    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(n))


VOC_CLASSES = ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
               "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train",
               "tv monitor")

LABELS = {
    # the 11 classes and colours of SegNet's CamVid
    "camvid": Labels(
        ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
        ((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
         (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
        "CamVid's frames come without a licence text; the SegNet tutorial, which hands this version on, is under "
        "CC BY-NC 4.0: personal and research use. Cite Brostow, Fauqueur and Cipolla (2009). A network trained on the "
        "frames inherits this; its encoder began with weights trained on ImageNet, whose images are for research."),
    # seen at a glance: ground, two shapes known by themselves, the beacon, two that only the beacon tells apart
    "embedded": Labels(
        ("ground", "disc", "bar", "beacon", "red twin", "blue twin"),
        ((70, 70, 70), (230, 159, 0), (0, 158, 115), (240, 228, 66), (213, 94, 0), (0, 114, 178)),
        "The scenes are drawn by this package: MIT. The encoder of a network may have begun with weights trained on "
        "ImageNet, whose images are for research."),
    "voc": Labels(VOC_CLASSES, voc_colours(21)),
}


def labels_for(classes: int) -> Labels:
    """Numbered classes in VOC's colours, for a network whose data set is not known."""
    return Labels(tuple(f"class {i}" for i in range(classes)), voc_colours(classes))
