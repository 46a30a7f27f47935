"""Whatever a file says, nothing in it runs: read in a process of its own whose every doing is seen."""

import argparse
import copyreg
import json
import os
import pickle
import sys
import time

import pytest
import torch
from hostile_files import (
    BAD,
    BESIDE,
    GOOD,
    HARMLESS_WITHIN,
    MODULE,
    PATH,
    alone,
    content,
    legacy,
    number,
    row,
    tensor,
    text,
)

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.modeling import pickles
from hf_robust_transfer.modeling.importing import read_checkpoint

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def watched(folder, files, read):
    """What a process of its own sees itself do with each file, and what comes of it: {name: (events, outcome)}."""
    (folder / "hostile_module.py").write_text(MODULE)
    for place, each in enumerate(files.values()):
        (folder / f"{place}.pt").write_bytes(each)
    child = os.fork()
    if child == 0:
        try:
            (folder / "seen.json").write_text(json.dumps(in_child(folder, files, read)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return json.loads((folder / "seen.json").read_text())


def in_child(folder, files, read):
    """To be run in a process that ends afterwards: what hears of all that it does cannot be taken off again."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    copyreg.add_extension("hostile_module", "touch", 0xF0)
    events = []
    sys.addaudithook(lambda event, arguments: events.append([event, *map(repr, arguments[:2])]))
    seen = {}
    for place, name in enumerate(files):
        events.clear()
        started = time.monotonic()
        try:
            outcome = {key: tensor.tolist() for key, tensor in read(folder / f"{place}.pt").weights.items()}
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        seen[name] = (list(events), outcome, time.monotonic() - started)
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "first.pt").write_bytes(GOOD["zip: good"])
    read_checkpoint(folder / "first.pt")  # what is imported at first use is imported here
    return folder, watched(folder, {**GOOD, **HARMLESS_WITHIN, **BAD}, read_checkpoint)


def doings(events, place):
    """What was done, but for opening the file itself to read it; whether as text or as bytes, Python does not tell."""
    return [
        event for event in events if not (event[0] == "open" and event[1].endswith(f"/{place}.pt'") and event[2] == "'r'")
    ]


def test_nothing_in_hostile_files_runs_and_nothing_but_the_file_is_opened(seen):
    folder, results = seen
    assert len(BESIDE) >= 25 and len(results) > 300
    for place, (name, (events, _, _)) in enumerate(results.items()):
        assert not doings(events, place), name
    assert not (folder / "it-ran").exists() and not (folder / PATH).exists()


def test_what_lies_beside_the_weights_does_not_keep_them_from_being_read(seen):
    _, results = seen
    for name, (_, outcome, _) in results.items():
        if name in GOOD or name in HARMLESS_WITHIN:
            if name.startswith("pickle"):  # which has no numbers
                assert outcome.startswith("UsageError"), (name, outcome)
            else:
                assert outcome == {"weight": [1, 2, 3, 4]}, (name, outcome)


def test_hostile_weights_are_refused_in_one_line_and_at_once(seen):
    folder, results = seen
    for place, (name, (_, outcome, seconds)) in enumerate(results.items()):
        assert seconds < 5, name
        if name in BAD:
            assert isinstance(outcome, str), (name, outcome)
            assert outcome.startswith(f"UsageError: {folder / f'{place}.pt'} ") and "\n" not in outcome, (name, outcome)


def test_the_same_files_run_their_code_where_they_are_unpickled(tmp_path):
    """Else the other tests would prove nothing."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, identity):
            return identity

    def unpickled(file):
        with file.open("rb") as opened:
            Unpickler(opened).load()
        return argparse.Namespace(weights={})

    bombs = {"an exponential key", "a deep key", "stack global of no text", "gigabytes of zeros", "a tensor of terabytes"}
    harmful = {name: alone(each) for name, each in BESIDE.items() if name not in bombs}
    results = watched(tmp_path, harmful, unpickled)
    ran = [name for name, (events, _, _) in results.items() if any(event[0] == "pickle.find_class" for event in events)]
    assert len(ran) >= 25 and (tmp_path / "it-ran").exists() and (tmp_path / PATH).exists()


def test_a_file_that_takes_too_many_steps_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "_MOST_STEPS", 1000)
    (tmp_path / "a.pt").write_bytes(legacy(content(b"N0" * 1000 + b"N")))
    with pytest.raises(UsageError, match="takes more than 1,000 steps to describe"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_tensor_in_a_part_of_a_storage_as_the_first_versions_of_torch_saved_it_comes_out(tmp_path):
    part = tensor(size=(2,), view=(row(text("1"), number(1), number(3)),))
    (tmp_path / "a.pt").write_bytes(legacy(content(weight=part)))
    assert read_checkpoint(tmp_path / "a.pt").weights["weight"].tolist() == [2, 3]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_kind_and_protocol_come_out_as_torch_reads_them(tmp_path, zipped, protocol):
    base = torch.arange(24.0).view(4, 6)
    weights = {
        **{str(dtype): torch.arange(4).to(dtype) for dtype in pickles._DTYPES.values()},
        "shared": base,
        "turned": base.T,
        "part": base[1:3, 2:5],
        "number": torch.tensor(3.0),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(base * 2),
        "without gradient": torch.nn.Parameter(base.clone(), requires_grad=False),
        "stepped": base[::2, ::3],
    }
    torch.save(
        {"state_dict": weights, "epoch": 3},
        tmp_path / "a.pt",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    read = read_checkpoint(tmp_path / "a.pt").weights
    assert read.keys() == weights.keys()
    for name, written in weights.items():
        torch.testing.assert_close(read[name], written.detach(), rtol=0, atol=0)
