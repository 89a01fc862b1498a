"""An exported network as it runs: its graphs opened, one exit of it called, and the operators that are executed."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import CompressorError, first_line
from compressor.exporting.engines import Run
from compressor.exporting.forms import Form
from compressor.exporting.run import Network
from compressor.exporting.runtime import by_name, open_session, put_together
from compressor.exporting.samples import in_order
from compressor.report.manifest import Array


def opened(folder: Path, graphs: Mapping[str, str], runtime: str, form: Form, threads: int) -> Network:
    """The graphs in a folder as the package's own script runs them."""
    return Network(folder, threads, {"runtime": runtime, "graphs": graphs, "exits": form.exits, "tuned": None})


class Runner:
    """One exit of an exported network: a batch of images, or of each input, to a list of outputs."""

    def __init__(
        self, run: Run, feeds: Mapping[str, Array], names: Sequence[str] = ("input",), gives: object = 0
    ) -> None:
        self._run, self._feeds, self._names, self._gives = run, dict(feeds), names, gives

    def __call__(self, *given: Array, **named: Array) -> list[Array]:
        """All outputs.

        Raises:
            CompressorError: the runtime cannot run it.
        """
        batches = {name: np.ascontiguousarray(each) for name, each in by_name(self._names, given, named).items()}
        try:
            return self._run({**batches, **self._feeds})
        except Exception as error:  # every runtime has exceptions of its own
            raise CompressorError(f"the exported graph does not run ({first_line(error)})") from error

    def answer(self, *given: Array, **named: Array) -> Any:
        """What the model returned."""
        return put_together(self._gives, self(*given, **named))


def arrays(inputs: Any, names: Sequence[str]) -> dict[str, Array]:
    """What a graph is given, by the names of its inputs."""
    return {name: each.numpy() for name, each in zip(names, in_order(inputs, names), strict=True)}


def executed(file: Path, inputs: Mapping[str, Array]) -> Counter[str]:
    """How often each operator ran for one image, by ONNX Runtime's profiler."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(file, profile=Path(folder) / "profile")
        Runner(partial(session.run, None), {})(**inputs)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    names = (event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"))
    return Counter(event["args"]["op_name"] for event in names)
