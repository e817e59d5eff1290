"""Keys of the authors' published checkpoints, mapped to ours: pure functions on dicts, no file is read here."""
import re

from rflw.errors import InputError

# (theirs, ours); {n-1} in ours is group n of the match minus one. ResNets: g1 is their coarsest level, our stage 0.
RESNET_RULES = (
    (r"((?:conv1|bn1|layer[1-4])\..+)", "encoder.{1}"),
    (r"p_ims1d2_outl(\d)_dimred\.weight", "decoder.stages.{1-1}.reduce.0.weight"),
    (r"adapt_stage(\d)_b\.0\.(\d)_conv\.(weight|bias)", "decoder.stages.{1-1}.rcu_in.{2-1}.conv1.{3}"),
    (r"adapt_stage(\d)_b\.0\.(\d)_conv_relu_varout_dimred\.weight", "decoder.stages.{1-1}.rcu_in.{2-1}.conv2.weight"),
    (r"adapt_stage(\d)_b2_joint_varout_dimred\.weight", "decoder.stages.{1-1}.adapt.weight"),
    (r"mflow_conv_g(\d)_pool\.0\.(\d)_outvar_dimred\.weight", "decoder.stages.{1-1}.crp.convs.{2-1}.weight"),
    (r"mflow_conv_g(\d)_b\.0\.(\d)_conv\.(weight|bias)", "decoder.stages.{1-1}.rcu_out.{2-1}.conv1.{3}"),
    (r"mflow_conv_g(\d)_b\.0\.(\d)_conv_relu_varout_dimred\.weight", "decoder.stages.{1-1}.rcu_out.{2-1}.conv2.weight"),
    (r"mflow_conv_g(\d)_b3_joint_varout_dimred\.weight", "decoder.stages.{1-1}.fuse.weight"),
    (r"clf_conv\.(weight|bias)", "decoder.classifier.{1}"),
)
# MobileNet-v2: layer n is our stage n - 2; crp4 belongs to the coarsest level, our stage 0.
BLOCK = {"0": "expand", "1": "depthwise", "2": "project"}
PART = {"0": "conv", "1": "bn"}
MOBILE_TAPS = {"3": "3.reduce.0", "4": "2.reduce.0", "5": "1.reduce.0", "6": "1.reduce.1", "7": "0.reduce.0",
               "8": "0.reduce.1"}
MOBILE_RULES = (
    (r"layer1\.([01])\.(.+)", lambda m: f"encoder.stem.{PART[m[1]]}.{m[2]}"),
    (r"layer([2-8])\.(\d)\.output\.([012])\.([01])\.(.+)",
     lambda m: f"encoder.stages.{int(m[1]) - 2}.{m[2]}.{BLOCK[m[3]]}.{PART[m[4]]}.{m[5]}"),
    (r"conv([3-8])\.weight", lambda m: f"decoder.stages.{MOBILE_TAPS[m[1]]}.weight"),
    (r"crp([1-4])\.0\.(\d)_outvar_dimred\.weight",
     lambda m: f"decoder.stages.{4 - int(m[1])}.crp.convs.{int(m[2]) - 1}.weight"),
    (r"conv_adapt([2-4])\.weight", lambda m: f"decoder.stages.{4 - int(m[1])}.fuse.weight"),
    (r"segm\.(weight|bias)", lambda m: f"decoder.classifier.{m[1]}"),
)
RESNETS = {(4, 6): 50, (4, 23): 101, (8, 36): 152}  # blocks in layers 2 and 3


def _write(rule, match: re.Match) -> str:
    if callable(rule):
        return rule(match)
    minus_one = re.sub(r"\{(\d)-1\}", lambda m: str(int(match[int(m[1])]) - 1), rule)
    return re.sub(r"\{(\d)\}", lambda m: match[int(m[1])], minus_one)


def translate(key: str, rules) -> str | None:
    """Our name of their tensor, or None if no rule knows it."""
    for pattern, rule in rules:
        if match := re.fullmatch(pattern, key):
            return _write(rule, match)
    return None


def unwrap(loaded) -> dict:
    """The state dict in what a file holds: bare, or under `segmenter`, each key with or without `module.`.

    Raises InputError if there is none.
    """
    state = loaded.get("segmenter", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not state:
        raise InputError(f"holds a {type(loaded).__name__}, not a dict of named tensors")
    for key, value in state.items():
        if not isinstance(key, str) or not hasattr(value, "shape"):
            raise InputError(f"{key!r}: a {type(value).__name__}, not a tensor")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _blocks(state: dict, layer: int) -> int:
    return len({key.split(".")[1] for key in state if key.startswith(f"layer{layer}.")})


def recognise(state: dict) -> tuple[str, int, dict]:
    """The authors' state dict -> (our model name, its number of classes, the same tensors under our keys).

    Raises InputError that names the first key that no published network has, or that is missing to tell which it is.
    """
    mobile = "segm.weight" in state or "layer8.0.output.0.0.weight" in state
    rules, classifier = (MOBILE_RULES, "segm.weight") if mobile else (RESNET_RULES, "clf_conv.weight")
    renamed = {}
    for key, value in state.items():
        name = translate(key, rules)
        if name is None:
            raise InputError(f"{key}: no published Light-Weight RefineNet or RefineNet has this key")
        renamed[name] = value
    if classifier not in state:
        raise InputError(f"{classifier}: missing")
    if mobile:
        return "refinenet-lw-mobilenet_v2", state[classifier].shape[0], renamed
    depth = RESNETS.get((_blocks(state, 2), _blocks(state, 3)))
    if depth is None:
        raise InputError(f"layer3.{_blocks(state, 3)}.conv1.weight: missing, or layer2 is not whole: "
                         f"{_blocks(state, 2)} and {_blocks(state, 3)} blocks in layers 2 and 3 fit no ResNet of "
                         "50, 101 or 152 layers")
    reduce = state.get("p_ims1d2_outl1_dimred.weight")
    if reduce is None:
        raise InputError("p_ims1d2_outl1_dimred.weight: missing")
    form = "refinenet" if tuple(reduce.shape[-2:]) == (3, 3) else "refinenet-lw"
    return f"{form}-resnet{depth}", state[classifier].shape[0], renamed


def first_fault(theirs: dict, ours: dict, original_key: dict) -> str | None:
    """What is wrong with `theirs` (under our keys) as the weights of a network with state `ours`, or None.

    `original_key` maps our key to the file's. Counters of batches may be absent: files of early PyTorch have none.
    """
    for key, tensor in ours.items():
        if key not in theirs:
            if not key.endswith("num_batches_tracked"):
                return f"{original_key.get(key, key)}: missing"
        elif tuple(theirs[key].shape) != tuple(tensor.shape):
            return (f"{original_key.get(key, key)}: shape {tuple(theirs[key].shape)}, "
                    f"{tuple(tensor.shape)} expected")
    extra = next((key for key in theirs if key not in ours), None)
    return extra and f"{original_key.get(extra, extra)}: not part of this network"
