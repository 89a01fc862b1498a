"""How to build a network again: `torchvision:NAME`, `timm:NAME`, `sample:NAME`, `FILE.py:FUNCTION`, with arguments."""

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from compressor.errors import UsageError, did_you_mean, first_line
from compressor.loading import code, imports
from compressor.loading.forms import plain
from compressor.vision import door as vision
from compressor.vision.preparation import Preparation

# Arguments of timm.create_model that read files or the network.
_TIMM_READS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")

# Arguments besides num_classes that follow from the weights: classifiers that exist for training only, and the
# published weights' own normalisation.
_EXTRA_ARGUMENTS = dict.fromkeys(("googlenet", "inception_v3"), ("aux_logits", "transform_input"))

# What definitions call the size of their images: ours, timm's, torchvision's.
_SIZES = ("size", "img_size", "image_size")

# The networks that come with the project; each is the function `build` of a file in `sample_models`.
SAMPLES = ("cnn3", "digits_cnn", "mlp", "net2", "primenet", "resnet_cifar", "vgg11", "vgg16_cifar")
# In a wheel they are inside the package, in a clone beside it.
_PACKAGE = Path(__file__).resolve().parents[1]
SAMPLE_FOLDER = (_PACKAGE if (_PACKAGE / "sample_models").is_dir() else _PACKAGE.parent) / "sample_models"

# An architecture's name without arguments.
FORM = re.compile(r"(?:torchvision|timm|sample):[^:=]+|.+\.py:\w+")

_MODULE = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_DOTTED = rf"(?!\w+\.py:){_MODULE}:\w+"  # a module and a function

_FORMS = "torchvision:NAME, timm:NAME, sample:NAME, FILE.py:FUNCTION or package.module:FUNCTION"


@dataclass(frozen=True)
class Arch:
    """Where a network's definition is and what it is called with."""

    name: str  # without the arguments: "torchvision:resnet18", "nets/small.py:build"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None  # of FILE.py, as it was when the network was built

    @property
    def is_code(self) -> bool:
        """Whether it is a file of Python code that the user named."""
        return self.name.partition(":")[0] not in _PUBLISHED

    def __str__(self) -> str:
        if not self.arguments:
            return self.name
        return self.name + ":" + ",".join(f"{key}={value}" for key, value in self.arguments.items())


@dataclass(frozen=True)
class Definition:
    """An architecture found: how to call it, and what its author publishes about it (None where nothing is)."""

    arch: Arch
    call: Callable[..., nn.Module]
    accepts: frozenset[str] | None  # names of its arguments; None where it takes any
    channels_argument: str = "in_channels"
    input_shape: tuple[int, ...] | None = None
    preparation: Preparation | None = None  # how images are made ready for the published weights
    num_classes: int | None = None

    def takes(self, argument: str) -> bool:
        """Whether the function can be called with this argument."""
        return self.accepts is None or argument in self.accepts

    def build(self, **more: Any) -> nn.Module:
        """The network with random weights, or the one inside DataParallel; `more` is laid over the own arguments."""
        network = self.call(**{**self.arch.arguments, **more})
        return network.module if isinstance(network, nn.DataParallel) else network

    def with_arguments(self, **more: Any) -> "Definition":
        """The same definition, called with these arguments besides."""
        return replace(self, arch=replace(self.arch, arguments={**self.arch.arguments, **more}))

    def shape(self) -> tuple[int, ...] | None:
        """The published input shape (channels, height, width), with the channels and size that the arguments say."""
        if self.input_shape is None:
            return None
        arguments = self.arch.arguments
        channels, *sizes = self.input_shape
        for key in _SIZES:
            size = arguments.get(key)
            if isinstance(size, int):
                sizes = [size] * len(sizes)
            elif isinstance(size, (tuple, list)):
                sizes = list(size)
        return (arguments.get(self.channels_argument, channels), *sizes)


def parse_arch(text: str, arguments: Mapping[str, Any] | None = None) -> Arch:
    """Read `torchvision:NAME`, `timm:NAME`, `sample:NAME`, `FILE.py:FUNCTION` or `package.module:FUNCTION`, each with
    `:key=value,key=value` behind it or not. A module becomes the file that it is, found from the current folder.

    Values are Python literals (`width=0.25`, `pool=(2, 2)`), anything else is a string; `arguments` is laid over them.
    Raises UsageError for a text of another form.
    """
    match = re.fullmatch(rf"({FORM.pattern}|{_DOTTED})(?::(\w+=.*))?", text.strip())
    if match is None:
        raise UsageError(f"`arch` {text!r} {_what_is_wrong(text.strip())}")
    name, written = match.group(1), {} if match.group(2) is None else _arguments(match.group(2), text)
    if not FORM.fullmatch(name):
        module, _, function = name.partition(":")
        path = imports.find_file(module)
        if path is None:
            raise UsageError(f"`arch` {text!r}: there is no module {module} here or installed; write {_FORMS}")
        name = f"{_shortened(path)}:{function}"
    return Arch(name, plain({**written, **(arguments or {})}, "arch_arguments"))


def _what_is_wrong(text: str) -> str:
    """Why a text does not name an architecture, and what to write."""
    if text in vision.classifiers():
        return f"is not an architecture: write {_FORMS} (did you mean torchvision:{text}?)"
    if text.endswith(".onnx"):
        return "is a file that brings its weights: give it as the model, without `arch`"
    bare = text.removesuffix(":")
    path = Path(bare) if bare.endswith(".py") else imports.find_file(text) if re.fullmatch(_MODULE, text) else None
    found = None if path is None else code.choices(path)
    if found is None:
        return f"is not an architecture: write {_FORMS}"
    return f"does not say which function builds the network: write {bare}:FUNCTION; {found}"


def _shortened(path: Path) -> Path:
    """The path from the current folder, where it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def find(arch: Arch, *, named: bool) -> Definition:
    """Look up an architecture.

    `named` says that the person at the keyboard named it; otherwise it comes from a checkpoint, and a file of code is
    only run if it was named before (see loading.code). Raises UsageError where there is no such architecture, or
    where the code was changed or never named.
    """
    kind, _, name = arch.name.partition(":")
    if not arch.is_code:
        return _PUBLISHED[kind](arch, name)
    path, _, function = arch.name.rpartition(":")
    loaded = code.load(Path(path), function, expected=arch.sha256, named=named)
    return _of_code(replace(arch, sha256=loaded.sha256), loaded)


def was_named(arch: Arch) -> bool:
    """Whether an architecture may be built without asking: it is no file of code, or one that was given before."""
    path, _, function = arch.name.rpartition(":")
    return not arch.is_code or code.was_named(Path(path), function)


def data_arguments(arch: Arch, *, num_classes: int, channels: int) -> dict[str, int]:
    """The arguments that fit a network to a data set, as far as its definition has them.

    `num_classes`, and the number of input channels under the name it has there (`in_channels`, timm's `in_chans`);
    what the architecture was explicitly given is left as it is.
    """
    definition = find(arch, named=arch.sha256 is None)
    wanted = {"num_classes": num_classes, definition.channels_argument: channels}
    return {key: value for key, value in wanted.items() if definition.takes(key) and key not in arch.arguments}


def _arguments(text: str, whole: str) -> dict[str, Any]:
    """`width=0.25,pool=(2,2)` -> a dict; a comma inside brackets does not part."""
    parts = re.split(r",(?=\s*\w+=)", text)
    found: dict[str, Any] = {}
    for part in parts:
        key, _, value = (piece.strip() for piece in part.partition("="))
        if not key.isidentifier() or not value:
            raise UsageError(f"`arch` {whole!r}: {part!r} is not of the form key=value")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def _find_sample(arch: Arch, name: str) -> Definition:
    if name not in SAMPLES:
        raise UsageError(f"there is no sample model {name[:80]!r}: choose {', '.join(SAMPLES)}")
    return _of_code(arch, code.load_own(SAMPLE_FOLDER / f"{name}.py", "build"))


def _of_code(arch: Arch, loaded: code.Loaded) -> Definition:
    return Definition(arch, loaded.call, loaded.accepts, input_shape=loaded.input_shape)


def _find_torchvision(arch: Arch, name: str) -> Definition:
    preset = vision.default_preset(name)

    return Definition(
        arch=arch,
        call=partial(vision.build, name),
        accepts=frozenset({"num_classes", *_EXTRA_ARGUMENTS.get(name, ()), *arch.arguments}),
        input_shape=preset.input_shape,
        preparation=preset.preparation,
        num_classes=preset.num_classes,
    )


def _find_timm(arch: Arch, name: str) -> Definition:
    try:
        import timm
    except ImportError as error:
        raise UsageError(f"{arch.name} needs timm: pip install timm") from error
    if not timm.is_model(name):
        near = did_you_mean(name, timm.list_models(), 6)
        raise UsageError(f"timm has no model {name!r}{near}; all {len(timm.list_models())}: timm.list_models()")
    for refused in _TIMM_READS:
        if refused in arch.arguments:
            raise UsageError(f"{arch.name} is built without `{refused}`: give a file with the weights instead")

    def call(**arguments: Any) -> nn.Module:
        try:
            module: nn.Module = timm.create_model(name, pretrained=False, **arguments)
        except Exception as error:  # timm checks its arguments with whatever fails first
            raise UsageError(f"{arch.name} cannot be built with {arguments}: {first_line(error)}") from error
        return module

    published = timm.get_pretrained_cfg(name)
    preparation = None
    if published:
        mean, std, share = tuple(published.mean), tuple(published.std), min(published.crop_pct, 1.0)
        preparation = Preparation(mean, std, crop_pct=share, interpolation=published.interpolation)
    return Definition(
        arch=arch,
        call=call,
        accepts=frozenset({"num_classes", "in_chans", *arch.arguments}),
        channels_argument="in_chans",
        input_shape=tuple(published.input_size) if published else None,
        preparation=preparation,
        num_classes=published.num_classes if published else None,
    )


_PUBLISHED = {"torchvision": _find_torchvision, "timm": _find_timm, "sample": _find_sample}
