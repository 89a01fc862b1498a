"""`--config`: a file says what flags would, flags win, a run's settings give the same run, mistakes are named."""

import json

import pytest

from tests.cli.command import check_golden

DIGITS = "sample_models/digits_cnn.safetensors"
MLP = "sample_models/mlp.py:build"
ARCH = "sample_models/digits_cnn.py:build"


def settings_of(ran):
    assert ran.code == 0, ran.err
    return json.loads(ran.out)["settings"]


@pytest.fixture
def written(compressor):
    def write(text, name="run.toml"):
        path = compressor.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


FLAGS_AND_TOML = {
    "prune": (
        ["prune", DIGITS, "--ratio-for", "3=0.25", "--keep", "0", "--seed", "5", "--no-latency", "--lr", "0.3"],
        ["prune"],
        f'model = "{DIGITS}"\nratio-for = ["3=0.25"]\nkeep = ["0"]\nseed = 5\nlatency = false\nlr = 0.3\n',
    ),
    "adapnet": (
        ["prune", DIGITS, "--method", "adapnet", "--preset", "quick", "--data", "digits", "--chi-s", "8"],
        ["prune", DIGITS],
        'method = "adapnet"\npreset = "quick"\ndata = "digits"\nchi_s = 8\n',
    ),
    "train": (
        ["train", "--arch", ARCH, "--arch-arg", "width=0.5", "--data", "digits", "--mean", "0.5", "--std", "0.3"],
        ["train"],
        f'arch = "{ARCH}"\narch_arg = {{ width = 0.5 }}\ndata = "digits"\nmean = [0.5]\nstd = [0.3]\n',
    ),
    "route": (
        ["route", DIGITS, "--mode", "paper", "--data", "digits", "--epochs", "10"],
        ["route", DIGITS],
        'mode = "paper"\ndata = "digits"\nepochs = 10\n',
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=[pytest.mark.slow] * (verb in ("adapnet", "route"))) for verb in FLAGS_AND_TOML]
)
def test_a_file_says_what_flags_would(compressor, written, verb):
    flags, words, toml = FLAGS_AND_TOML[verb]
    by_flags = settings_of(compressor(*flags, "--dry-run", "--json"))
    by_file = settings_of(compressor(*words, "--config", written(toml), "--dry-run", "--json"))
    same = {"typed": None, "chosen": None}
    assert {**by_file, **same} == {**by_flags, **same}
    assert set(by_file["chosen"]) == set(by_flags["chosen"])


def test_flags_win(compressor, written):
    path = written('ratio = 0.25\nmethod = "l2"\n')
    settings = settings_of(compressor("prune", DIGITS, "--config", path, "--ratio", "0.4", "--dry-run", "--json"))
    assert (settings["ratio"], settings["method"]) == (0.4, "l2")


RUNS = {
    "prune": ["prune", DIGITS, "--method", "fpgm", "--ratio", "0.3", "--keep", "0"],
    "prune-data": ["prune", DIGITS, "--data", "digits", "--epochs", "3", "--input", "1x8x8"],
    "adapnet": ["prune", DIGITS, "--method", "adapnet", "--preset", "quick", "--data", "digits", "--max-epochs", "20"],
    "train": ["train", "--arch", ARCH, "--arch-arg", "width=0.5", "--data", "digits"],
    "finetune": ["finetune", DIGITS, "--data", "digits", "--schedule", "step", "--mean", "0.5", "--std", "0.3"],
    "detach-nsn": ["detach", "--arch", MLP, "--input", "1x28x28", "--method", "nsn", "--lr", "0.01"],
    "route-paper": ["route", DIGITS, "--mode", "paper", "--epochs", "10", "--data", "digits"],
    "replace": ["replace", DIGITS, "--until", "5", "--fit", "stride", "--data", "digits"],
}


_SLOW = ("prune-data", "adapnet", "route-paper", "replace")


@pytest.mark.parametrize(
    "arguments",
    [pytest.param(words, id=name, marks=[pytest.mark.slow] * (name in _SLOW)) for name, words in RUNS.items()],
)
def test_settings_of_a_run_give_the_same_run(compressor, written, arguments):
    first = settings_of(compressor(*arguments, "--dry-run", "--json"))
    path = written(json.dumps({**first, "cwd": ".", "model_sha256": None}), "settings.json")
    again = settings_of(compressor(arguments[0], "--config", path, "--dry-run", "--json"))
    same = {"typed": None, "chosen": None}
    assert {**again, **same} == {**first, **same}


@pytest.mark.parametrize("named", ["--trust", "--overwrite"])
def test_what_a_person_has_to_say_anew_is_not_taken_from_a_run(compressor, written, named):
    first = settings_of(compressor("prune", DIGITS, named, "--dry-run", "--json"))
    path = written(json.dumps(first), "settings.json")
    again = settings_of(compressor("prune", "--config", path, "--dry-run", "--json"))
    assert first[named[2:]] and not again[named[2:]]


def test_code_that_a_run_names_does_not_run_unasked(compressor, written):
    code = written("open('ran', 'w')\n\ndef build(): ...\n", "net.py")
    settings = {"command": "train", "typed": "compressor train", "arch": f"{code}:build", "data": "digits"}
    ran = compressor("train", "--config", written(json.dumps(settings), "settings.json"), "--dry-run")
    assert ran.code == 2 and "never named on this machine" in ran.err and not (compressor.folder / "ran").exists()


WRONG = {
    "unknown": ("epoch = 3\n", "there is no setting 'epoch' (did you mean epochs?); compressor prune knows model"),
    "nothing-like-it": ("zzz = 3\n", "there is no setting 'zzz'; compressor prune knows model"),
    "word-for-number": ('epochs = "five"\n', "epochs is 'five', and has to be a whole number"),
    "half-an-epoch": ("epochs = 2.5\n", "epochs is 2.5, and has to be a whole number"),
    "yes-for-number": ("epochs = true\n", "epochs is True, and has to be a whole number"),
    "number-for-yes": ("latency = 1\n", "latency is 1, and has to be true or false"),
    "no-choice": ('optimizer = "sdg"\n', "optimizer is 'sdg', and has to be one of sgd, adam, adamw, rmsprop"),
    "out-of-range": ("ratio = 7\n", "ratio is 7, and has to be 1 or less"),
    "list-of-words": ('mean = ["a"]\n', "mean is ['a'], and has to be a list of numbers"),
    "table": ("[training]\nepochs = 3\n", "[training] is a table, and settings stand on one level"),
    "no-toml": ("epochs = \n", "is no TOML"),
    "other-command": ('{"command": "route", "typed": "x"}', "is of a run of compressor route"),
}


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG)
def test_mistakes_are_named_with_the_file(compressor, written, text, said):
    path = written(text)
    ran = compressor("prune", DIGITS, "--config", path, "--dry-run")
    assert ran.code == 2 and ran.out == "" and ran.err.startswith(f"error: {path}") and said in ran.err
    assert ran.err.count("\n") == 1


def test_a_file_that_is_not_there(compressor):
    ran = compressor("prune", DIGITS, "--config", "nowhere.toml", "--dry-run")
    check_golden("error-no-config", ran, compressor.folder)
