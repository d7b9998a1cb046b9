"""What a user calls MODEL, in every form, and what is said when it names nothing or brings something else."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from statecheck.checkpoint import load_weights, save_weights, tensors_digest
from statecheck.errors import CheckpointRefused, InputRefused, StatecheckError, UsageError
from statecheck.naming import Kind, Named, read_spec
from statecheck.resolve import Request, Subject, registered_model, resolve

torch.set_num_threads(1)

#: A package that registers models, as a third party would write it.
PLUGIN = '''
import torch
from torch import nn
from statecheck.protocol import RegisteredModel

class Tiny(nn.Module):
    """A language model of one GRU."""

    def __init__(self, vocabulary=11, width=6):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.readout = nn.Linear(width, vocabulary)
        self.h = None

    def forward(self, ids):
        x, self.h = self.rnn(self.embedding(ids), self.h)
        return self.readout(x)

    def get_states(self):
        return {} if self.h is None else {"layers.0.h": self.h[0]}

    def set_states(self, states):
        self.h = None if states is None else states["layers.0.h"][None]

def build(config):
    for key in config:
        if key not in ("vocabulary", "width"):
            raise ValueError(f"unknown key {key!r}")
    return Tiny(**config)

def explode(config):
    raise RuntimeError("first line\\nsecond line")

def walk_out(config):
    raise SystemExit(1)

from pathlib import Path
folder = Path(__file__).parent / "tiny_folder"
tiny = RegisteredModel("tiny", "Tiny GRU", build, folder, folder)
bare = RegisteredModel("bare", "No weights", build)
exploding = RegisteredModel("exploding", "Raises", explode, folder)
leaving = RegisteredModel("leaving", "Exits", walk_out, folder)
wrong = RegisteredModel("wrong", "Builds no module", lambda config: "a string", folder)
not_one = Tiny
'''
POINTS = """[statecheck.models]
tiny = tiny_plugin:tiny
bare = tiny_plugin:bare
exploding = tiny_plugin:exploding
leaving = tiny_plugin:leaving
wrong = tiny_plugin:wrong
not-one = tiny_plugin:not_one
broken = broken_plugin:model
absent = absent_plugin:model
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages with the plug-ins above; the working directory is another, empty one."""
    folder, work = tmp_path / "site", tmp_path / "work"
    information = folder / "tiny_plugin-1.0.dist-info"
    information.mkdir(parents=True)
    work.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-plugin\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(POINTS)
    (folder / "tiny_plugin.py").write_text(PLUGIN)
    (folder / "broken_plugin.py").write_text("raise OSError('no driver')\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(work)
    known = set(sys.modules)
    import tiny_plugin  # type: ignore[import-not-found]

    write_folder(folder / "tiny_folder", tiny_plugin.Tiny())
    yield folder
    for name in set(sys.modules) - known:
        if name.endswith("_plugin") or name.startswith("mine"):
            del sys.modules[name]


def write_folder(folder: Path, module: nn.Module, **changes: Any) -> Path:
    folder.mkdir()
    save_weights(folder / "model.safetensors", module.state_dict(), {})
    (folder / "tok.json").write_text("{}")
    (folder / "log.jsonl").write_text("")
    said = {"model": "tiny", "config": {}, "training_length": 48, "tokenizer": "tok.json", "training_log": "log.jsonl"}
    (folder / "config.json").write_text(json.dumps({**said, **changes}))
    return folder


def tiny(site: Path, **config: int) -> nn.Module:
    return registered_model("tiny").build(config)


def module_of(subject: Subject) -> nn.Module:
    return subject.model.module  # type: ignore[attr-defined]


def refusal_of(request: Request, error: type[StatecheckError] = InputRefused) -> str:
    with pytest.raises(error) as caught:
        resolve(request)
    assert caught.value.exit_code == (2 if error is UsageError else 4)
    line = str(caught.value)
    assert line.isprintable()
    return line


# Registered models


def test_no_model_is_the_bundled_reference_on_its_own_text() -> None:
    subject = resolve(Request())
    assert subject.origin.startswith("registered model 'reference'")
    assert subject.text is not None
    assert subject.text.is_dir()
    assert subject.tokenizer is not None
    assert subject.model.facts.training_length


def test_a_registered_model_comes_with_all_that_its_folder_names(site: Path) -> None:
    subject = resolve(Request("tiny"))
    folder = site / "tiny_folder"
    assert (subject.title, subject.text) == ("Tiny GRU", folder)
    assert (subject.tokenizer, subject.training_log) == (folder / "tok.json", folder / "log.jsonl")
    assert subject.origin == f"registered model 'tiny' (tiny_plugin:tiny), weights {folder / 'model.safetensors'}"
    assert subject.digest == load_weights(folder).sha256
    facts = subject.model.facts
    assert (facts.training_length, facts.vocabulary, facts.tokenizer) == (48, 11, folder / "tok.json")
    assert not module_of(subject).training


def test_the_command_line_comes_before_the_folder(site: Path) -> None:
    subject = resolve(Request("tiny", tokenizer="my/tok.json", training_log="my/log.jsonl"))
    assert (subject.tokenizer, subject.training_log) == (Path("my/tok.json"), Path("my/log.jsonl"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", ("'broken' (broken_plugin:model) raised OSError: no driver", "mend that code")),
        ("absent", ("'absent' (absent_plugin:model) raised ModuleNotFoundError", "absent_plugin")),
        ("not-one", ("expected a statecheck.RegisteredModel, found a type",)),
        ("exploding", ("building 'exploding' raised RuntimeError: first line second line",)),
        ("leaving", ("building 'leaving' raised SystemExit: 1",)),
        ("wrong", ("building 'wrong': expected an nn.Module, found a str",)),
    ],
)
def test_a_plug_in_that_fails_is_one_line(name: str, words: tuple[str, ...], site: Path) -> None:
    line = refusal_of(Request(name))
    assert all(word in line for word in words), line


def test_a_registered_architecture_without_weights_asks_for_a_checkpoint(site: Path) -> None:
    assert "give a checkpoint with --model bare" in refusal_of(Request("bare"), UsageError)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("tinny", ("'tinny' is no registered model", "did you mean tiny?")),
        ("zzzz", ("no registered model", "known are", "reference", "tiny")),
        ("my_models.make", ("if it is code, write my_models:make",)),
        ("my_models.py:make", ("did you mean my_models:make?",)),
        ("./sub/my_models.py:make", ("did you mean sub.my_models:make?",)),
        ("", ("empty word", "package.module:factory")),
    ],
)
def test_a_name_that_nothing_bears_is_a_usage_error(spec: str, words: tuple[str, ...], site: Path) -> None:
    line = refusal_of(Request(spec), UsageError)
    assert all(word in line for word in words), line


def test_a_checkpoint_with_a_registered_name_is_ambiguous(site: Path) -> None:
    Path("tiny").mkdir()
    assert read_spec("tiny") == Named(Kind.REGISTERED, "tiny"), "a folder of another kind changes nothing"
    assert resolve(Request("tiny")).title == "Tiny GRU"
    save_weights("tiny/model.safetensors", tiny(site).state_dict(), {})
    assert "write ./tiny for the checkpoint" in refusal_of(Request("tiny"), UsageError)
    assert read_spec("./tiny").kind is Kind.PATH
    assert read_spec(None) == Named(Kind.REGISTERED, "reference")


# Checkpoints


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_names_its_registered_model(suffix: str, site: Path) -> None:
    module, path = tiny(site, width=4), Path(f"m{suffix}")
    if suffix == ".pt":
        torch.save({"model": module.state_dict(), "statecheck": {"model": "tiny", "config": {"width": 4}}}, path)
    else:
        save_weights(path, module.state_dict(), {"statecheck.model": "tiny", "statecheck.config": '{"width": 4}'})
    subject = resolve(Request(str(path)))
    assert tensors_digest(module_of(subject)) == tensors_digest(module)
    assert subject.origin == f"checkpoint m{suffix} of registered model 'tiny'"
    assert subject.title == f"m{suffix} (tiny)"
    assert (subject.digest, subject.text) == (load_weights(path).sha256, None)


def test_a_folder_names_its_model_and_components(site: Path) -> None:
    folder = write_folder(Path("run"), tiny(site, width=5), config={"width": 5}, components={"gru": "layers.*"})
    subject = resolve(Request("run"))
    assert list(subject.model.facts.components) == ["gru"]
    assert subject.model.facts.training_length == 48
    assert subject.tokenizer == folder / "tok.json"
    assert subject.title == "run (tiny)"


def test_a_lone_file_has_what_its_architecture_declares(site: Path) -> None:
    said = {"components": {"gru": "layers.*"}, "selective": False, "states": {"*": {"recurrence": "dense"}}}
    shutil.rmtree(site / "tiny_folder")
    write_folder(site / "tiny_folder", tiny(site), **said)
    save_weights(Path("m.safetensors"), tiny(site).state_dict(), {"statecheck.model": "tiny"})
    facts = resolve(Request("m.safetensors")).model.facts
    assert {name: one.selective for name, one in facts.components.items()} == {"gru": False}
    assert {one.recurrence for one in facts.states.values()} == {"dense"}
    assert facts.training_length is None, "the length belongs to the weights, not to the architecture"
    write_folder(Path("mine"), tiny(site), selective=True, states={"*": {"recurrence": "diagonal"}})
    facts = resolve(Request("mine")).model.facts
    assert [one.selective for one in facts.components.values()] == [True], "what a folder says comes first"
    assert {one.recurrence for one in facts.states.values()} == {"diagonal"}


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ({"*": "matrix"}, ("states.* is matrix", "it should be an object of fields")),
        ({"*": {"sort": "matrix"}}, ("no field 'sort'", "recurrence")),
        ({"nothing.*": {"kind": "matrix"}}, ("nothing matches 'nothing.*'",)),
    ],
)
def test_facts_of_states_that_can_not_be_meant_are_refused(states: object, words: tuple[str, ...], site: Path) -> None:
    write_folder(Path("run"), tiny(site), states=states)
    line = refusal_of(Request("run"))
    for word in words:
        assert word in line


def test_bare_weights_need_an_architecture_and_the_line_names_both_options(site: Path) -> None:
    torch.save(tiny(site).state_dict(), "m.pt")
    line = refusal_of(Request("m.pt"), CheckpointRefused)
    assert "does not say of which architecture" in line
    assert "--model NAME" in line
    assert "--loader package.module:function" in line
    subject = resolve(Request("m.pt", model="tiny"))
    assert subject.notes == ("built in the configuration of the registered model 'tiny'",)


def test_what_a_checkpoint_says_and_what_is_asked_may_not_differ(site: Path) -> None:
    save_weights("m.safetensors", tiny(site).state_dict(), {"statecheck.model": "tiny"})
    assert "is of model 'tiny', and --model says 'reference'" in refusal_of(
        Request("m.safetensors", model="reference"), UsageError
    )
    resolve(Request("m.safetensors", model="tiny"))


@pytest.mark.parametrize("written", ["os:system", "tiny_plugin:build", "tiny_plugin.Tiny", "gone"])
def test_no_importable_name_is_taken_from_a_file(written: str, site: Path) -> None:
    save_weights("m.safetensors", tiny(site).state_dict(), {"statecheck.model": written})
    line = refusal_of(Request("m.safetensors"), CheckpointRefused)
    assert f"it is of model {written!r}, which no installed package registers" in line
    assert "install that package, or give --model NAME" in line


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('{"depth": 3}', ("not a configuration of 'tiny' (unknown key 'depth')", "mend it")),
        ('{"width": "wide"}', ("building 'tiny' raised TypeError",)),
        ('{"width": 7}', ("tensors have another shape", "configuration")),
        ("[]", ("its statecheck.config holds a JSON list", "write it again")),
        ("{", ("its statecheck.config is not valid JSON", "write it again")),
    ],
)
def test_a_wrong_configuration_is_refused(config: str, words: tuple[str, ...], site: Path) -> None:
    metadata = {"statecheck.model": "tiny", "statecheck.config": config}
    save_weights("m.safetensors", tiny(site).state_dict(), metadata)
    line = refusal_of(Request("m.safetensors"))
    assert all(word in line for word in words), line


def test_nonfinite_weights_load_and_are_noted_by_name(site: Path) -> None:
    module = tiny(site)
    with torch.no_grad():
        module.readout.weight[0, 0] = float("nan")  # type: ignore[union-attr, operator]
    save_weights("m.safetensors", module.state_dict(), {"statecheck.model": "tiny"})
    assert resolve(Request("m.safetensors")).notes[-1] == "1 weights hold NaN or infinite values: readout.weight"


def test_a_missing_path_is_refused(site: Path) -> None:
    for spec in ("runs/gone", "gone.pt", "./tiny"):
        assert "no such file" in refusal_of(Request(spec), CheckpointRefused)
        assert "no such file" in refusal_of(Request(spec, loader="tiny_plugin:build"), CheckpointRefused)


# The user's own code


MINE = """
import torch
from torch import nn
import statecheck as sc
from tiny_plugin import Tiny

def make():
    torch.manual_seed(0)
    return Tiny()

def finished():
    return sc.wrap(Tiny(), training_length=32)

def load(path):
    model = Tiny()
    model.load_state_dict(torch.load(path, weights_only=True)["theirs"])
    return model

def late():
    import mine_helper
    return mine_helper.make()

class Nested:
    @staticmethod
    def make():
        return Tiny()

model = Tiny()
number = 3
def needs(x): return Tiny()
def none(): return None
def a_class(): return Tiny
def raises(): raise ValueError("bad\\nnews \\x1b[31m")
def leaves(): raise SystemExit("bye")
def stateless(): return nn.Linear(2, 2)
def interrupted(): raise KeyboardInterrupt
"""


@pytest.fixture
def mine(site: Path) -> Path:
    """The user's module, in the working directory."""
    path = Path("mine.py").resolve()
    path.write_text(MINE)
    Path("mine_helper.py").write_text("from tiny_plugin import Tiny as make\n")
    Path("mine_raising.py").write_text("1 / 0\n")
    Path("mine_importing.py").write_text("import no_such_library\n")
    Path("mine_leaving.py").write_text("import sys; sys.exit(0)\n")
    Path("mine_wrong.py").write_text("def make(:\n")
    return path


@pytest.mark.parametrize("attribute", ["make", "finished", "late", "Nested.make"])
def test_a_factory_of_the_users(attribute: str, mine: Path) -> None:
    subject = resolve(Request(f"mine:{attribute}"))
    assert subject.origin == f"ran the code of mine:{attribute}"
    assert subject.model.facts.vocabulary == 11
    assert subject.digest is not None
    assert len(subject.digest) == 64


def test_the_digest_of_a_factory_is_that_of_its_weights(mine: Path) -> None:
    assert resolve(Request("mine:make")).digest == resolve(Request("mine:make")).digest
    torch.manual_seed(1)
    assert resolve(Request("mine:Tiny")).digest != resolve(Request("mine:Tiny")).digest


def test_only_code_named_by_the_user_sees_the_working_directory(mine: Path) -> None:
    resolve(Request("tiny"))
    assert str(mine.parent) not in sys.path
    refusal_of(Request("mine:make", working_directory_on_path=False), UsageError)
    assert str(mine.parent) not in sys.path
    resolve(Request("mine:make"))
    assert sys.path[-1] == str(mine.parent), "at the end, where it can hide no installed module"


def test_a_loader_opens_a_file_of_its_own_kind(mine: Path) -> None:
    module = registered_model("tiny").build({})
    torch.save({"theirs": module.state_dict()}, "m.pt")
    subject = resolve(Request("m.pt", loader="mine:load"))
    assert subject.digest == tensors_digest(module)
    assert subject.origin == "ran the code of mine:load on m.pt"


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("gone:make", UsageError, ("no module 'gone'", "lies in")),
        ("mine.sub:make", UsageError, ("no module 'mine.sub'",)),
        ("mine:gone", UsageError, ("mine.py", "has no 'gone'")),
        ("mine:number", InputRefused, ("expected a function, found a int",)),
        ("mine:needs", InputRefused, ("a function of no argument", "'x'")),
        ("mine:model", InputRefused, ("is a model; expected a function that makes one",)),
        ("mine:none", InputRefused, ("expected an nn.Module or a StatefulModel, found a NoneType",)),
        ("mine:a_class", InputRefused, ("expected an nn.Module or a StatefulModel, found a type",)),
        ("mine:raises", InputRefused, ("mine:raises raised ValueError: bad news", "mend that code")),
        ("mine:leaves", InputRefused, ("mine:leaves raised SystemExit: bye",)),
        ("mine:stateless", InputRefused, ("mine:stateless", "get_states")),
        ("mine_raising:make", InputRefused, ("importing mine_raising raised ZeroDivisionError",)),
        ("mine_importing:make", InputRefused, ("raised ModuleNotFoundError", "no_such_library")),
        ("mine_leaving:make", InputRefused, ("importing mine_leaving raised SystemExit: 0",)),
        ("mine_wrong:make", InputRefused, ("raised SyntaxError", "mine_wrong.py")),
    ],
)
def test_code_that_fails_is_one_line(
    spec: str, error: type[StatecheckError], words: tuple[str, ...], mine: Path
) -> None:
    line = refusal_of(Request(spec), error)
    assert all(word in line for word in words), line


def test_an_interrupt_is_not_a_fault_of_the_code(mine: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        resolve(Request("mine:interrupted"))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("m.pt", model="tiny", loader="mine:load"), ("--model and --loader exclude",)),
        (Request("tiny", loader="mine:load"), ("--loader mine:load is for a checkpoint", "'tiny'")),
        (Request("mine:make", model="tiny"), ("--model tiny is for a checkpoint", "'mine:make'")),
        (Request(model="tiny"), ("--model tiny is for a checkpoint", "'reference'")),
        (Request("m.pt", model="tinny"), ("'tinny'; did you mean tiny?",)),
        (Request("m.pt", loader="mine"), ("--loader 'mine': expected package.module:function",)),
        (Request("m.pt", loader="mine:gone"), ("--loader mine:gone", "has no 'gone'")),
        (Request("tiny", dtype="float8"), ("--dtype float8: expected float32, float64, bfloat16",)),
        (Request("tiny", device="gpu0"), ("--device gpu0 can't be used here",)),
        (Request("tiny", device="meta"), ("--device meta holds no numbers",)),
        (Request("mine:finished", dtype="float64"), ("--dtype float64: mine:finished", "in float32")),
    ],
)
def test_options_that_mean_nothing_are_usage_errors(request_: Request, words: tuple[str, ...], mine: Path) -> None:
    torch.save(registered_model("tiny").build({}).state_dict(), "m.pt")
    line = refusal_of(request_, UsageError)
    assert all(word in line for word in words), line


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_a_device_that_is_not_there_is_a_usage_error(site: Path) -> None:
    assert "--device cuda can't be used here" in refusal_of(Request("tiny", device="cuda"), UsageError)


@pytest.mark.parametrize("spec", ["tiny", "mine:make"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_the_dtype_asked_for_is_the_models(spec: str, dtype: str, mine: Path) -> None:
    subject = resolve(Request(spec, dtype=dtype))
    assert subject.model.facts.dtype == dtype
    outputs = subject.model(torch.zeros(1, 3, dtype=torch.int64))
    assert outputs.dtype == getattr(torch, dtype)
