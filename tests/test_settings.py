"""Settings: what a text says, what fits, and what a job is made of."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from compressor.errors import UsageError
from compressor.pruning.settings import PruneSettings
from compressor.runs.jobs import VERBS, DetachJob, PruneJob, RouteJob
from compressor.settings import About, Job, Known, checked, filled, known_to, read, setting

MODEL = {"model": "net.safetensors"}


def made_of(hint, text, **about):
    return checked("it", text, Known(hint, None, About("Write it, such as 8.", **about), "", ("",)))


def test_arguments_are_literals_or_words():
    given = ["width=0.5", "pool=(2, 2)", "name = relu", "deep=True", "equal=a=b"]
    found = checked("arch_arg", given, known_to(PruneJob)["arch_arg"])
    assert found == (("width", 0.5), ("pool", (2, 2)), ("name", "relu"), ("deep", True), ("equal", "a=b"))


@pytest.mark.parametrize("text", ["width", "=3", "a b=3", ""])
def test_what_is_no_argument(text):
    with pytest.raises(UsageError, match="is not of the form KEY=VALUE, such as num_classes=10"):
        checked("arch_arg", [text], known_to(PruneJob)["arch_arg"])


def test_ratios_may_have_an_equals_sign_in_the_pattern():
    found = checked("ratio_for", ["layer1.*=0.2", "a=b=0.5"], known_to(PruneJob)["ratio_for"])
    assert found == (("layer1.*", 0.2), ("a=b", 0.5))


@pytest.mark.parametrize("text", ["0.5", "a=", "=0.5", "a=b"])
def test_what_is_no_ratio(text):
    with pytest.raises(UsageError, match="is not of the form LAYER=SHARE, such as 'layer1"):
        checked("ratio_for", [text], known_to(PruneJob)["ratio_for"])


def test_texts_are_read_as_the_type_says():
    round_to = known_to(PruneJob)["round_to"]
    assert (checked("round_to", "8", round_to), checked("round_to", "auto", round_to)) == (8, "auto")
    with pytest.raises(UsageError, match="a whole number or auto"):
        checked("round_to", "eight", round_to)
    assert made_of(tuple[int, ...], "30, 60") == (30, 60) and made_of(tuple[float, ...], "0.5,1") == (0.5, 1.0)
    assert made_of(tuple[str, ...] | None, "a.b, c") == ("a.b", "c") and made_of(tuple[str, ...], ["a,b"]) == ("a,b",)
    with pytest.raises(UsageError, match="is not a list of whole numbers"):
        made_of(tuple[int, ...], "30;60")
    with pytest.raises(UsageError, match="has to be a whole number"):  # numbers are no texts
        made_of(int, "3")


@pytest.mark.parametrize(
    ("hint", "value"),
    [(int, True), (int, 2.0), (float, True), (bool, 1), (str, 3), (tuple[int, ...], (1, 2.5)), (int | None, "x")],
)
def test_values_of_another_type_are_refused(hint, value):
    with pytest.raises(UsageError, match="it is .* and has to be"):
        made_of(hint, value)


def test_ranges_are_of_the_setting_wherever_a_value_comes_from():
    with pytest.raises(UsageError, match="ratio is 7, and has to be 1 or less"):
        read(VERBS["prune"], {**MODEL, "ratio": 7.0}, verb="prune")
    with pytest.raises(UsageError, match="min_channels is 0, and has to be 1 or more"):
        filled(PruneSettings(), {"min_channels": 0})
    assert filled(PruneSettings(), {"ratio": 0, "keep": ["a"]}) == PruneSettings(ratio=0, keep=("a",))


def test_a_preset_is_what_nobody_chose():
    """Bases come before what was given, and what follows from other settings after it."""
    nested = read([DetachJob], {**MODEL, "method": "nsn", "epochs": 600, "lr": 0.2}, verb="detach")
    assert (nested.training.milestones, nested.training.lr, nested.training.weight_decay) == ((200, 400), 0.2, 0.0)
    letter = read([RouteJob], {**MODEL, "mode": "paper", "heads": "own", "target_macs": 0.5}, verb="route")
    assert (letter.choice.labels, letter.choice.heads, letter.choice.threshold) == ("paper", "own", None)
    assert letter.training.optimizer == "rmsprop" and letter.chosen == ("model", "mode", "heads", "target_macs")


@dataclass(frozen=True)
class Inner:
    seed: int = setting(0, "Of chance.")


@dataclass(frozen=True)
class Shared(Job):
    LACKS: ClassVar[dict[str, str]] = {"gone": "do without"}

    seed: int = setting(5, "Of chance.")
    inner: Inner = field(default_factory=Inner)
    inside: str = ""  # no setting: nobody can give it
    needed: str = setting("", "Something.")


def test_a_setting_of_several_classes_is_given_once():
    assert known_to(Shared)["seed"].homes == ("", "inner")
    job = read([Shared], {"seed": 3}, verb="it")
    assert (job.seed, job.inner.seed) == (3, 3)
    assert (read([Shared], {}, verb="it").seed, read([Shared], {}, verb="it").inner.seed) == (5, 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"inside": "x"}, r"there is no setting 'inside' .*; it knows seed, needed"),
        ({"gone": 1}, "gone is not for it: do without"),
        ({"seeds": 1}, r"did you mean seed\?"),
    ],
)
def test_names_that_a_job_does_not_have(given, said):
    with pytest.raises(UsageError, match=said):
        read([Shared], given, verb="it")


def test_a_setting_without_default_has_to_be_given():
    with pytest.raises(UsageError, match="--data is missing: give digits, mnist:DIR"):
        read(VERBS["train"], {"arch": "x"}, verb="train", spell=lambda name: f"--{name}")


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_says_what_it_is(verb):
    for kind in VERBS[verb]:
        for name, known in known_to(kind).items():
            assert known.about.text.strip(), name
            assert known.about.least is None or isinstance(known.about.least, int | float), name
