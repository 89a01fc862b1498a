"""Find the weights in what a file holds, and fit them to an architecture: wrappers, prefixes, number of classes."""

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import FileError, UsageError, did_you_mean, listed, shown
from compressor.graph.tensors import saved_tensors
from compressor.loading.arch import Definition
from compressor.loading.folding import folded
from compressor.loading.forms import encode
from compressor.loading.pickles import is_network, is_tensor, tensor_of
from compressor.loading.proportion import Proportion
from compressor.loading.stand_ins import StandIn
from compressor.report import units

# Under what keys training scripts keep the weights, the likeliest first; averaged weights only where there are no
# others.
_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
)

# What wrappers put before every name: DataParallel, torch.compile, Lightning and people's own.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")

# Names that changed since a publisher's weights were made: torchvision's DenseNets still come as "norm.1.weight".
_OLD_NAMES = (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)"), r"\1\2")

_UNKNOWN = len(_KEYS) + 1
_DEEPEST = 4  # dicts in one another

_EXTRA_STATE = "_extra_state"  # torch's name for what a layer keeps besides tensors

State = dict[str, Any]  # tensors, and what else layers keep by `get_extra_state`


def find_weights(held: Any, path: Path, name: str | None = None) -> tuple[nn.Module | StandIn | State, list[str]]:
    """The network or the state dict in `held` (what torch.save or safetensors gave), and notes on what was chosen.

    Looks into dicts in dicts, four deep, for the weights under `name` (keys with dots between them) or, without one,
    under the likeliest keys.

    Raises:
        FileError: there are no weights.
        UsageError: there are none under `name`, or several and none of them likelier than the others.
    """
    places = {".".join(keys): found for keys, found in sorted(_places(held), key=lambda each: _rank(each[0]))}
    if not places:
        inside = _entries(held)
        if inside is not None:
            raise FileError(f"{path} holds no weights, only {listed([str(key) for key in inside]) or 'nothing'}")
        raise FileError(f"{path} holds a {_kind(held)}, not a model: give a state dict, with `arch`")
    names = [each for each in places if each]
    if name is not None:
        fitting = [each for each in places if each == name or each.startswith(f"{name}.")]
        if not fitting:
            known = f"{did_you_mean(name, names)}; it has {listed(names) or 'one set of weights'}"
            raise UsageError(f"{path} has no weights under {name!r}{known}")
        chosen = name if name in places else fitting[0]
    else:
        chosen = next(iter(places))
        if chosen and len(places) > 1 and _KEYS.count(chosen.split(".")[0]) == 0:
            raise UsageError(f"{path} has several sets of weights: choose with `weights` one of {listed(names)}")
    notes = []
    others = [each for each in names if not f"{each}.".startswith(f"{chosen}.")]
    if chosen and others:
        notes.append(f"the weights under {shown(chosen)} are used; `weights` chooses others: {listed(others)}")
    found = places[chosen]
    if not isinstance(found, dict):
        return found, notes
    kept = {key: value for key, value in found.items() if isinstance(key, str) and _is_weight(key, value)}
    dropped = [str(key) for key in found if key not in kept]
    if dropped:
        notes.append(f"not weights, ignored: {listed(dropped)}")
    return {key: tensor_of(each) if is_tensor(each) else each for key, each in kept.items()}, notes


def _is_weight(key: str, value: Any) -> bool:
    """Whether it is a tensor, or what a layer keeps by `get_extra_state`, and plain."""
    if is_tensor(value) or key.rpartition(".")[2] != _EXTRA_STATE:
        return is_tensor(value)
    try:
        encode(value, key)
    except (TypeError, RecursionError):
        return False
    return True


def _places(held: Any, keys: tuple[str, ...] = (), seen: frozenset[int] = frozenset()) -> Iterator[Any]:
    """Everything that could be meant by the weights, each with the keys that lead to it."""
    if isinstance(held, nn.Module) or is_network(held):
        yield keys, held
        return
    inside = _entries(held)
    if inside is None or id(held) in seen:
        return
    if any(isinstance(key, str) and is_tensor(value) for key, value in inside.items()):
        yield keys, inside
    for key, inner in inside.items() if len(keys) < _DEEPEST else ():
        if isinstance(key, str):
            yield from _places(inner, (*keys, key), seen | {id(held)})


def _entries(value: Any) -> dict[Any, Any] | None:
    """What is in a dict, or in what stands for one of somebody's class; None for anything else."""
    if isinstance(value, StandIn):
        return value.entries or None
    return dict(value) if isinstance(value, Mapping) else None


def _rank(keys: tuple[str, ...]) -> tuple[int, ...]:
    """Sorts what is under the likeliest keys first, then what is under none; what is inside before what is around."""
    known = [_KEYS.index(key) if key in _KEYS else _UNKNOWN for key in keys]
    return (*known, _UNKNOWN - 1) if keys else (_UNKNOWN - 1,)


def _kind(held: Any) -> str:
    return "Tensor" if is_tensor(held) else shown(getattr(held, "name", type(held).__name__))


def fit(state: State, definition: Definition, path: Path) -> tuple[nn.Module, Definition, list[str]]:
    """Build the architecture and put `state` into it.

    Prefixes of wrappers are taken off; where only the size of the classifier or of the first layer's input differs
    from the architecture's default, it is built again with the file's. Returns the module, the definition with the
    arguments it was built with, and a note on each thing done. Raises FileError where it does not fit.
    """
    notes = []
    module = definition.build()
    state, dropped, gone = _without_prefixes(state, set(module.state_dict()))
    if gone:
        notes.append(f"masks and norms are folded into the weights that they compute: {listed(gone)}")
    extra = [key for key, value in state.items() if not isinstance(value, Tensor) and key not in module.state_dict()]
    state = {key: value for key, value in state.items() if key not in extra}
    if dropped or extra:
        notes.append(f"not part of {definition.arch.name}, ignored: {listed([*dropped, *extra])}")
    inferred = _inferred_arguments(state, saved_tensors(module), definition)
    if inferred:
        tried = definition.with_arguments(**inferred)
        rebuilt = Proportion.to(state.values(), path).build(tried)
        if _fits(state, saved_tensors(rebuilt)):
            module, definition = rebuilt, tried
            given = ", ".join(f"{key}={value}" for key, value in inferred.items())
            notes.append(f"{definition.arch.name} is built with {given}, as in the file")
    put(state, module, str(definition.arch), path)
    return module, definition, notes


def put(state: State, module: nn.Module, what: str, path: Path) -> None:
    """Load `state` into `module`; raises FileError that says which tensors do not fit, the first few of each kind.

    What the module keeps besides tensors (`get_extra_state`) stays as it is where `state` does not have it.
    """
    wanted, sizes = module.state_dict(), saved_tensors(module)
    given = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    missing = [key for key in sizes if key not in given and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in wanted]
    shapes = [
        f"{key} ({_shape(given[key])} in the file, {_shape(sizes[key])} in the architecture)"
        for key in given
        if key in sizes and given[key].shape != sizes[key].shape
    ]
    kinds = [
        f"{key} ({str(value.dtype).removeprefix('torch.')})"
        for key, value in given.items()
        if value.is_complex() or value.is_quantized or value.layout is not torch.strided
    ]
    if kinds:
        raise FileError(f"the weights of {path} are no plain real numbers: {listed(kinds, 3)}; save them as float32")
    if not (missing or extra or shapes):
        # Batch norm's counters are newer than the oldest files, so the fresh ones stay where there are none. The
        # layers' version numbers are the fresh ones as well: safetensors keeps none, and some layers insist on one.
        whole = OrderedDict(state | {key: wanted[key] for key in wanted if key not in state})
        whole._metadata = wanted._metadata  # type: ignore[attr-defined]
        try:
            module.load_state_dict(whole, strict=True)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
            raise FileError(f"the weights of {path} cannot be put into {what}: {first}") from error
        return
    misfits = {"missing": missing, "not known to it": extra, "of another shape": shapes}
    told = "; ".join(f"{len(keys)} {kind}: {listed(keys, 3)}" for kind, keys in misfits.items() if keys)
    raise FileError(f"the weights of {path} do not fit {what}: {told}; give the `arch` they were trained with")


def _without_prefixes(state: State, wanted: set[str]) -> tuple[State, list[str], list[str]]:
    """The reading of `state`, with wrappers' prefixes taken off, that has most of the wanted names.

    Also the names that it leaves out, and those of tensors from which it computes others. Names outside the prefix (a
    loss, an average's counter) are left out only where the rest is complete.
    """
    state = {key.replace("._orig_mod.", "."): value for key, value in state.items()}
    pattern, new = _OLD_NAMES
    computed, parts = folded(state)
    readings = [state, {pattern.sub(new, key): value for key, value in state.items()}, computed]
    for reading in readings:
        for prefix in _PREFIXES:
            inner = {key.removeprefix(prefix): value for key, value in reading.items() if key.startswith(prefix)}
            complete = len(inner) == len(reading) or wanted <= inner.keys()
            if inner and complete and len(readings) < 20:
                readings.append(inner)
    best = max(readings, key=lambda reading: (len(wanted & reading.keys()), -len(reading)))
    kept = {id(value) for value in best.values()}
    gone = [key for key, weight in parts.items() if id(computed[weight]) in kept]
    return best, [key for key, value in state.items() if id(value) not in kept and key not in gone], gone


def _inferred_arguments(state: State, fresh: State, definition: Definition) -> dict[str, Any]:
    """Arguments that would explain how the file's tensors differ from the architecture's defaults."""
    found: dict[str, Any] = {}
    differing = [key for key in fresh if key in state and state[key].shape != fresh[key].shape]
    rows = {state[key].shape[0] for key in differing if _differs_only_at(0, state[key], fresh[key])}
    columns = {state[key].shape[1] for key in differing if _differs_only_at(1, state[key], fresh[key])}
    if len(rows) == 1 and definition.takes("num_classes"):
        found["num_classes"] = rows.pop()
    if len(columns) == 1 and definition.takes(definition.channels_argument):
        found[definition.channels_argument] = columns.pop()
    absent = [key for key in fresh if key not in state]
    if absent and definition.takes("aux_logits") and all(key.lower().startswith("aux") for key in absent):
        found["aux_logits"] = False
    if "num_classes" not in found and definition.takes("transform_input"):
        # With the published classes the weights are taken for the published ones, which were trained like this.
        found["transform_input"] = True
    return {key: value for key, value in found.items() if key not in definition.arch.arguments}


def _differs_only_at(dim: int, one: Tensor, other: Tensor) -> bool:
    if one.ndim != other.ndim or one.ndim <= dim:
        return False
    return all((one.shape[each] == other.shape[each]) == (each != dim) for each in range(one.ndim))


def _fits(state: State, wanted: State) -> bool:
    return all(key in state and state[key].shape == value.shape for key, value in wanted.items() if value.ndim)


def _shape(tensor: torch.Tensor) -> str:
    return units.shape(tensor.shape) or "a number"
