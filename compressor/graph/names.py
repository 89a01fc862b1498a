"""Names of layers as a person writes them: a layer, a block, a parameter, a pattern, with the prefix of a wrapper."""

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

import numpy as np
from torch import nn

from compressor.errors import UsageError, did_you_mean
from compressor.graph.channels import Channels, Group, owner
from compressor.graph.tensors import named_modules

_WRAPPERS = ("module", "_orig_mod")  # what DataParallel and torch.compile put in front of a name


def names_of(model: nn.Module) -> dict[str, str]:
    """Every name of every module, parameter and buffer -> its first name; what is shared has several."""
    first: dict[int, str] = {}
    modules = named_modules(model, every=True)
    found = {path: first.setdefault(id(module), path) for path, module in modules if path}
    for kind in ("_parameters", "_buffers"):
        for path, module in modules:
            for name, tensor in getattr(module, kind).items():
                if tensor is not None:
                    place = f"{path}.{name}" if path else name
                    found[place] = first.setdefault(id(tensor), place)
    return found


def matching(pattern: str, names: Mapping[str, str], what: str) -> frozenset[str]:
    """The first names of all that a pattern means, wildcards allowed; a block's name means everything in it.

    Args:
        what: the setting that holds the pattern, for the message.

    Raises:
        UsageError: nothing is named like that.
    """
    if not isinstance(pattern, str):
        raise UsageError(f"{what} takes names of layers, not {type(pattern).__name__}")
    asked = _bare(pattern.partition("#")[0])  # of groups whose producer has several kinds of channels
    found = frozenset(first for name, first in names.items() if asked and _means(asked, _bare(name)))
    if not found:
        known = did_you_mean(asked, names) or f"; the layers are {_listed(names)}"
        raise UsageError(f"{what}: no layer is named {pattern!r}{known}")
    return found


def labels(group: Group) -> frozenset[str]:
    """The names that stand for a group: the layers that make its channels, norms on them, and their parameters."""
    rows = [place.tensor for place in group.places if place.role == "row"]
    return frozenset((*group.producers, *rows, *map(owner, rows)))


def groups_named(pattern: str, channels: Channels, what: str) -> tuple[Group, ...]:
    """The groups that a pattern means; a layer without channels of its own (an activation) means those it passes on.

    Raises:
        UsageError: nothing is named like that.
    """
    if any(group.name == pattern for group in channels.groups):
        return (channels.group(pattern),)
    found = matching(pattern, channels.names or _names_in(channels), what)
    groups = tuple(group for group in channels.groups if found & labels(group))
    passed = [site.ids for site in channels.sites_by_module if site.module in found]
    if groups or not passed:
        return groups
    ids = np.concatenate(passed)
    return tuple(group for group in channels.groups if np.isin(group.ids, ids).any())


def module_named(name: str, names: Mapping[str, str], modules: Collection[str]) -> str | None:
    """The first name of the module that a name means, which may have a wrapper's prefix or be that of a parameter."""
    asked = [each for each in names if each == name] or [each for each in names if _bare(each) == _bare(name)]
    found = names[asked[0]] if asked else None
    return found if found is None or found in modules else owner(found)


def _names_in(channels: Channels) -> dict[str, str]:
    """The names that a map itself has, where it does not have the model's."""
    own = {name for group in channels.groups for name in labels(group)}
    return {name: name for name in own | {site.module for site in channels.sites_by_module}}


def _means(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _listed(names: Iterable[str], most: int = 8) -> str:
    shown = [name for name in names if "." not in name] or list(names)
    return ", ".join(shown[:most]) + (" ..." if len(shown) > most else "")
