"""A plan as a file: `prune --dry-run --out FOLDER` leaves it, a person may edit it, `prune --plan` carries it out.

A group of coupled channels stands on a line, with the positions of those that go among its channels, counted from 0.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compressor.errors import FileError, UsageError, did_you_mean, shown
from compressor.files.paths import write_whole
from compressor.graph.channels import Channels, Group
from compressor.pruning.selection import Selection
from compressor.surgery import Plan, Prune
from compressor.surgery.edits import BlockEdit, Edit, plan_of, rows_of

FORMAT, VERSION, NAME = "compressor plan", 1, "plan.json"
_LONGEST = 1 << 26  # characters
_KEYS = ("format", "version", "groups")  # all else are numbers for a person


def write_plan(
    folder: Path, selection: Selection, channels: Channels, expected: Mapping[str, Any], *, overwrite: bool
) -> Path:
    """Write the plan into a folder, which is made; every group that may be pruned is in it, and what a run `expected`.

    Raises:
        UsageError: another plan is there, which a person may have edited.
        FileError: it cannot be written.
    """
    path = folder / NAME
    gone = {edit.group: set(edit.channels) for edit in selection.plan.edits}
    lines = [_line(group, gone.get(group.name, set())) for group in channels.free]
    head = {"format": FORMAT, "version": VERSION, "macs": selection.macs, "params": selection.params}
    head |= {name: value and round(value) for name, value in expected.items()}
    about = "".join(f"  {json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items())
    text = "{\n" + about + '  "groups": {\n' + ",\n".join(lines) + "\n  }\n}\n"
    if path.exists() and not overwrite and _groups(path.read_text(encoding="utf-8")) != _groups(text):
        raise UsageError(f"{path} holds another plan: give another `out`, or `overwrite` to replace it")
    return write_whole(path, text)


def _groups(text: str) -> str:
    """The groups of a plan: its text without the head, whose estimate differs each time."""
    return text[text.find('"groups"') :]


def _line(group: Group, gone: set[int]) -> str:
    at = [position for position, identity in enumerate(group.ids.tolist()) if identity in gone]
    return f"    {json.dumps(group.name)}: {json.dumps({'channels': group.size, 'remove': at})}"


def structure_of(edits: Iterable[Edit | BlockEdit], refused: Mapping[str, str], notes: Iterable[str]) -> dict[str, Any]:
    """What was decided as plain types, for a run's checkpoint."""
    return {"edits": list(rows_of(edits)), "refused": dict(refused), "notes": list(notes)}


def selection_of(structure: Mapping[str, Any], channels: Channels) -> Selection:
    """The selection that `structure_of` wrote down.

    Raises:
        FileError: it is of another network.
    """
    try:
        rows, refused, notes = structure["edits"], dict(structure["refused"]), tuple(structure["notes"])
        plan = Plan() if not rows and "blocks" in structure else plan_of(rows)  # blocks alone may have met the target
        known = {group.name: set(group.ids.tolist()) for group in channels.free}
        if not all(set(edit.channels) < known[edit.group] for edit in plan.edits):
            raise ValueError("it removes channels that the network lacks")
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"the checkpoint's plan does not fit the network ({error}): start the run again") from error
    return Selection(plan, channels.macs(plan.removed), channels.params(plan.removed), refused, notes)


def read_plan(path: str, channels: Channels) -> Selection:
    """The channels that a plan, edited or not, removes from this network, and the costs that are left.

    Raises:
        FileError: the file cannot be read or is no plan.
        UsageError: a line does not fit the network; nothing would go.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"`plan` {path} cannot be read ({getattr(error, 'strerror', error)})") from error
    try:
        content = json.loads(text) if len(text) <= _LONGEST else None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("groups"), dict):
        raise FileError(f"{path} is no plan: `compressor prune MODEL --dry-run --out FOLDER` writes one")
    if content.get("version") != VERSION:
        raise FileError(f"{path} is a plan of version {content.get('version')!r}, this compressor reads {VERSION}")
    for name, value in content.items():
        if name not in _KEYS and not isinstance(value, float | int | None):
            raise UsageError(f"{path}: a plan has no {shown(name)}{did_you_mean(name, _KEYS)}")
    edits = []
    for name, wanted in content["groups"].items():
        try:
            edit = _edit(name, wanted, channels)
        except UsageError as error:
            raise UsageError(f"{path}, line {_line_of(name, text)}: {error}") from error
        edits += [] if edit is None else [edit]
    if not edits:
        raise UsageError(f"{path} removes nothing")
    plan = Plan(tuple(edits))
    touched = {edit.group for edit in edits}
    left = {group.name: "the plan takes nothing of it" for group in channels.free if group.name not in touched}
    return Selection(plan, channels.macs(plan.removed), channels.params(plan.removed), left)


def _edit(name: str, wanted: Any, channels: Channels) -> Prune | None:
    """The edit of one line; None where it removes nothing.

    Raises UsageError.
    """
    groups = {group.name: group for group in channels.groups}
    if name not in groups:
        raise UsageError(f"the network has no group {shown(name)}{did_you_mean(name, groups)}")
    group = groups[name]
    gone = wanted.get("remove") if isinstance(wanted, Mapping) else None
    known = isinstance(wanted, Mapping) and wanted.keys() <= {"channels", "remove"}
    if not known or not isinstance(gone, list) or not all(type(each) is int for each in gone):
        raise UsageError('a group is written {"channels": 64, "remove": [0, 5]}')
    if wanted.get("channels") != group.size:
        raise UsageError(f"{name} has {group.size} channels here, and not {wanted.get('channels')!r}")
    if not gone:
        return None
    if group.frozen is not None:
        raise UsageError(f"{name} is frozen: {group.frozen}")
    odd = [each for each in gone if not 0 <= each < group.size]
    if odd:
        raise UsageError(f"{name} has channels 0 to {group.size - 1}, and no {odd[0]}")
    if len(set(gone)) < len(gone):
        raise UsageError(f"{name} removes a channel twice")
    if len(gone) == group.size:
        raise UsageError(f"{name} would lose all its channels: one has to stay")
    return Prune(name, tuple(sorted(group.ids[gone].tolist())), "by the plan that was given")


def _line_of(name: str, text: str) -> int:
    """Where a group stands in the file."""
    return text[: max(text.find(f"{json.dumps(name)}:"), 0)].count("\n") + 1
