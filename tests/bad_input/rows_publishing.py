"""Bad input of publishing: names, folders, and reports that do not agree with themselves."""

import json
import shutil

from made_report import made_report
from row import Row

from hf_robust_transfer.evaluation.counting import check_report
from hf_robust_transfer.hub.access import checked_repo_id
from hf_robust_transfer.provenance import Provenance, TrainedFor
from hf_robust_transfer.sharing import check_for_secrets

PUBLISH = "publish --folder <model> --without_evaluation --dry_run"
TOKEN = "hf_" + "pLaNtEd" * 5


def model_with(**changes):
    """A copy of the model in the row's own folder, with changes of its configuration."""

    def make(here, places):
        shutil.copytree(places["model"], here / "mine")
        file = here / "mine" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return make


MINE = "publish --folder mine --repo_id me/mine --without_evaluation --dry_run"
ROWS = [
    Row("a name with two owners", f"{PUBLISH} --repo_id a/b/c", "--repo_id Repo id must be in the form"),
    Row("a name that begins with a dash", f"{PUBLISH} --repo_id=me/-mine", "--repo_id Repo id must use alphanumeric chars"),
    Row("a name with a space", f"{PUBLISH} --repo_id 'me/my model'", "--repo_id Repo id must use alphanumeric chars"),
    Row("a name with Markdown", f"{PUBLISH} --repo_id 'me/**mine**'", "--repo_id Repo id must use alphanumeric chars"),
    Row("a name with two dots", f"{PUBLISH} --repo_id me/a..b", "--repo_id Cannot have -- or .."),
    Row("a repository of git", f"{PUBLISH} --repo_id me/mine.git", "--repo_id Repo_id cannot end by '.git'"),
    Row("an empty name", f"{PUBLISH} --repo_id ''", "--repo_id"),
    Row("a folder that is not there", "publish --folder nowhere --repo_id me/mine --dry_run", "--folder nowhere holds no"),
    Row("a folder of data", "publish --folder <images> --repo_id me/mine --dry_run", "--folder <images> holds no"),
    Row("a token in the configuration", MINE, "config.json would tell others a Hub token", model_with(note=TOKEN)),
    Row(
        "a password in the configuration",
        MINE,
        "config.json would tell others the password in a URL",
        model_with(note="https://me:secret@host/x"),
    ),
    Row("no name from Python", lambda here, places: checked_repo_id("me/mine\n# Heading"), "--repo_id"),
    Row("a token in a text", lambda here, places: check_for_secrets("a.md", TOKEN), "a.md would tell others a Hub token"),
    Row("a place in a text", lambda here, places: check_for_secrets("a.md", "in /home/me/x"), "/home/me/x, a place of"),
    Row("a record that is a list", lambda here, places: Provenance.from_dict([]), "Provenance is a JSON object"),  # type: ignore[arg-type]
    Row(
        "a record without numbers",
        lambda here, places: Provenance.from_dict({"seconds": "3"}),
        "seconds '3' of a Provenance",
    ),
    Row("a norm that is a number", lambda here, places: TrainedFor.from_dict({"norm": 2}), "norm 2 of a TrainedFor record"),
    Row(
        "labels of another model",
        lambda here, places: check_report(made_report(), ["a", "b", "c"]),
        ("robustness.json does not agree with itself", "evaluate again, with --overwrite_output_dir"),
    ),
]
