"""Keep a file from asking for a network out of all proportion to it: a million classes, layers without end.

How a network is built again is for the file to say, so a file of a few bytes could fill the memory by its arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from compressor.errors import FileError
from compressor.files.limits import GIB
from compressor.loading.arch import Definition

# The fresh network may be so many times the one in the file, which was perhaps pruned, or this large in any case.
_TIMES = 64
_ALWAYS = GIB
_MODULES_A_TENSOR = 20
_MODULES_ALWAYS = 2000


class _Absurd(BaseException):
    """Passes through builders, which take any Exception for a wrong argument."""


@dataclass(frozen=True)
class Proportion:
    """How much of a network may be built for a file's sake."""

    path: Path
    most_bytes: int
    most_modules: int

    @classmethod
    def to(cls, state: Iterable[Any], path: Path) -> Proportion:
        """What is in proportion to a file's weights."""
        tensors = [each for each in state if isinstance(each, Tensor)]
        held = sum(each.nbytes for each in tensors)
        return cls(path, max(_ALWAYS, _TIMES * held), _MODULES_ALWAYS + _MODULES_A_TENSOR * len(tensors))

    def build(self, definition: Definition) -> nn.Module:
        """Build an architecture with arguments out of the file.

        Raises FileError where the network gets out of proportion, UsageError where it cannot be built.
        """
        with self.watching():
            if not definition.arch.is_code:
                _rehearse(definition)  # nobody's own code is run twice
            return definition.build()

    def check(self, module: nn.Module) -> None:
        """Raises FileError where a network that was rebuilt got out of proportion."""
        if sum(each.nbytes for each in (*module.parameters(), *module.buffers())) > self.most_bytes:
            raise self._error()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Stop what is built meanwhile as soon as it is too much."""
        seen = {"bytes": 0, "modules": 0}

        def tensor(_: nn.Module, __: str, value: Any) -> None:
            seen["bytes"] += value.nbytes if isinstance(value, Tensor) else 0
            if seen["bytes"] > self.most_bytes:
                raise _Absurd

        def module(_: nn.Module, __: str, ___: Any) -> None:
            seen["modules"] += 1
            if seen["modules"] > self.most_modules:
                raise _Absurd

        hooks = (
            registration.register_module_parameter_registration_hook(tensor),
            registration.register_module_buffer_registration_hook(tensor),
            registration.register_module_module_registration_hook(module),
        )
        try:
            yield
        except _Absurd:
            raise self._error() from None
        finally:
            for hook in hooks:
                hook.remove()

    def _error(self) -> FileError:
        return FileError(
            f"{self.path} asks for a network out of all proportion to its weights: it is damaged, or made to fill the "
            "memory"
        )


def _rehearse(definition: Definition) -> None:
    """Build once without memory, since some layers fill their weights before anyone is told of them."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            definition.build()
    except Exception:
        return  # some networks compute with their weights as they are built; the real attempt says what is wrong
