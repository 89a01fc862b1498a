"""The figure that thop gives for a model: the convention of several papers, shown beside the exact count.

thop hangs hooks on modules of the classes it knows: it counts bias and batch norm too, and misses whatever is called
as a function.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from compressor.errors import cause
from compressor.graph.held import with_tensors
from compressor.graph.skeleton import Replica
from compressor.graph.trace import Way, alike, call_arguments


def thop_macs(module: nn.Module, example: Any) -> tuple[int | None, str | None]:
    """thop's "MACs" for `example`, or None and the reason why there is no figure; never raises.

    Run on a copy, since thop leaves its buffers in the module when it fails; on shapes alone where the model allows.
    """
    arguments, keywords = call_arguments(example, module)
    if keywords:
        return None, "thop takes inputs by position only"
    weighted = [id(layer) for _, layer in module.named_modules(remove_duplicate=False) if layer._parameters]
    if len(weighted) > len(set(weighted)):
        return None, "a layer stands in several places of the network, and thop would count it once for each"
    reason = ""
    for real in (False, True):
        try:
            replica = Replica(module, real=real)
            with _silence(), alike(replica, Way(example)):
                return _run_thop(replica, arguments), None
        except Exception as error:  # thop and the user's own code may fail in any way
            reason = cause(error)
    return None, f"thop failed: {reason}"


def left_out(module: nn.Module, macs: Mapping[str, int]) -> int:
    """How many of a model's multiply-adds thop cannot see: those of operators in no layer of a class that it knows.

    `macs` are the exact ones by the name of the innermost module.
    """
    with _silence():
        from thop.profile import register_hooks
    layers = dict(module.named_modules(remove_duplicate=False))
    return sum(count for name, count in macs.items() if type(layers[name]) not in register_hooks)


def _run_thop(replica: Replica, arguments: tuple[Any, ...]) -> int:
    import thop

    inputs = with_tensors(arguments, lambda tensor: tensor.detach().to(replica.device))
    macs, _ = thop.profile(replica.model, inputs=inputs, verbose=False)
    return round(float(macs))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """thop prints, logs and warns about its own age; nothing of it concerns the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
